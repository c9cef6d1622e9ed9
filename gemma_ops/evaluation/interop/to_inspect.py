"""A task as Inspect runs it: a Python file with one `@task`, and its samples.

Whole conversations go out. The scorer calls the task's own metrics; a metric that has nothing to say about a row gives
it NaN, which Inspect counts as unscored.
"""

from __future__ import annotations

from pathlib import Path

from gemma_ops.evaluation.interop import task_documents
from gemma_ops.runs.durable import write_text

_CODE = '''"""Made by gemma-ops from the task {name}, version {version}; `gemma-ops task export` makes it again."""

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, mean, scorer, stderr
from inspect_ai.solver import generate

from gemma_ops.tasks.task import load_task

HERE = Path(__file__).parent
TASK = load_task(HERE / "task", HERE / "task")
ROWS = {{row.id: row for row in TASK.rows}}


@scorer(metrics={{"*": [mean(), stderr(cluster="cluster")]}})
def task_metrics():
    async def score(state, target):
        answer = state.output.completion.strip()
        scores = TASK.score(answer, ROWS[str(state.sample_id)]).values
        values = {{name: float("nan") if value is None else value for name, value in scores.items()}}
        return Score(value=values, answer=answer)

    return score


@task
def {function}():
    return Task(
        name={name!r},
        dataset=json_dataset(str(HERE / "data.jsonl")),
        solver=generate(),
        scorer=task_metrics(),
        config=GenerateConfig(max_tokens={tokens}, temperature=0.0),
        version={version},
    )
'''


def write_inspect(folder: Path, out: Path, *, source: Path | None, rows: int | None) -> list[str]:
    """Write the export, and return how to run it."""
    task = task_documents.prepare_copy(folder, out, source=source, rows=rows)
    task_documents.write_lines(out / "data.jsonl", (task_documents.inspect(task, row) for row in task.rows))
    function = "".join(letter if letter.isalnum() else "_" for letter in f"task_{task.name}")
    tokens = task.file.generation.max_new_tokens
    code = _CODE.format(name=task.name, version=task.file.version, function=function, tokens=tokens)
    write_text(out / f"{function}.py", code)
    return [
        f"{len(task.rows)} rows of {task.name} in {out}; run them with",
        (
            f"  inspect eval {out / function}.py@{function} --model hf/local -M model_path=CHECKPOINT -M "
            f"do_sample=false \\"
        ),
        "    --max-connections 1 -M batch_size=1 \\",
        """    -M 'tokenizer_call_args={"add_special_tokens": false}'""",
        (
            "one row at a time, for a batch is padded and may then decode otherwise; no <bos>, for the template has "
            "written it"
        ),
        *task_documents.export_warnings(task),
    ]
