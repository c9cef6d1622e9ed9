"""Import of another program's log: checked against the task and filed as stored answers.

Answers are only worth comparing when all were asked the same. So a log is refused when it is of another task or
version, when a question is not the task's question word for word, when the model read another prompt than our targets
read, or when answers were allowed another length. Scores in a log don't count: answers are graded by the task as it is
now.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gemma_ops.answer import Answer
from gemma_ops.data import chat
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation.interop import logs
from gemma_ops.evaluation.interop.logs import LoggedReply
from gemma_ops.evaluation.interop.to_lm_eval import TURN_END
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.tasks import stored_answers
from gemma_ops.tasks.stored_answers import AnswerFile, StoredAnswer
from gemma_ops.tasks.task import Task

_AGAIN = "export the task again with `gemma-ops task export`, and run that"


def take_answers(log: Path, task: Task, target: str, out: Path) -> list[StoredAnswer]:
    """Append the answers of a log to the answer file `out`, as those of `target`, and return them in the task's row
    order.

    Taking the same log in twice changes nothing. Raises DataError where the log doesn't fit the task, ConfigError where
    `out` belongs to a run, or holds other answers of that target.
    """
    if (out.parent / "artifact.json").exists():
        raise ConfigError(f"{out} belongs to a finished step, which must not change", "give --out another file")
    fresh = check_log(logs.read_log(log), task, target)
    out.parent.mkdir(parents=True, exist_ok=True)
    file = AnswerFile(out)
    known = {(item.target, item.task, item.row): item for item in file.known.values()}
    for item in fresh:
        before = known.get((target, task.name, item.row))
        if before is not None and before != item:
            raise ConfigError(
                f"{out} holds another answer of {target} to {task.name}, row {item.row}",
                "give --target another name, or --out another file",
            )
    file.append(item for item in fresh if item.key not in file.known)
    return fresh


def check_log(replies: Sequence[LoggedReply], task: Task, target: str) -> list[StoredAnswer]:
    """Return the answers of a log, each to a row of the task, asked as the task asks it. Raises DataError."""
    rows = {row.id: row for row in task.rows}
    found: dict[str, StoredAnswer] = {}
    for reply in replies:
        if (reply.task, reply.version) != (task.name, task.file.version):
            raise DataError(
                f"the log is of {reply.task} version {reply.version}, and this task is {task.name} version "
                f"{task.file.version}",
                _AGAIN,
            )
        row = rows.get(reply.row)
        if row is None:
            raise DataError(f"the log answers a row {reply.row!r} that task {task.name} doesn't have", _AGAIN)
        if row.id in found:
            raise DataError(f"the log answers row {row.id} twice", "give a log of one run that asks each question once")
        _same_question(reply, row, task)
        found[row.id] = file_as(target, task, row, _spelled(reply, row))
    if not found:
        raise DataError("the log holds no answers", "give the log of a run that ended")
    return [found[row.id] for row in task.rows if row.id in found]


def file_as(target: str, task: Task, row: ScoredRow, answer: Answer) -> StoredAnswer:
    """Return an imported answer as it is filed: who answered is known by the name the log gives the model."""
    key = key_of(target, f"import:{answer.model}", task, row)
    return stored_answers.stored(key, target, task.name, row.id, answer, seconds=answer.seconds, waited=answer.seconds)


def key_of(target: str, identity: str, task: Task, row: ScoredRow) -> str:
    """Return the key of the answer that this model gives to this row, asked as the task says."""
    return stored_answers.answer_key(target, identity, task.name, row, task.file.generation.model_dump(mode="json"))


def _same_question(reply: LoggedReply, row: ScoredRow, task: Task) -> None:
    if reply.asked != [{"role": item["role"], "content": item.get("content")} for item in row.messages]:
        raise DataError(f"row {row.id} of the log asks something else than the task does now", _AGAIN)
    if reply.prompt is not None and not _our_prompt(reply.prompt, row):
        raise DataError(
            f"row {row.id}: the model read {reply.prompt[:60]!r}…, not Gemma 4's chat format",
            "run lm_eval with --apply_chat_template, on a checkpoint with the published chat template",
        )
    limit = task.file.generation.max_new_tokens
    if reply.limit is not None and reply.limit != limit:
        raise DataError(f"the log's answers end after {reply.limit} tokens, the task's after {limit}", _AGAIN)


def _our_prompt(prompt: str, row: ScoredRow) -> bool:
    """True if a prompt is what our targets read, for either kind of size; chat services are handed the turns
    themselves."""
    messages = list(row.messages)
    if prompt.startswith("["):
        try:
            return bool(json.loads(prompt) == messages)
        except ValueError:
            return False
    renderings = (
        chat.render_chat(messages, add_generation_prompt=True, empty_thought=flag).text for flag in (False, True)
    )
    # A program may add <bos> itself when it turns the text into tokens.
    return any(prompt in (text, text.removeprefix(chat.BOS)) for text in renderings)


def _spelled(reply: LoggedReply, row: ScoredRow) -> Answer:
    """Return the answer; where replies were ranked, the most likely choice."""
    if reply.choices is None:
        return reply.answer
    ours = {f"{choice}{TURN_END}": choice for choice in row.choices or ()}
    # The harness moves white space at the end of the prompt to the front of what it ranks.
    if {choice.lstrip() for choice in reply.choices} != set(ours):
        raise DataError(f"row {row.id} of the log ranks other choices than the task has now", _AGAIN)
    text = ours[next(choice for choice in ours if reply.answer.text == choice)]
    return Answer(text, "stop", 0, 0, 0.0, model=reply.answer.model)
