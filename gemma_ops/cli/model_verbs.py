"""Verbs about registered versions: move an alias, move it back, say what is asked of them, look at what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gemma_ops.cli.options import ConfigOption, Json, Name, Reason, Sets, load_config

app = typer.Typer()


@app.command()
def promote(
    name: Annotated[str, typer.Argument(help="Registered model name, or NAME/VERSION.", show_default=False)],
    reason: Reason,
    to: Annotated[
        str, typer.Option("--to", help="Alias to move; NAME-prod or MODEL@ALIAS copies into another registered model.")
    ] = "champion",
    version: Annotated[int | None, typer.Option(help="Version; the latest by default.", show_default=False)] = None,
    override: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Promote against what the evidence says; the reason and what it overrides are recorded.",
            show_default=False,
        ),
    ] = None,
    expect: Annotated[
        int | None, typer.Option(help="Refuse unless the alias points at this version now.", show_default=False)
    ] = None,
    approved_by: Annotated[
        str | None,
        typer.Option(
            "--approved-by",
            metavar="NAME",
            help="Person who approved, where the policy requires one.",
            show_default=False,
        ),
    ] = None,
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Move an alias to a version whose verdict meets the policy and whose bytes are what was evaluated."""
    from gemma_ops import registry
    from gemma_ops.cli import console
    from gemma_ops.errors import ConfigError
    from gemma_ops.registry.served import ServeNeeds

    config = load_config(configs or [], sets)
    model, slash, number = name.partition("/")
    if slash and (version is not None or not number.isdigit()):
        raise ConfigError(f"{name!r} with --version {version}" if version else f"{name!r} names no version",
                          "write NAME/VERSION, or NAME with --version")  # fmt: skip
    result = registry.promote(
        config.machine, model, to=to, version=int(number) if slash else version, reason=reason, override=override,
        expect=expect, approved_by=approved_by, needs=ServeNeeds(config.serve.context, config.serve.slots),
    )  # fmt: skip
    _tell(result, as_json, console)


@app.command()
def audit(
    name: Name,
    everything: Annotated[
        bool, typer.Option("--bytes", help="Read every stored file, not only the manifests and what is small.")
    ] = False,
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Check a registered model: ledger, files, signatures, verdicts, and how each alias got where it stands."""
    from gemma_ops import registry
    from gemma_ops.cli import console
    from gemma_ops.errors import GateError

    result = registry.audit(load_config(configs or [], sets).machine, name, everything=everything)
    _tell(result, as_json, console)
    if result.problems:
        raise typer.Exit(GateError.exit_code)


@app.command()
def policy(
    name: Name,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="CONFIG",
            help="Take gates, tasks and confidence of this configuration.",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", help="Reason; required with --from, and kept in the ledger.", show_default=False)
    ] = "",
    new_ledger: Annotated[
        bool, typer.Option("--new-ledger", help="Start a new ledger where the old one is lost or was changed.")
    ] = False,
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Show what a registered model asks of its versions, or set it with a reason."""
    from gemma_ops import registry
    from gemma_ops.cli import console
    from gemma_ops.errors import ConfigError
    from gemma_ops.recipes import inputs

    if source is None:
        if reason or new_ledger:
            raise ConfigError("no policy was given", "name the configuration that holds it: --from CONFIG")
        _tell(registry.show_policy(load_config(configs or [], sets).machine, name), as_json, console)
        return
    config = load_config([*(configs or []), *source], sets)
    result = registry.set_policy(
        config.machine, name, inputs.configured_policy(config), reason=reason, new_ledger=new_ledger
    )
    _tell(result, as_json, console)


@app.command()
def rollback(
    name: Name,
    reason: Reason,
    alias: Annotated[str, typer.Option(help="Alias to move back.")] = "champion",
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Point an alias back at the version it had before, after verifying that version's bytes."""
    from gemma_ops import registry
    from gemma_ops.cli import console

    machine = load_config(configs or [], sets).machine
    _tell(registry.rollback(machine, name, alias=alias, reason=reason), as_json, console)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A run's name, or a registered model's.", show_default=False)],
    configs: ConfigOption = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """What a run has made, and which versions and aliases its registered model has."""
    from gemma_ops import registry
    from gemma_ops.cli import console, run_summary

    machine = load_config(configs or [], sets).machine
    folder = Path(machine.runs) / name
    if not folder.is_dir():
        _tell(registry.show(machine, name), as_json, console)
        return
    result = run_summary.of_folder(folder)
    version = result.get("version") or {}
    model = registry.show(machine, version["name"]) if version.get("version") and machine.mlflow else None
    if as_json:
        console.print_json({**result, "model": model.to_json() if model else None})
        return
    for line in [*run_summary.summary_lines(result), *(["", *model.lines()] if model else [])]:
        print(line)


def _tell(result: Any, as_json: bool, console: Any) -> None:
    if as_json:
        console.print_json(result.to_json())
    else:
        for line in result.lines():
            print(line)
