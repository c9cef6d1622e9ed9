"""A task as lm-evaluation-harness runs it: a YAML file, its documents, and the few lines of Python it needs.

Answers end where Gemma's turn ends and are as long as the task allows, greedily decoded. Where all metrics are
`exact_match` on trimmed text, which the harness's own metric measures too, that one is used and the export runs without
gemma-ops; otherwise `utils.py` calls the task's own metrics.

One thing an export can't settle: a checkpoint whose `generation_config.json` sets `max_new_tokens` overrides the
harness's limit (transformers only warns), and then answers are cut later than here. Gemma 4's published files set none.

When every row has choices, a second task `NAME_choices` ranks them by their likelihood as whole replies, with the
closing `<turn|>`: without it a choice that begins another one could not lose to it. That measures something
else than an answer in the model's own words, so its scores are not those of the first task.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.evaluation.interop import task_documents
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.metrics.text import ExactMatch
from gemma_ops.runs.durable import write_text
from gemma_ops.tasks.task import Task

TURN_END = "<turn|>"
CHOICES = "_choices"

_HEAD = '''"""Made by gemma-ops from the task {name}, version {version}; `gemma-ops task export` makes it again."""

import json
from pathlib import Path

import datasets
'''
_DOCUMENTS = """
HERE = Path(__file__).parent


def documents(**_settings):
    with (HERE / "data.jsonl").open(encoding="utf-8") as lines:
        return datasets.DatasetDict({"test": datasets.Dataset.from_list([json.loads(line) for line in lines])})
"""
_SCORES = '''
TASK = load_task(HERE / "task", HERE / "task")
ROWS = {row.id: row for row in TASK.rows}


def process_results(document, results):
    """The task's own scores; a metric that has nothing to say about a row stays out of its mean."""
    scores = TASK.score(results[0].strip(), ROWS[document["id"]]).values
    return {name: score for name, score in scores.items() if score is not None}
'''


def write_lm_eval(folder: Path, out: Path, *, source: Path | None, rows: int | None) -> list[str]:
    """Write the export, and return how to run it."""
    task = task_documents.prepare_copy(folder, out, source=source, rows=rows)
    choices = all(row.choices and row.gold in row.choices for row in task.rows)
    bodies = [task_documents.harness(task, row) | (_replies(row) if choices else {}) for row in task.rows]
    task_documents.write_lines(out / "data.jsonl", bodies)
    own = _native(task)
    head = _HEAD.format(name=task.name, version=task.file.version)
    code = f"{head}{_DOCUMENTS}" if own else f"{head}from gemma_ops.tasks.task import load_task\n{_DOCUMENTS}{_SCORES}"
    write_text(out / "utils.py", code)
    _yaml(out / f"{task.name}.yaml", task, _generation(task, own=own), any(body["system"] for body in bodies))
    names = [task.name]
    if choices:
        names.append(f"{task.name}{CHOICES}")
        _yaml(out / f"{names[1]}.yaml", task, _ranking(names[1]), any(body["system"] for body in bodies))
    return [
        f"{len(task.rows)} rows of {task.name} in {out}; run them with",
        f"  lm_eval --model hf --model_args pretrained=CHECKPOINT --include_path {out} --tasks {','.join(names)} \\",
        "    --apply_chat_template --batch_size 1 --log_samples --output_path LOGS",
        *task_documents.export_warnings(task),
    ]


def _native(task: Task) -> bool:
    """True if the harness's own `exact_match` says the same as all of the task's metrics. Answers are trimmed
    anyway."""
    return all(
        isinstance(metric, ExactMatch) and metric.key == "exact_match" and set(metric.normalize) <= {"strip"}
        for metric in task.file.metrics
    ) and all(row.reference is not None and row.gold == row.gold.strip() for row in task.rows)


def _replies(row: ScoredRow) -> dict[str, Any]:
    assert row.choices
    return {"replies": [f"{choice}{TURN_END}" for choice in row.choices], "right": row.choices.index(row.gold)}


def _generation(task: Task, *, own: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "task": task.name,
        "output_type": "generate_until",
        "doc_to_target": "target",
        "generation_kwargs": {
            "until": [TURN_END],
            "do_sample": False,
            "max_gen_toks": task.file.generation.max_new_tokens,
        },
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True}
            for name in (["exact_match"] if own else task.columns)
        ],
    }
    if own:  # the filter finds the whole text and trims it
        trim = {"function": "regex", "regex_pattern": r"(?s)\A.*\Z"}
        return body | {"filter_list": [{"name": "trimmed", "filter": [trim, {"function": "take_first"}]}]}
    return body | {"process_results": "!function utils.process_results"}


def _ranking(name: str) -> dict[str, Any]:
    return {
        "task": name,
        "output_type": "multiple_choice",
        "doc_to_choice": "replies",
        "doc_to_target": "right",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _yaml(path: Path, task: Task, body: dict[str, Any], system: bool) -> None:
    """Write the YAML file, a JSON value per key: `!function` is a tag, which no JSON spells."""
    common: dict[str, Any] = {
        "custom_dataset": "!function utils.documents",
        "test_split": "test",
        **({"description": "system"} if system else {}),
        "doc_to_text": "question",
        "num_fewshot": 0,
        "metadata": {"version": task.file.version},
    }
    lines = [f"# Made by gemma-ops from the task {task.name}, version {task.file.version}.\n"]
    for key, value in {**body, **common}.items():
        tagged = isinstance(value, str) and value.startswith("!")
        lines.append(f"{key}: {value if tagged else json.dumps(value, ensure_ascii=False)}\n")
    write_text(path, "".join(lines))
