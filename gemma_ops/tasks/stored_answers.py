"""Stored answers: `answers.jsonl` grows line by line while targets answer, and survives a kill at any moment.

An answer's key covers who answered (target and digest of its model), what was asked (the very messages) and how
(generation settings), and nothing about scoring: when a metric changes, the answers stay valid and grading is free.
At the end the file is rewritten sorted, so that its order doesn't tell how often the run was interrupted.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from gemma_ops.answer import Answer, End
from gemma_ops.errors import DataError
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.runs.durable import write_text
from gemma_ops.targets.asked import AskedFile, AskedRecord, asked_key
from gemma_ops.tasks import conditions

FILE = "answers.jsonl"
JUDGED = "judge"
"""Folder of the judges' verdicts on the answers."""
KEPT, KEPT_CONDITIONS, KEPT_JUDGED = "evaluate.answers.jsonl", "evaluate.conditions.jsonl", "evaluate.judge"
"""Files and folder in the run's folder that keep answers, their conditions and judgements of an evaluation that is made
again, for it to start with."""


@dataclass(frozen=True, kw_only=True)
class StoredAnswer(AskedRecord):
    """One line of `answers.jsonl`: an answer with its place. What is not described here is described in `Answer`.

    On this machine `seconds` is the machine's time, a batch's wall time over its rows; elsewhere that of the request.
    A row that its target may not see is `hidden`: that stands in no file, and is neither wrong nor failed.
    """

    LINE: ClassVar[tuple[str, ...]] = (
        "key", "target", "task", "row", "text", "end", "prompt_tokens", "new_tokens", "seconds", "reason",
        "first_seconds", "thought_tokens", "cached_tokens", "dollars", "model", "response_id", "tier", "thought",
        "waited",
    )  # fmt: skip

    target: str
    task: str
    row: str
    text: str
    end: End | Literal["hidden"]
    reason: str = ""
    first_seconds: float | None = None
    thought: str = ""
    waited: float | None = None
    """Seconds that whoever asked waited for the whole answer; None where it was not measured apart from `seconds`."""


def answer_key(target: str, identity: str, task: str, row: ScoredRow, generation: dict[str, Any]) -> str:
    """Return the key of the answer of one target to one row: 32 hex digits."""
    tools = [list(row.tools)] if row.tools else []
    return asked_key(target, identity, task, row.id, list(row.messages), generation, *tools)


def stored(
    key: str, target: str, task: str, row: str, answer: Answer, *, seconds: float, waited: float
) -> StoredAnswer:
    """Return an answer as it is filed, with the machine's time and the asker's."""
    times = {"seconds": round(seconds, 4), "waited": round(waited, 4)}
    return StoredAnswer.of_answer(answer, key=key, target=target, task=task, row=row, **times)


def hidden(key: str, target: str, task: str, row: str) -> StoredAnswer:
    """Return the placeholder for a target's answer to a row that it may not see."""
    return StoredAnswer(
        key=key, target=target, task=task, row=row, text="", end="hidden", prompt_tokens=0, new_tokens=0
    )


def keep_answers(run: Path) -> None:
    """Keep the answers of a run's evaluation, and what judges said of them, for the next one. Raises DataError when
    there are none."""
    for folder in ("evaluate", "evaluate.partial"):
        if (run / folder / FILE).is_file():
            write_text(run / KEPT, (run / folder / FILE).read_text(encoding="utf-8"))
            (run / KEPT_CONDITIONS).unlink(missing_ok=True)
            if (run / folder / conditions.FILE).is_file():
                write_text(run / KEPT_CONDITIONS, (run / folder / conditions.FILE).read_text(encoding="utf-8"))
            if (run / folder / JUDGED).is_dir():
                shutil.rmtree(run / KEPT_JUDGED, ignore_errors=True)
                shutil.copytree(run / folder / JUDGED, run / KEPT_JUDGED)
            return
    raise DataError(f"{run} holds no answers to grade again", "evaluate first: gemma-ops evaluate CONFIG")


def take_kept_answers(out: Path) -> None:
    """Start with the answers and judgements that were kept, if there are any. Answers nobody asks for are dropped at
    the end."""
    kept, judged = out.parent / KEPT, out.parent / KEPT_JUDGED
    if kept.is_file():
        kept.replace(out / FILE)
        if (timed := out.parent / KEPT_CONDITIONS).is_file():
            timed.replace(out / conditions.FILE)
    if judged.is_dir() and not (out / JUDGED).exists():
        judged.rename(out / JUDGED)


class AnswerFile(AskedFile[StoredAnswer]):
    """File of the answers of an evaluation, which grows as they come. One that failed counts as what it is."""

    repeats_failures = False
    kind, noun, again = StoredAnswer, "an answer", "evaluate again"
