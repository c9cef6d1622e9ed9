"""Verbs that run a recipe, whole or up to one of its steps."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from gemma_ops.cli.options import Configs, Json, Redo, Sets, load_config
from gemma_ops.errors import ConfigError

app = typer.Typer()


def execute(
    configs: list[str], sets: list[str] | None, redo: list[str] | None, until: str | None, as_json: bool
) -> None:
    """Run the recipe, up to `until`, and print what came out."""
    from gemma_ops.cli import console, run_summary
    from gemma_ops.offline import guard
    from gemma_ops.recipes import inputs, preflight
    from gemma_ops.recipes.finding import find_recipe
    from gemma_ops.registry import lost_version, mirror
    from gemma_ops.runs.run import Listener, Run, StopHere

    config = load_config(configs, sets)
    recipe = find_recipe(config.recipe)
    recipe.check_steps([*(redo or ()), *([until] if until else ())])
    if until == "draft" and config.draft.base == "none":
        raise ConfigError("draft.base is none, so there is no drafter to tune", "name one: --set draft.base=stock")
    if until in (None, "register") and (lost := lost_version(config.machine, Path(config.machine.runs) / config.name)):
        console.notice(lost)
        redo = [*(redo or ()), "register"]
    preflight.check_ahead(config, recipe, until=until, redo=redo or ())
    for line in inputs.doubts(config):
        console.notice(line)
    if held := guard.held_by():
        console.notice(f"offline is held by {held}")
    listeners: tuple[Listener, ...] = (console.ProgressFollower(), mirror(config.machine))
    with Run(config, until=until, redo=tuple(redo or ()), listeners=listeners) as run:
        with contextlib.suppress(StopHere):
            recipe(run, config)
        result = run_summary.of(run)
    if as_json:
        console.print_json(result)
    else:
        for line in run_summary.summary_lines(result):
            print(line)


@app.command()
def run(
    configs: Configs,
    sets: Sets = None,
    redo: Redo = None,
    until: Annotated[str | None, typer.Option(metavar="STEP", help="Stop after this step.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: finished steps are kept, a killed run goes on where it was."""
    execute(configs, sets, redo, until, as_json)


@app.command()
def train(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the trained adapter."""
    execute(configs, sets, redo, "train", as_json)


@app.command()
def quantize(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the quantized files."""
    execute(configs, sets, redo, "quantize", as_json)


@app.command()
def draft(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the tuned drafter and what it does for each file; `draft.base` names it."""
    execute(configs, sets, redo, "draft", as_json)


@app.command()
def evaluate(
    configs: Configs,
    sets: Sets = None,
    redo: Redo = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what it can show, sends and may cost; nothing is asked.")
    ] = False,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade the stored answers again; only what changed is asked.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the recipe as far as the verdict and the report."""
    if plan:
        _forecast(configs, sets, as_json)
        return
    if regrade:
        from gemma_ops.tasks.stored_answers import keep_answers

        config = load_config(configs, sets)
        keep_answers(Path(config.machine.runs) / config.name)
        redo = [*(redo or ()), "evaluate"]
    execute(configs, sets, redo, "evaluate", as_json)


def _forecast(configs: list[str], sets: list[str] | None, as_json: bool) -> None:
    from gemma_ops.cli import console
    from gemma_ops.evaluation import forecast, forecast_lines
    from gemma_ops.recipes import inputs

    config = load_config(configs, sets, fetches=False)
    source = inputs.questions_read(config)
    folder = Path(config.machine.runs) / config.name / "evaluate"
    found = forecast(
        config.evaluate,
        config.machine,
        before=folder,
        source=source.path if source else None,
        tasks=inputs.tasks(config),
    )
    if as_json:
        console.print_json(found)
    else:
        for line in forecast_lines(found):
            print(line)


@app.command()
def register(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the registered version."""
    execute(configs, sets, redo, "register", as_json)
