"""The questions of evaluation tasks, as far as training rows are compared with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import Privacy
from gemma_ops.data import media_files, parts, row_files, row_formats
from gemma_ops.data.media_files import MediaShelf
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError, MachineError
from gemma_ops.privacy.classes import class_of, stricter
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.tasks.task_file import read_task_file

UNOPENED = "unopened"
"""Name of an image or a sound that nothing here can open; no row shows it."""


@dataclass(frozen=True)
class ComparedQuestion:
    """The user side of one task row."""

    place: str
    texts: tuple[str, ...]
    media: tuple[str, ...] = ()
    """Names of the images and sounds it shows: digests of their bytes."""
    privacy: Privacy = "local_only"


@dataclass(frozen=True)
class TaskQuestions:
    """A task's questions; `missing` says why there are none to compare with (rows that aren't on this machine)."""

    name: str
    questions: tuple[ComparedQuestion, ...]
    missing: str = ""


def read_task(folder: Path, source: Path | None) -> TaskQuestions:
    """Read the questions of a task folder; `source` is the run's data folder (or a file in it), where unshipped rows
    lie.

    Raises ConfigError for a `task.yaml` that is wrong and DataError when its rows can't be read, so that an unreadable
    task never counts as free of overlap.
    """
    file = read_task_file(folder / "task.yaml")
    if file.data.from_source:
        if source is None:
            return TaskQuestions(file.name, (), f"its rows ({file.data.from_source}) lie in a local data folder")
        rows = (source if source.is_dir() else source.parent) / file.data.from_source
        if not rows.is_file():
            return TaskQuestions(file.name, (), f"its rows ({file.data.from_source}) are not in the data folder")
    else:
        rows = folder / str(file.data.path)
        if not rows.is_file():
            raise DataError(
                f"{rows} is named in {folder / 'task.yaml'} but does not exist", "put the task's rows there"
            )
    template, shelf = file.data.prompt or file.prompt, MediaShelf(rows.parent, None, whole=False)
    questions = tuple(_question(row, template, shelf, file.privacy) for row in row_files.read_file(rows))
    closed = any(UNOPENED in question.media for question in questions)
    return TaskQuestions(
        file.name, questions, "a package that opens what its questions show is not installed" if closed else ""
    )


def add_task(private: PrivateTexts, folder: Path, source: Path | None) -> None:
    """Index the questions of a task folder that may not go everywhere. Raises DataError as `read_task` does."""
    task = read_task(folder, source)
    for question in task.questions:
        for text in question.texts:
            private.add(text, question.privacy, f"task {task.name} ({question.place})")


def _question(row: row_files.RawRow, template: str | None, shelf: MediaShelf, least: Privacy) -> ComparedQuestion:
    if row.value is None:
        raise DataError(f"{row.source} of an evaluation task can't be read: {row.reason}", "correct the task's rows")
    try:
        messages = (
            [{"role": "user", "content": row_formats.fill_template(template, row.value)}]
            if template
            else _messages(row.value)
        )
        shown = _opened(messages, row.value, shelf)
        media = names(shown) if shown is not None else (UNOPENED,)
    except RowError as error:
        raise DataError(
            f"{row.source} of an evaluation task can't be read: {error.reason}", "correct the task's rows"
        ) from None
    own = row.value.get("privacy")
    privacy = least if own is None else stricter(least, class_of(own))
    return ComparedQuestion(row.source, tuple(user_texts(shown or messages)), media, privacy)


def _opened(messages: list[dict[str, Any]], row: dict[str, Any], shelf: MediaShelf) -> list[dict[str, Any]] | None:
    """Return the turns with what they show stored; None where the package that opens it is not installed: then no row
    of a run shows it either, and tasks about words can still be compared with."""
    try:
        return media_files.of_question(messages, row, shelf)
    except MachineError:
        return None


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    if isinstance(row.get("prompt"), str):
        return [{"role": "user", "content": row["prompt"]}]
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise RowError("no_messages", "the row has neither prompt nor messages")
    return [message for message in messages if isinstance(message, dict)]


def names(messages: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the stored names of a conversation's images and sounds, in order."""
    return tuple(part["path"] for part in parts.media_of(messages))


def asked_texts(row: dict[str, Any]) -> list[str]:
    """Return what a row is compared by: what its user says, or the whole of a text."""
    return [row["text"]] if row.get("text") is not None else user_texts(row["messages"])


def user_texts(messages: list[dict[str, Any]]) -> list[str]:
    """Return what the user says in a conversation, message by message."""
    return [parts.text_of(message.get("content")) for message in messages if message.get("role") == "user"]
