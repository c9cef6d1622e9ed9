"""Verbs that run a recipe, whole or up to one of its steps."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from gemma_ops.cli.options import Configs, Json, Redo, Sets, load_config

app = typer.Typer()


def _execute(
    configs: list[str], sets: list[str] | None, redo: list[str] | None, until: str | None, as_json: bool
) -> None:
    """Run the recipe, up to `until`, and print what came out."""
    from gemma_ops import console, recipes, summary
    from gemma_ops.registry import mirror
    from gemma_ops.run import Listener, Run, StopHere

    config = load_config(configs, sets)
    recipe = recipes.load(config.recipe)
    recipes.check_steps(config.recipe, [*(redo or ()), *([until] if until else ())])
    for line in recipes.doubts(config):
        console.notice(line)
    listeners: tuple[Listener, ...] = (console.Follower(), mirror(config.machine))
    with Run(config, until=until, redo=tuple(redo or ()), listeners=listeners) as run:
        with contextlib.suppress(StopHere):
            recipe(run, config)
        result = summary.of(run)
    if as_json:
        console.print_json(result)
    else:
        for line in summary.lines(result):
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
    _execute(configs, sets, redo, until, as_json)


@app.command()
def train(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the trained adapter."""
    _execute(configs, sets, redo, "train", as_json)


@app.command()
def quantize(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the quantized files."""
    _execute(configs, sets, redo, "quantize", as_json)


@app.command()
def evaluate(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the verdict and the report."""
    _execute(configs, sets, redo, "evaluate", as_json)


@app.command()
def register(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the registered version."""
    _execute(configs, sets, redo, "register", as_json)
