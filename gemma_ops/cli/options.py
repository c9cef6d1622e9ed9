"""Arguments and options that several verbs share, and how they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gemma_ops.config import RunConfig

Configs = Annotated[
    list[str],
    typer.Argument(help="Configuration files, merged left to right: paths or shipped names.", show_default=False),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="KEY=VALUE", help="Override one key, for example train.epochs=2.", show_default=False
    ),
]
Redo = Annotated[
    list[str] | None,
    typer.Option("--redo", metavar="STEP", help="Make this step again even if it is there.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Name = Annotated[str, typer.Argument(help="Registered model name.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Reason; required, and kept in the ledger.", show_default=False)]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option("--config", "-c", help="Configuration that says where runs and MLflow are.", show_default=False),
]


def write_page(path: Path, text: str) -> None:
    """Write a file that a person asked for. Raises MachineError where it can't be written."""
    from gemma_ops.errors import MachineError
    from gemma_ops.runs.durable import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise MachineError(
            f"{path} can't be written: {error.strerror or error}",
            "give a file in a folder that is there and may be written",
        ) from error


_alone = False
"""Whether this process is the command itself, and not one that calls the verbs from Python."""


def own_process() -> None:
    """Say that this process is the command: offline, it may then be moved into a network of its own."""
    global _alone  # noqa: PLW0603
    _alone = True


def load_config(
    configs: list[str],
    sets: list[str] | None,
    *,
    fetches: bool = True,
    targets: Sequence[str] = (),
    listens: bool = False,
) -> RunConfig:
    """Return the configuration, with offline mode in force if it or the environment asks for it.

    `fetches` is off for verbs that only compute from what is here: they may look at a configuration that could not run.
    `targets` are those that the command line names; `listens`: the command is a server.
    """
    from gemma_ops.config.gemini import lay_over
    from gemma_ops.config.loading import read_run_config
    from gemma_ops.offline import guard

    config = read_run_config(configs, sets or ())
    lay_over(config.machine.gemini)
    if config.offline or guard.active():
        guard.enforce()
        if fetches:
            guard.check_offline(config)
        if _alone:
            guard.confine(config, targets, listens=listens)
    return config
