"""Verbs for rows that a teacher writes: `synth plan` asks nothing, `synth run` is the recipe up to its step
`synthesize`."""

from __future__ import annotations

from typing import Annotated

import typer

from gemma_ops.cli.options import Configs, Json, Redo, Sets, load_config
from gemma_ops.cli.run_verbs import execute

app = typer.Typer()
synth_app = typer.Typer(
    help="Have a teacher write training rows from documents, seeds and tools.", no_args_is_help=True
)
app.add_typer(synth_app, name="synth")


@synth_app.command("plan")
def synth_plan(
    configs: Configs,
    device: Annotated[
        str | None,
        typer.Option(
            help="For a local teacher: a GPU by name, such as a100-40; the present device by default.",
            show_default=False,
        ),
    ] = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Documents, coverage, requests, tokens, dollars and time of a synthesis. Asks nothing."""
    from gemma_ops.cli import console
    from gemma_ops.recipes import inputs
    from gemma_ops.synth import synthesis_inputs
    from gemma_ops.synth.estimate import estimate_synthesis
    from gemma_ops.synth.estimate_text import estimate_lines

    config = load_config(configs, sets, fetches=False)
    source = inputs.questions_read(config) if config.evaluate.tasks else None
    tasks = inputs.every_task(config) if config.evaluate.tasks else ()
    made = estimate_synthesis(config, synthesis_inputs(config.synth), device, tasks, source.path if source else None)
    if as_json:
        console.print_json(made.to_json())
    else:
        for line in estimate_lines(made):
            print(line)


@synth_app.command("run")
def synth_run(configs: Configs, sets: Sets = None, redo: Redo = None, as_json: Json = False) -> None:
    """Run the recipe as far as the teacher's rows: a killed run goes on where it was, and pays for nothing twice."""
    execute(configs, sets, redo, "synthesize", as_json)
