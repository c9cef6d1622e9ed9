"""Verbs about money: what was spent on what, and what it would cost elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_ops.cli.options import ConfigOption, Configs, Json, Sets, load_config, write_page

if TYPE_CHECKING:
    from gemma_ops.gemini.spending import Spending

app = typer.Typer()
cost_app = typer.Typer(help="Show what was spent on what; compare with what it would cost elsewhere.")
app.add_typer(cost_app, name="cost")


@cost_app.callback(invoke_without_command=True)
def cost(
    context: typer.Context,
    configs: ConfigOption = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Ledger file, if not the configuration's.", show_default=False)
    ] = None,
    run: Annotated[str | None, typer.Option(help="Only this run.", show_default=False)] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Show what was spent on what: by run, use, model and tier."""
    if context.invoked_subcommand:
        return
    from gemma_ops.cli import console
    from gemma_ops.errors import DataError
    from gemma_ops.gemini.cache import store_path

    if ledger and not ledger.is_file():
        raise DataError(f"there is no ledger {ledger}", "name the file; runs keep theirs as runs/gemini.sqlite")
    path = ledger or store_path(load_config(configs or [], sets).machine)
    found = _added(path, run)
    if as_json:
        console.print_json(found.to_json())
        return
    runs = [] if found.found or run is None else sorted({line.run for line in _added(path, None).found})
    if runs:
        print(f"{path} holds nothing of run {run!r}; its runs are {', '.join(runs)}")
    else:
        for line in found.lines():
            print(line)
    beside = path.with_name(f"{path.stem}.rehearsal{path.suffix}")
    if beside.is_file() and (count := _added(beside, run).sum.requests):
        print(f"rehearsed and not in these figures: {count:,} requests to an emulator (--ledger {beside})")


def _added(path: Path, run: str | None) -> Spending:
    """Return what a ledger holds. Raises DataError for a file that is none."""
    import sqlite3

    from gemma_ops.errors import DataError, MachineError
    from gemma_ops.gemini.spending import spending

    try:
        return spending(path, run=run)
    except (MachineError, sqlite3.OperationalError) as error:
        cause = error if isinstance(error, sqlite3.Error) else error.__cause__
        if getattr(cause, "sqlite_errorcode", None) not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
            raise
        raise DataError(
            f"{path} is not a ledger: {cause}", "name a file that a run wrote, such as runs/gemini.sqlite"
        ) from error


@cost_app.command()
def compare(
    configs: Configs,
    target: Annotated[str | None, typer.Option(help="Local target whose speed counts.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="Task whose answers count.", show_default=False)] = None,
    prompt_tokens: Annotated[float | None, typer.Option(help="Tokens of one prompt.", show_default=False)] = None,
    new_tokens: Annotated[float | None, typer.Option(help="Tokens of one answer.", show_default=False)] = None,
    thought_tokens: Annotated[
        float | None, typer.Option(help="Tokens that Gemini thinks for one answer.", show_default=False)
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="New tokens per second, of all answers together.", show_default=False)
    ] = None,
    cached_share: Annotated[float, typer.Option(min=0, max=1, help="Share of the prompt at the cached price.")] = 1.0,
    device: Annotated[
        str | None, typer.Option(help="Take this GPU's list price, such as l4.", show_default=False)
    ] = None,
    hosted: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=IN/OUT", help="Another service, dollars per million tokens.", show_default=False),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file.", show_default=False)] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Compare own hardware with API prices, and show from which volume it is cheaper.

    Speed and tokens come from the run's evaluation, or from the options.
    """
    from datetime import UTC, datetime

    from gemma_ops.cli import console
    from gemma_ops.evaluation import breakeven, breakeven_inputs, breakeven_text
    from gemma_ops.evaluation.breakeven_html import cost_page

    config = load_config(configs, sets)
    given = breakeven_inputs.Given(prompt_tokens, new_tokens, thought_tokens, tokens_per_second, device, target, task)
    own, work, measured = breakeven_inputs.read_evaluation(config, given)
    priced = breakeven_inputs.services(config.machine, hosted or [])
    found = breakeven.compare_costs(
        own, work, at=datetime.now(UTC), cached_share=cached_share, measured=measured, priced=priced
    )
    if html:
        write_page(html, cost_page(found))
    if as_json:
        console.print_json(found.to_json())
        return
    for line in breakeven_text.cost_lines(found):
        print(line)
    if html:
        print(f"plots: {html}")
