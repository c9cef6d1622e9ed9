"""Questions and answers that hold a stricter text: the strictest class of a text holds wherever it stands in a run.

What may not go everywhere is known from the run's own steps (the rows of `prepare`, the documents and seeds of
`synthesize`, by their digests) and from the tasks themselves: a question of one task may be a private row of another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_ops.data.parts import text_of
from gemma_ops.judging.judge_material import JudgedPair
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.privacy.classes import PRIVACY
from gemma_ops.privacy.text_copies import FILE, PrivateTexts
from gemma_ops.runs import journal
from gemma_ops.tasks.task import Task

_STEPS = ("synthesize", "prepare")


def private_texts(run: Path | None, tasks: Iterable[Task]) -> PrivateTexts:
    """Return every text of a run and of tasks that may not go everywhere; `run` is the run's folder, None where there
    is none.

    Empty where no question could become stricter, so that a large index is not read for nothing.
    """
    found, tasks = PrivateTexts(), list(tasks)
    if tasks and all(row.privacy == PRIVACY[0] for task in tasks for row in task.rows):
        return found
    for step in _STEPS if run else ():
        found.load(Path(run or "") / step / FILE)
    for task in tasks:
        for row in task.rows:
            name = f"task {task.name} ({row.id})"
            found.add_row({"messages": row.messages, "privacy": row.privacy}, name)
            if row.reference is not None:
                found.add(row.gold, row.privacy, name, beside=True)
    return found


def tighten_tasks(tasks: Sequence[Task], private: PrivateTexts) -> list[Task]:
    """Return the tasks, each question with the strictest class of what it holds; changes are logged."""
    return [_tightened(task, private) for task in tasks]


def tighten_pairs(pairs: Sequence[JudgedPair], private: PrivateTexts) -> list[JudgedPair]:
    """Return the pairs, each with the strictest class of what its question and both answers hold."""
    found = []
    for pair in pairs:
        texts = [*_words(pair.messages), pair.first, pair.second or "", pair.reference or ""]
        holds = private.strictest("\n".join(texts), pair.privacy)
        found.append(replace(pair, privacy=holds.privacy) if holds else pair)
    return found


def _tightened(task: Task, private: PrivateTexts) -> Task:
    rows: list[ScoredRow] = []
    held: dict[str, str] = {}
    for row in task.rows:
        holds = private.strictest("\n".join(_words(row.messages)), row.privacy)
        rows.append(replace(row, privacy=holds.privacy) if holds else row)
        if holds:
            held[row.id] = holds.name
    if not held:
        return task
    first = next(iter(held))
    journal.record(event="tightened", task=task.name, rows=len(held), first=first, holds=held[first])
    return replace(task, rows=tuple(rows), held=held)


def _words(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    return [text_of(message.get("content")) for message in messages]
