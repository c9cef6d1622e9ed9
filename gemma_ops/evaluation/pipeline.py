"""The step `evaluate`: ask every target every question, grade, decide, and write it all down.

What is written: `answers.jsonl` and `scores.jsonl` (evidence), `verdict.json` (what it says), `report.html`, `summary.md`
and `junit.xml` (for people and for CI). A killed evaluation goes on from the last finished batch.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gemma_ops import journal
from gemma_ops.config import EvaluateConfig, MachineConfig
from gemma_ops.durable import write_text
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation import answers, junit, provenance, report_html, scoring, summary, verdict
from gemma_ops.evaluation.answers import AnswerFile
from gemma_ops.evaluation.metrics.base import Row
from gemma_ops.evaluation.scoring import Graded
from gemma_ops.evaluation.targets import Target, guard, open_target
from gemma_ops.evaluation.task import Task, load_all, validate


def evaluate(
    out: Path,
    settings: EvaluateConfig,
    machine: MachineConfig,
    *,
    base: Path | None = None,
    tuned: Path | None = None,
    quantized: Path | None = None,
    data: Path | None = None,
    source: Path | None = None,
    tasks: tuple[Path, ...],
) -> dict[str, float]:
    """Evaluate `settings.targets` on `tasks`. See `gemma_ops.evaluation.evaluate` for inputs, files and errors."""

    def opening(name: str) -> Target:
        return open_target(name, machine, base=base, tuned=tuned, quantized=quantized)

    loaded = load(settings, tasks, source)
    facts = provenance.collect(settings, base=base, tuned=tuned, quantized=quantized, data=data)
    return run(out, settings, loaded, [opening(name) for name in settings.targets], facts, batch=machine.eval_batch)


def regrade(
    out: Path,
    settings: EvaluateConfig,
    machine: MachineConfig,
    *,
    answers: Path,
    source: Path | None = None,
    tasks: tuple[Path, ...],
) -> dict[str, float]:
    """Grade the stored answers of an earlier evaluation again, with the tasks as they are now. No model is loaded.

    Raises DataError when a question has changed or is new, since then there is no answer to grade.
    """
    loaded = load(settings, tasks, source)
    before = json.loads((answers / "verdict.json").read_text(encoding="utf-8"))
    shutil.copyfile(answers / "answers.jsonl", out / "answers.jsonl")
    targets = [_Recorded(name, before["targets"]) for name in settings.targets]
    facts = {key: before[key] for key in ("targets", "data")}
    # One row a batch, so that what is missing is counted row by row.
    return run(out, settings, loaded, targets, facts, batch=1)


def load(settings: EvaluateConfig, folders: tuple[Path, ...], source: Path | None) -> list[Task]:
    """Load and check everything that can be wrong before a model is touched."""
    if not folders:
        raise ConfigError("evaluate.tasks names no task", "add one: --set 'evaluate.tasks=[support_desk]'")
    if not settings.targets:
        raise ConfigError("evaluate.targets is empty", "name at least one: --set 'evaluate.targets=[base]'")
    if len(set(settings.targets)) < len(settings.targets):
        raise ConfigError("evaluate.targets names a target twice", "name each once")
    loaded = [task.first(settings.rows) for task in load_all(folders, source)]
    verdict.check_gates(settings, loaded)
    for task in loaded:
        validate(task)
    return loaded


def run(
    out: Path,
    settings: EvaluateConfig,
    tasks: Sequence[Task],
    targets: Sequence[Target],
    facts: dict[str, Any],
    *,
    batch: int,
) -> dict[str, float]:
    """Answer what isn't answered, grade everything, write the files, return the metrics."""
    stored = AnswerFile(out / answers.FILE)
    for target in targets:
        _answer(target, tasks, stored, batch)
    keys = [_keys(target, task) for target in targets for task in tasks]
    stored.finish(key for part in keys for key in part)
    graded: list[Graded] = []
    places = [(target, task) for target in targets for task in tasks]
    for (target, task), part in zip(places, keys, strict=True):
        graded.append(scoring.grade(task, target.name, [stored.known[key] for key in part]))
    graded.sort(key=lambda item: [task.name for task in tasks].index(item.task.name))
    write_text(out / scoring.FILE, "".join(scoring.lines(graded)))
    body = verdict.build(graded, settings) | facts
    writers: dict[str, Callable[[], str]] = {
        "report.html": lambda: report_html.render(body, graded),
        "summary.md": lambda: summary.render(body),
        "junit.xml": lambda: junit.render(body),
        # Last, since whoever finds a verdict may rely on the rest.
        "verdict.json": lambda: json.dumps(body, ensure_ascii=False, indent=1) + "\n",
    }
    for name, make in writers.items():
        write_text(out / name, make())
    return metrics(body)


