"""Verbs that exchange a task with lm-evaluation-harness and Inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gemma_ops.cli.options import Json

app = typer.Typer()
task_app = typer.Typer(
    help="Take a task to lm-evaluation-harness or Inspect, and their answers back.", no_args_is_help=True
)
app.add_typer(task_app, name="task")


Source = Annotated[
    Path | None,
    typer.Option(help="Your data folder, for a task whose rows aren't shipped.", show_default=False),
]


@task_app.command("export")
def export(
    name: Annotated[str, typer.Argument(help="A task under eval/, or a path to one.", show_default=False)],
    to: Annotated[Literal["lm-eval", "inspect"], typer.Option(help="Program that will run it.", show_default=False)],
    out: Annotated[Path, typer.Option(help="An empty folder to write into.", show_default=False)],
    source: Source = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Only this many rows, as evaluate.rows.", show_default=False)
    ] = None,
) -> None:
    """Write a task so that lm-evaluation-harness or Inspect runs it, scored by the task's own metrics."""
    from gemma_ops.config import shipped
    from gemma_ops.evaluation import interop

    for line in interop.export_task(shipped.find_shipped("eval", name), to, out, source=source, rows=rows):
        print(line)


@task_app.command("import")
def import_log(
    log: Annotated[Path, typer.Argument(help="samples_*.jsonl of lm_eval, or .eval of Inspect.", show_default=False)],
    task: Annotated[str, typer.Option(help="Task that it belongs to: under eval/, or a path.", show_default=False)],
    target: Annotated[str, typer.Option(help="Name for what answered.", show_default=False)],
    out: Annotated[Path, typer.Option(help="File that gathers imported answers.")] = Path("answers.jsonl"),
    versus: Annotated[
        Path | None,
        typer.Option(help="Folder of a step `evaluate` to compare with.", show_default=False),
    ] = None,
    source: Source = None,
    as_json: Json = False,
) -> None:
    """Take in the answers of another program's log, grade them here, and compare them pairwise with other targets."""
    from gemma_ops.cli import console
    from gemma_ops.config import shipped
    from gemma_ops.evaluation.interop.compare import compare_import, read_other
    from gemma_ops.evaluation.interop.intake import take_answers
    from gemma_ops.evaluation.interop.task_documents import load_copy

    loaded = load_copy(shipped.find_shipped("eval", task), source)
    rivals = read_other(versus, loaded) if versus else []  # before anything is written
    result = compare_import(loaded, take_answers(log, loaded, target, out), out, rivals)
    if as_json:
        console.print_json(result.to_json())
    else:
        for line in result.lines():
            print(line)
