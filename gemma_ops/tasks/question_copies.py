"""Questions that stand in a task twice count once: equal and nearly equal ones become one cluster.

A question copied under a new id brings no new evidence, and intervals that take it for another question are too narrow.
Compared is what the user says and shows, without what most questions share (a fixed instruction); nearly equal means
that four in five of the runs of five words agree.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from gemma_ops.data.boilerplate import Boilerplate
from gemma_ops.data.hashed_words import Hashes, hashes, shingles
from gemma_ops.data.near_duplicates import Near
from gemma_ops.data.parts import text_of
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.tasks.compared_questions import asked_texts, names
from gemma_ops.tasks.task import Task

NEAR = 0.8
"""Share of common 5-word runs (Jaccard) from which two questions are one."""
COMMON = 0.25
_SIGNS = re.compile(r"\d+|[²³¹⁰-₉+*/=<>^%−-]")


def join_copies(task: Task) -> Task:
    """Return the task with copies in one cluster, and their number. Clusters that share a question become one."""
    groups = copied(task.rows)
    extra = len(groups) - len(set(groups))
    if not extra:
        return task
    labels: dict[str, int] = {}
    parent = list(range(len(task.rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for index, (row, group) in enumerate(zip(task.rows, groups, strict=True)):
        for label in (f"question {group}", *([f"cluster {row.cluster}"] if row.cluster is not None else [])):
            parent[root(index)] = root(labels.setdefault(label, index))
    joined = [replace(row, cluster=_name(task.rows[root(index)])) for index, row in enumerate(task.rows)]
    return replace(task, rows=tuple(joined), copies=extra)


def copied(rows: Sequence[ScoredRow]) -> list[int]:
    """Return for each row the index of the first one that asks the same."""
    asked = [asked_texts({"messages": list(row.messages)}) for row in rows]
    beside = [_beside(row, texts) for row, texts in zip(rows, asked, strict=True)]
    boilerplate = _instruction([hashes(text) for texts in asked for text in texts])
    near, exact, found = Near(NEAR), dict[object, int](), list[int]()
    for index, texts in enumerate(asked):
        key = (*(_plain(text) for text in texts), beside[index])
        first = exact.setdefault(key, index)
        if first == index and len(texts) == 1:
            items = shingles(boilerplate.residue(hashes(texts[0])))
            close = [number for _, number in near.find(items) if beside[number] == beside[index]]
            near.add(index, items)
            first = close[0] if close else index
        found.append(found[first] if first < index else index)
    return found


def _instruction(texts: Sequence[Hashes]) -> Boilerplate:
    """Return what a fixed instruction says. A question copied again and again is common too, so only what a quarter of
    all texts share counts."""
    found = Boilerplate(texts)
    found.runs = {run: share for run, share in found.runs.items() if share > COMMON}
    found.edges = {edge: share for edge, share in found.edges.items() if share > COMMON}
    return found


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _beside(row: ScoredRow, asked: Sequence[str]) -> tuple[str, ...]:
    """Return what must be the very same in nearly equal questions: images and sounds, what others say, numbers and
    operators."""
    others = [text_of(turn.get("content")) for turn in row.messages if turn.get("role") != "user"]
    return (*names(list(row.messages)), *others, *(sign for text in asked for sign in _SIGNS.findall(text)))


def _name(row: ScoredRow) -> str:
    return row.cluster if row.cluster is not None else row.id