def metrics(body: dict[str, Any]) -> dict[str, float]:
    """Flat figures for the run and for MLflow: `task/target/metric`, with `/low` and `/high`; differences; speed."""
    flat: dict[str, float] = {}
    for result in body["results"]:
        prefix = f"{result['task']}/{result['target']}"
        for name, found in result["metrics"].items():
            if found["value"] is None:
                continue
            flat[f"{prefix}/{name}"] = found["value"]
            flat |= {f"{prefix}/{name}/{end}": found[end] for end in ("low", "high")}
        flat |= {f"{prefix}/{name}": value for name, value in result["speed"].items()}
        flat[f"{prefix}/cut"] = float(result["ends"].get("length", 0))
        flat[f"{prefix}/failed"] = float(result["failed"])
    for item in body["differences"]:
        prefix = f"{item['task']}/{item['target']}-{item['versus']}/{item['metric']}"
        flat[prefix] = item["value"]
        flat |= {f"{prefix}/{end}": item[end] for end in ("low", "high")}
    return flat


def _keys(target: Target, task: Task) -> list[str]:
    generation = task.file.generation.model_dump(mode="json")
    return [answers.key(target.name, target.identity, task.name, row, generation) for row in task.rows]


def _answer(target: Target, tasks: Sequence[Task], stored: AnswerFile, batch: int) -> None:
    """Let a target answer what it hasn't. Batches hold rows of like length and are the same in every attempt, so that an
    interrupted run computes what an uninterrupted one would."""
    try:
        for task in tasks:
            guard(target, task.name, task.rows)
            keys = dict(zip((row.id for row in task.rows), _keys(target, task), strict=True))
            rows = sorted(task.rows, key=lambda row: (_length(row), row.id))
            batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
            missing = [part for part in batches if any(keys[row.id] not in stored.known for row in part)]
            if not missing:
                continue
            done = len(rows) - sum(map(len, missing))
            journal.record(event="answering", target=target.name, task=task.name, done=done, total=len(rows))
            conversations = [[row.messages for row in part] for part in missing]
            replies = target.answer(conversations, max_new_tokens=task.file.generation.max_new_tokens)
            for part, found in zip(missing, replies, strict=True):
                stored.append(
                    answers.stored(keys[row.id], target.name, task.name, row.id, reply)
                    for row, reply in zip(part, found, strict=True)
                )
                done += len(part)
                seconds = sum(reply.seconds for reply in found)
                tokens = sum(reply.new_tokens for reply in found)
                journal.record(
                    target=target.name,
                    task=task.name,
                    done=done,
                    total=len(rows),
                    seconds=round(seconds, 4),
                    tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
                )
    finally:
        target.close()


def _length(row: Row) -> int:
    return sum(len(str(message.get("content", ""))) for message in row.messages)


class _Recorded:
    """A target of an earlier evaluation: its answers are there, and it can give no new ones."""

    def __init__(self, name: str, known: dict[str, Any]) -> None:
        if name not in known:
            raise ConfigError(f"target {name} did not answer in that evaluation", f"use some of: {', '.join(known)}")
        self.name = name
        self.identity: str = known[name]["identity"]
        self.sees = frozenset({"local_only", "paid", "any"})

    def answer(self, batches: Sequence[Any], *, max_new_tokens: int) -> Any:
        count = sum(map(len, batches))
        raise DataError(
            f"{count} question{'s have' if count > 1 else ' has'} no stored answer of {self.name}: the task's questions changed",
            "evaluate again instead of grading again",
        )

    def close(self) -> None:
        """Holds nothing."""
