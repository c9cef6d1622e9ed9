"""Conversion of a line of a task's data file to a question: the turns, the reference, the privacy class, cluster and
slices."""

from __future__ import annotations

import bisect
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from gemma_ops.config import Privacy
from gemma_ops.data.media_files import MediaShelf, of_question
from gemma_ops.data.normal import declared_tools
from gemma_ops.data.parts import media_of, text_of
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.metrics.parse import Unreadable, parse_json
from gemma_ops.privacy.classes import PRIVACY, stricter
from gemma_ops.runs import digest
from gemma_ops.tasks.task_file import SliceSpec, TaskFile

_HOLE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_SHOWN = frozenset({"image", "images", "audio", "audios"})
_OWN = frozenset({"id", "messages", "prompt", "reference", "choices", "metadata", "privacy", "tools"}) | _SHOWN


def make_question(file: TaskFile, body: Mapping[str, Any], place: str, system: str, shelf: MediaShelf) -> ScoredRow:
    """Return the row of a line that stands at `place` (`file:line`); `shelf` opens its images and sounds. Raises
    DataError naming that place."""
    if file.data.from_source:
        assert file.data.prompt
        assert file.data.reference
        messages: Any = [{"role": "user", "content": fill_question(file.data.prompt, body, place)}]
        reference: Any = fill_question(file.data.reference, body, place)
        known: Any = {}
        metadata = {key: value for key, value in body.items() if key not in _SHOWN}
        name = fill_question(file.data.id, body, place) if file.data.id else None
    else:
        known = body
        prompt = fill_question(file.prompt, body, place) if file.prompt else body.get("prompt")
        messages = [{"role": "user", "content": prompt}] if prompt is not None else body.get("messages")
        reference = body.get("reference")
        extra = body.get("metadata") or {}
        if not isinstance(extra, Mapping):
            raise DataError(f"{place}: metadata is not an object", "write it as {…}")
        metadata = dict(extra) | {key: value for key, value in body.items() if key not in _OWN}
        name = str(body["id"]) if body.get("id") is not None else None
    _check_messages(messages, place)
    try:
        tools = declared_tools(known.get("tools"), [])
        messages = of_question(messages, body, shelf)
    except RowError as error:
        raise DataError(f"{place}: {error.reason}", "correct the row or its file") from None
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": system}, *messages]
    row = ScoredRow(
        id=name or digest.of_json(messages)[:16],
        messages=tuple(messages),
        reference=reference,
        choices=_choices(known.get("choices"), place),
        metadata=metadata,
        privacy=_privacy(file.privacy, known.get("privacy"), place),
        tools=tuple(tools or ()),
        media={part["path"]: shelf.found[part["path"]] for part in media_of(messages)},
    )
    cluster = str(_field(row, file.cluster_by, place)) if file.cluster_by else None
    slices = {item.name: _bucket(_field(row, item.field, place), item, place) for item in file.slices}
    return replace(row, cluster=cluster, slices=slices)


def fill_question(template: str, columns: Mapping[str, Any], place: str) -> str:
    """Put columns into a template's `{holes}`. Values are taken as they are; `{{` and `}}` are braces.

    Raises DataError naming the column that is not there.
    """

    def put(match: re.Match[str]) -> str:
        if match.group() in ("{{", "}}"):
            return match.group()[0]
        name = match.group(1)
        if name not in columns or columns[name] is None:
            close = difflib.get_close_matches(name, list(columns), n=1)
            raise DataError(
                f"{place}: there is no column {name!r} for the template"
                + (f", did you mean {close[0]}?" if close else ""),
                f"the row has {', '.join(map(str, columns))}; write {{{{ and }}}} for literal braces",
            )
        value = columns[name]
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _HOLE.sub(put, template)


def _check_messages(messages: Any, place: str) -> None:
    if (
        not isinstance(messages, list)
        or not messages
        or not all(isinstance(item, dict) and "role" in item for item in messages)
    ):
        raise DataError(
            f"{place}: the row has no question",
            'give it "prompt": "…" or "messages": [{"role": "user", "content": "…"}]',
        )
    if messages[-1]["role"] not in ("user", "tool"):
        raise DataError(
            f"{place}: the last message is from {messages[-1]['role']}",
            "a question ends with a user (or tool) message; the expected answer goes into `reference`",
        )


def _choices(value: Any, place: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"{place}: choices is not a list of texts", 'write it as ["yes", "no"]')
    return tuple(value)


def _privacy(task: Privacy, row: Any, place: str) -> Privacy:
    """Return the stricter of the task's and the row's class."""
    if row is None:
        return task
    if row not in PRIVACY:
        raise DataError(f"{place}: privacy is {row!r}", f"use one of {', '.join(reversed(PRIVACY))}")
    return stricter(task, cast(Privacy, row))


def _field(row: ScoredRow, name: str, place: str) -> Any:
    """Return a value to slice or cluster by. Raises DataError when the row has none."""
    if name == "prompt_words":
        return len(text_of(row.messages[-1].get("content", "")).split())
    head, _, key = name.partition(".")
    if head == "reference" and key:
        value = parse_json(row.reference) if isinstance(row.reference, str) else row.reference
        found = None if isinstance(value, Unreadable) or not isinstance(value, dict) else value
    else:
        found, key = dict(row.metadata), name
    if found is None or key not in found:
        raise DataError(
            f"{place}: there is no {name} to slice or cluster by",
            f"the row has {', '.join(row.metadata) or 'no further fields'}, and prompt_words",
        )
    return found[key]


def _bucket(value: Any, spec: SliceSpec, place: str) -> str:
    if not spec.buckets:
        return str(value) if not isinstance(value, bool) else ("yes" if value else "no")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(
            f"{place}: {spec.field} is {value!r}, and slice {spec.name} has buckets for numbers",
            "leave buckets out, or correct the row",
        ) from None
    limits = [f"{limit:g}" for limit in spec.buckets]
    index = bisect.bisect_right(spec.buckets, number)
    if index == 0:
        return f"<{limits[0]}"
    return f"≥{limits[-1]}" if index == len(limits) else f"{limits[index - 1]} to <{limits[index]}"


def renamed(row: ScoredRow, seen: Mapping[str, str]) -> ScoredRow:
    """Return a row whose hash differs from that of an earlier row that asks the same: the later one is numbered."""
    name = next(name for number in range(2, len(seen) + 3) if (name := f"{row.id}-{number}") not in seen)
    return replace(row, id=name)
