"""A task's rows as plain documents for another program, and the copy of the task that its scoring needs.

A document says which task and version it belongs to and holds the whole question, so that a log, which repeats its
documents, can be checked against the task later. Only text conversations go out: tools and images have another form in
every program, and a question that is not the same question is worse than none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_ops.errors import ConfigError, DataError
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.runs.durable import write_text
from gemma_ops.tasks.task import Task, load_task, validate_tasks

COPY = "task"
"""Folder inside an export that holds the task itself."""


def prepare_copy(folder: Path, out: Path, *, source: Path | None, rows: int | None) -> Task:
    """Load and check the task, make `out`, and put a copy of the task into it. Raises ConfigError, DataError."""
    task = load_copy(folder, source).first(rows)
    validate_tasks(task)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not an empty folder", "give --out a folder that is empty or doesn't exist yet")
    copy = out / COPY
    try:
        copy.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{copy} can't be made: {error.strerror or error}", "give --out another folder") from error
    data = task.file.data
    names = {"task.yaml", data.path, task.file.system, task.file.rubric}
    names |= {getattr(metric, "file", None) for metric in task.file.metrics}
    for name in sorted(name for name in names if name and (folder / name).is_file()):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, copy / name)
    if data.from_source and source:
        (copy / data.from_source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile((source if source.is_dir() else source.parent) / data.from_source, copy / data.from_source)
    return task


def load_copy(folder: Path, source: Path | None) -> Task:
    """Load the task, and report an absent data folder in the words of these verbs."""
    try:
        return load_task(folder, source)
    except DataError as error:
        fix = error.fix.replace("--set data.path=FOLDER", "--source FOLDER").replace("point data.path at", "give")
        raise DataError(error.what, fix) from error


def origin(task: Task) -> dict[str, Any]:
    """Return what a document says about where it comes from."""
    return {"task": task.name, "version": task.file.version}


def document_turns(row: ScoredRow) -> list[dict[str, str]]:
    """Return the conversation of a row. Raises DataError where it is more than text of system, user and assistant."""
    found = []
    for message in row.messages:
        content = message.get("content")
        plain = set(message) <= {"role", "content"} and message["role"] in ("system", "user", "assistant")
        if not plain or not isinstance(content, str):
            raise DataError(
                f"row {row.id} holds more than text from system, user and assistant",
                "evaluate this task here: tools and images have another form in every program",
            )
        found.append({"role": str(message["role"]), "content": content})
    return found


def harness(task: Task, row: ScoredRow) -> dict[str, Any]:
    """Return a row for lm-evaluation-harness, which knows one system turn and one user turn."""
    said = document_turns(row)
    system = said.pop(0)["content"] if said[0]["role"] == "system" else ""
    if len(said) != 1:
        raise DataError(
            f"row {row.id} has {len(said)} turns, and lm-evaluation-harness asks one question at a time",
            "export the task to Inspect, which takes whole conversations: --to inspect",
        )
    body = {"id": row.id, **origin(task), "privacy": row.privacy, "system": system, "question": said[0]["content"]}
    return body | {"target": row.gold if row.reference is not None else ""}


def inspect(task: Task, row: ScoredRow) -> dict[str, Any]:
    """Return a row as an Inspect sample."""
    target = row.gold if row.reference is not None else ""
    about = {**origin(task), "privacy": row.privacy, "cluster": row.cluster or row.id}
    return {"id": row.id, "input": document_turns(row), "target": target, "metadata": about}


def write_lines(path: Path, documents: Iterable[dict[str, Any]]) -> None:
    """Write a jsonl file, whole or not at all."""
    write_text(path, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in documents))


def export_warnings(task: Task) -> list[str]:
    """Return what somebody who runs the export must know about its rows."""
    hidden = sum(row.privacy != "any" for row in task.rows)
    if not hidden:
        return []
    return [
        f"{hidden} of {len(task.rows)} rows are not free to leave this machine, and other programs don't enforce that:",
        "run them only on models that stand here",
    ]
