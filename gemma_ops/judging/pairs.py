"""The sources of pairs: the answers of an evaluation, or jsonl files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from gemma_ops.answer import End
from gemma_ops.config import Privacy, ReleaseConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.judging.judge_material import JudgedPair, Side
from gemma_ops.privacy.classes import PRIVACY, class_of, stricter, strictest
from gemma_ops.runs import digest
from gemma_ops.targets import spec
from gemma_ops.tasks import stored_answers
from gemma_ops.tasks import task_rows as rowfiles
from gemma_ops.tasks.grades import Graded
from gemma_ops.tasks.stored_answers import AnswerFile, StoredAnswer
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import VERDICT, TargetFacts, Verdict

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class AnswerPairs:
    """Two sides' answers to one task's questions, ready to be judged; `second` is None for one side alone."""

    task: str
    pairs: list[JudgedPair]
    rubric: str
    first: Side
    second: Side | None
    apart: tuple[str, ...] = ()
    """Remarks on what was left out because only one file holds it."""

    @property
    def folder(self) -> str:
        """Return the name of its folder. Targets' names hold slashes and colons, so those that do are told by
        digest."""
        names = (self.first.name, self.second.name if self.second else "alone")
        plain = [name if _PLAIN.fullmatch(name) else digest.of_json(name)[:10] for name in names]
        return ".".join([*([self.task] if self.task else []), "-vs-".join(plain)])


def of_graded(
    graded: Sequence[Graded], sides: Mapping[str, Side], first: str, versus: Sequence[str | None]
) -> list[AnswerPairs]:
    """Return the pairs of every task of an evaluation, `first` against each of `versus`. Raises ConfigError for a
    target that gave no answers."""
    for name in (first, *versus):
        if name is not None and name not in sides:
            raise ConfigError(f"{name!r} is to be judged and gave no answers", f"use some of: {', '.join(sides)}")
    pages = {(item.task.name, item.target): item for item in graded}
    return [
        AnswerPairs(
            name,
            of_answers(
                pages[name, first].task,
                pages[name, first].answers,
                pages[name, other].answers if other else None,
                strictest(sides[side].answers for side in (first, other) if side),
            ),
            pages[name, first].task.rubric,
            sides[first],
            sides[other] if other else None,
        )
        for name in dict.fromkeys(item.task.name for item in graded)
        for other in versus
    ]


def of_run(
    evaluated: Path, tasks: Sequence[Task], first: str, second: str | None, release: ReleaseConfig
) -> list[AnswerPairs]:
    """Return the pairs of every task from the folder of a finished `evaluate`. Rows that were not answered there are
    left out."""
    if not (evaluated / VERDICT).is_file():
        raise DataError(
            f"{evaluated} holds no finished evaluation", "run `gemma-ops evaluate` with this configuration first"
        )
    known = Verdict.read(evaluated / VERDICT).targets
    stored = AnswerFile(evaluated / stored_answers.FILE).known.values()
    lines = {(item.task, item.target, item.row): item for item in stored}
    sides = {name: _answered(name, facts, release) for name, facts in known.items()}
    found = []
    for task in tasks:
        graded = []
        for name in filter(None, (first, second)):
            missing = [stored_answers.hidden("", name, task.name, row.id) for row in task.rows]
            said = [lines.get((task.name, name, row.id), gap) for row, gap in zip(task.rows, missing, strict=True)]
            graded.append(Graded(name, task, tuple(said), ()))
        found += of_graded(graded, sides, first, (second,))
    return found


def _answered(name: str, facts: TargetFacts, release: ReleaseConfig) -> Side:
    """Return the side of a target of a finished evaluation. One that does not say what it learned from may have learned
    from anything."""
    known = spec.parse_target(name)
    unsaid = "any" if known.kind == "gemini" else "local_only"
    learned = class_of(unsaid if facts.learned is None else facts.learned)
    return Side.of_model(name, facts.identity, facts.family or known.family, learned, release)


def of_answers(
    task: Task, first: Sequence[StoredAnswer], second: Sequence[StoredAnswer] | None, least: Privacy = "any"
) -> list[JudgedPair]:
    """Return the pairs of a task's rows, from both targets' answers in the task's row order, without rows hidden from
    one of them.

    `least` is the class of the answers themselves: a pair is as private as its question and as whoever answered.
    """
    others: Sequence[StoredAnswer | None] = second if second is not None else [None] * len(first)
    return [
        JudgedPair(
            id=row.id,
            messages=row.messages,
            first=mine.text,
            second=None if other is None else other.text,
            first_end=mine.end,
            second_end="stop" if other is None or other.end == "hidden" else other.end,
            reference=row.gold if row.reference is not None else None,
            privacy=stricter(row.privacy, least),
            cluster=row.cluster,
            slices=row.slices,
        )
        for row, mine, other in zip(task.rows, first, others, strict=True)
        if mine.end != "hidden" and (other is None or other.end != "hidden")
    ]


def of_files(first: Path, second: Path | None, rubric: str = "") -> AnswerPairs:
    """Return pairs from one or two jsonl files, matched by `id`: rows of both, in the first file's order.

    A row: `id`, `answer`, and in the first file `prompt` or `messages`; if you like `end`, `reference`, `cluster`,
    `privacy` (local_only unless said; the stricter of both rows holds) and `family`, of whoever wrote the answers.
    """
    mine = _read(first)
    other = _read(second) if second else None
    pairs = []
    for name, row in mine.items():
        rival = None if other is None else other.get(name)
        if other is not None and rival is None:
            continue
        privacy: Privacy = row["privacy"] if rival is None else stricter(row["privacy"], rival["privacy"])
        pairs.append(
            JudgedPair(
                id=name,
                messages=row["messages"],
                first=row["answer"],
                second=None if rival is None else rival["answer"],
                first_end=row["end"],
                second_end="stop" if rival is None else rival["end"],
                reference=row.get("reference"),
                privacy=privacy,
                cluster=row.get("cluster"),
            )
        )
    if not pairs:
        raise DataError(f"{first} and {second} have no row in common", "rows are matched by `id`")
    apart = _apart(first, mine, second, other)
    sides = [
        _side(path, rows) for path, rows in ((first, mine), (second, other)) if path is not None and rows is not None
    ]
    return AnswerPairs("", pairs, rubric, sides[0], sides[1] if len(sides) > 1 else None, apart)


def _apart(
    first: Path, mine: Mapping[str, Any], second: Path | None, other: Mapping[str, Any] | None
) -> tuple[str, ...]:
    if second is None or other is None:
        return ()
    lone = [(first, mine.keys() - other.keys(), second), (second, other.keys() - mine.keys(), first)]
    return tuple(
        f"{len(ids):,} {'row' if len(ids) == 1 else 'rows'} of {path} left out: {rival} has no such id (one: "
        f"{min(ids)})"
        for path, ids, rival in lone
        if ids
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for place, row in rowfiles.read_task_rows(path):
        name, answer = str(row.get("id", "")), row.get("answer")
        if not name or not isinstance(answer, str):
            raise DataError(
                f"{place}: a row needs `id` and `answer`", 'write {"id": "q1", "prompt": "…", "answer": "…"}'
            )
        if name in found:
            raise DataError(f"{place}: the id {name!r} was used before", "give every row its own id")
        messages = row.get("messages") or [{"role": "user", "content": str(row.get("prompt", ""))}]
        reference = row.get("reference")
        if reference is not None and not isinstance(reference, str):
            reference = json.dumps(reference, ensure_ascii=False)
        body = {"privacy": row.get("privacy", "local_only"), "end": row.get("end", "stop")}
        if body["privacy"] not in PRIVACY or body["end"] not in get_args(End):
            raise DataError(f"{place}: privacy is {body['privacy']!r}, end {body['end']!r}", "correct that row")
        cluster = None if row.get("cluster") is None else str(row["cluster"])
        found[name] = row | body | {"messages": messages, "reference": reference, "cluster": cluster}
    if not found:
        raise DataError(f"{path} holds no rows", "write one answer per line")
    return found


def _side(path: Path, rows: Mapping[str, dict[str, Any]]) -> Side:
    """Return who wrote a file's answers: known only where every row says the same family."""
    families = {str(row.get("family", "unknown")) for row in rows.values()}
    return Side(path.stem, digest.of_file(path), families.pop() if len(families) == 1 else "unknown")
