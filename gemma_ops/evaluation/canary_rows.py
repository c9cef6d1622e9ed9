"""The record that an evaluation leaves for a server: some questions as token ids, and what each model that may be
served and its base said.

A server asks them before it takes traffic, and takes none unless it says the same. Questions come first where the model
says something else than its base, since those tell the two apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeGuard

from gemma_ops.evaluation.ask_targets import prompt_of
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.targets.checkpoint_target import CheckpointTarget
from gemma_ops.targets.made_target import LocalTarget
from gemma_ops.targets.quantized_target import Quantized
from gemma_ops.targets.spec import QUANTIZED
from gemma_ops.targets.target import Target
from gemma_ops.targets.tool_target import ToolTarget
from gemma_ops.tasks.stored_answers import StoredAnswer
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import CANARY_SCHEMA

_TUNED = "tuned"
"""Target name of a merged checkpoint."""
_ROWS = 16
"""Questions of a task that are recorded; a wrong model is found by one, and sixteen take a second."""


def canary_record(found: Sequence[tuple[Target, Task, Sequence[StoredAnswer]]]) -> dict[str, Any] | None:
    """Return the record as JSON; None where neither a quantized nor the tuned model answered.

    A row holds `task`, `row`, `messages`, `tools`, `ids` (the prompt's tokens), `max_new_tokens` (thoughts included)
    and `answers`, {target: text} of the targets among those that stopped by themselves, and of `base`. `repeats` holds
    {target: {"asked": …, "same": …}}: of the rows' questions put to it once more, alone, how many it answered so again.
    A batch of another shape rounds otherwise, and a server's batches have every shape.
    """
    own = [target for target, _, _ in found if _is_own(target)]
    if not own:
        return None
    said = {
        (target.name, task.name, answer.row): answer.text
        for target, task, part in found
        for answer in part
        if answer.end == "stop"
    }
    rows: list[dict[str, Any]] = []
    for task in {task.name: task for _, task, _ in found}.values():
        names = [target.name for target in own]
        answered = [
            row for row in task.rows if not row.media and any((name, task.name, row.id) in said for name in names)
        ]
        for row in sorted(answered, key=lambda row: _as_base(row, task, names, said))[:_ROWS]:
            prompt, limit = own[0].asks(prompt_of(row), task.file.generation.max_new_tokens)
            texts = {
                name: said[name, task.name, row.id] for name in [*names, "base"] if (name, task.name, row.id) in said
            }
            rows.append(
                {
                    "task": task.name, "row": row.id, "messages": list(row.messages), "tools": list(row.tools),
                    "ids": prompt, "max_new_tokens": limit, "answers": texts,
                }
            )  # fmt: skip
    if not rows:
        return None
    tasks = {task.name: task for _, task, _ in found}
    repeats = {target.name: _repeated(target, rows, tasks) for target in {one.name: one for one in own}.values()}
    return {"schema": CANARY_SCHEMA, "rows": rows, "repeats": repeats}


def _repeated(target: LocalTarget, rows: Sequence[dict[str, Any]], tasks: dict[str, Task]) -> dict[str, int]:
    """Return how many of its recorded answers a target gives again."""
    asked = same = 0
    for name, task in tasks.items():
        mine = [row for row in rows if row["task"] == name and target.name in row["answers"]]
        known = {row.id: row for row in task.rows}
        prompts = [[prompt_of(known[row["row"]])] for row in mine]
        replies = target.answer(prompts, max_new_tokens=task.file.generation.max_new_tokens) if prompts else ()
        for row, (reply,) in zip(mine, replies, strict=True):
            asked += 1
            same += reply.text == row["answers"][target.name]
    return {"asked": asked, "same": same}


def recorded_answers(record: dict[str, Any]) -> dict[str, int]:
    """Return how many answers of each target a record holds."""
    return dict(Counter(name for row in record["rows"] for name in row["answers"]))


def _is_own(target: Target) -> TypeGuard[LocalTarget]:
    """True if it is a model of this run that may be served."""
    own = isinstance(target, (CheckpointTarget, ToolTarget)) and target.name in (_TUNED, *QUANTIZED)
    return own or isinstance(target, Quantized)


def _as_base(row: ScoredRow, task: Task, names: list[str], said: dict[tuple[str, str, str], str]) -> bool:
    base = said.get(("base", task.name, row.id))
    return all(said.get((name, task.name, row.id)) in (None, base) for name in names)
