"""Verbs for rehearsing: `dev gemini-emulator` serves the Gemini protocol on this machine, at no cost."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gemma_ops.emulator import Responder

app = typer.Typer()
dev_app = typer.Typer(help="Rehearse at no cost.", no_args_is_help=True)
app.add_typer(dev_app, name="dev")


@dev_app.callback()
def _dev() -> None:
    """Rehearse at no cost."""


@dev_app.command("gemini-emulator")
def gemini_emulator(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    faults: Annotated[
        Path | None,
        typer.Option(help="YAML list of faults, such as [{fault: 429, times: 3, seconds: 2}].", show_default=False),
    ] = None,
    answers_from: Annotated[
        str | None,
        typer.Option(help="nano, a checkpoint folder, or a target; made-up text by default.", show_default=False),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="Append every request to this JSONL file.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
) -> None:
    """Serve the Gemini API on this machine, with made-up answers, so that a recipe can be rehearsed. Ctrl-C ends it."""
    from datetime import UTC, datetime

    from gemma_ops.emulator import Emulator
    from gemma_ops.emulator.emulated_models import known_routes
    from gemma_ops.emulator.orders import read_orders

    orders = read_orders(faults) if faults else []
    routes = known_routes(datetime.now(UTC).date())
    emulator = Emulator(_responder(answers_from), seed=seed, log=log, port=port, routes=routes)
    for order in orders:
        emulator.fail(**order.model_dump())
    with emulator:
        print(f"Gemini emulator at {emulator.url}, answers from {answers_from or 'a rehearsal'}. Ctrl-C ends it.\n")
        print("export GEMINI_API_KEY=rehearsal")
        print(f"--set machine.gemini.base_url={emulator.url}", flush=True)
        ended = threading.Event()
        # Where Ctrl-C is ignored (nohup, some CI), a plain `kill` ends it too.
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        with contextlib.suppress(KeyboardInterrupt):
            ended.wait()
        print(f"\n{len(emulator.log)} requests, {len(emulator.billed())} would be billed")


def _responder(answers_from: str | None) -> Responder | None:
    """Return the local model behind a name; None stands for the rehearsal."""
    if answers_from is None:
        return None
    from gemma_ops.config import MachineConfig
    from gemma_ops.emulator.local_responder import from_target
    from gemma_ops.errors import BoundaryError
    from gemma_ops.modeling.checkpoint_source import local_base
    from gemma_ops.targets import open_target

    folder = local_base(answers_from)
    target = open_target(
        str(folder.resolve()) if folder else answers_from, MachineConfig(), run="gemini-emulator", use="evaluate"
    )
    if "local_only" not in target.sees:  # a request does not say how private it is
        raise BoundaryError(
            f"target {target.name} may not see everything that a rehearsal sends",
            "let a model on this machine answer: --answers-from nano",
        )
    return from_target(target)
