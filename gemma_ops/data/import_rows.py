"""The import of raw rows as examples: layout, one spelling, personal data, id, privacy, group. Used by `prepare` and
`check`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from gemma_ops.config import DataConfig
from gemma_ops.config.methods import Kind
from gemma_ops.data import example, parts, row_formats
from gemma_ops.data.example import SIDES, TURNS, content_id, kind
from gemma_ops.data.marks import marked_turns
from gemma_ops.data.media_files import MediaShelf
from gemma_ops.data.normal import conversation
from gemma_ops.data.preferences import Compared, compared
from gemma_ops.data.row_files import RawRow, read_rows
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError
from gemma_ops.family.media import Senses
from gemma_ops.privacy import personal_data
from gemma_ops.privacy.classes import PRIVACY, stricter

_PEEK = 50  # rows looked at to find the layout


@dataclass(frozen=True)
class Imported:
    """One raw row and what became of it: an example's fields, or None with `code` and `reason`."""

    raw: RawRow
    example: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    pii: Counter[str] = field(default_factory=Counter)
    code: str = ""
    reason: str = ""

    def rejected(self) -> dict[str, Any]:
        """Return the row as it stands in `rejected.jsonl`; the raw text is cut at 500 characters."""
        text = self.raw.excerpt.encode("utf-8", "replace").decode("utf-8")[:500]
        return {"file": self.raw.file, "line": self.raw.line, "code": self.code, "reason": self.reason, "text": text}


@dataclass(frozen=True)
class RowImporter:
    """Imports rows of one layout; `root` is the folder that files of images and sounds are named from, the rest as in
    `Importer`. Other processes make their own."""

    layout: str
    settings: DataConfig
    root: Path | None
    senses: Senses | None = None
    out: Path | None = None

    def row(self, raw: RawRow) -> Imported:
        """Return what becomes of one raw row."""
        if raw.value is None:
            return Imported(raw, None, code=raw.code, reason=raw.reason)
        try:
            made = self._example(raw, raw.value, self._read_row)
        except RowError as error:
            return Imported(raw, None, code=error.code, reason=error.reason)
        return replace(made, notes=(*raw.notes, *made.notes)) if raw.notes else made

    @cached_property
    def _read_row(self) -> Callable[[dict[str, Any]], Any]:
        return row_formats.reader(self.layout, self.settings)

    @cached_property
    def _shelf(self) -> MediaShelf:
        return MediaShelf(self.root, self.senses, out=self.out, most_mb=self.settings.max_media_mb)

    @cached_property
    def _tagged(self) -> bool:
        """True if the templates of `columns` say where an image or a sound goes."""
        return any(tag in (self.settings.prompt or "") for tag in ("<image>", "<audio>"))

    def _example(self, raw: RawRow, row: dict[str, Any], read_row: Callable[[dict[str, Any]], Any]) -> Imported:
        # A template names the columns it wants, an image next to it may be there for another reason.
        beside = parts.media_columns(row) if self.layout != "columns" or self._tagged else []
        given = read_row(row)
        own = None if self.layout in ("text", "gemini") else row_formats.system_column(row)
        if isinstance(given, Compared):
            turns, notes = compared(given, system=self.settings.system, own=own)
            if beside or any(parts.media_of(messages) for messages in example.conversation_rows(turns)):
                raise RowError(
                    "compared_media", "the row compares answers about images or audio, which no method learns from"
                )
        elif isinstance(given, str):
            turns, notes = {"messages": [], "tools": None, "text": given}, []
        else:
            said, declared = given
            said = marked_turns(row, said)
            messages, tools, notes = conversation(said, declared, system=self.settings.system, own=own, media=beside)
            turns = {"messages": messages, "tools": tools}
        for name in TURNS:
            if name in turns:
                turns[name] = self._shelf.store(turns[name])
        found: Counter[str] = Counter()
        if self.settings.pii != "off":
            masking = self.settings.pii == "mask"

            def look(text: str) -> str:
                findings = personal_data.find_personal(text)
                found.update(item.kind for item in findings)
                return personal_data.mask_findings(text, findings) if masking and findings else text

            if "text" in turns:
                turns["text"] = look(turns["text"])
            for name in TURNS:
                if name in turns:
                    turns[name] = [
                        {key: _scan(key, value, look) for key, value in turn.items()} for turn in turns[name]
                    ]
        answers = {side: turns.get(side) for side in (*SIDES, "text")}
        weight = _weight(row.get("weight"))
        prompted = any(answers[side] for side in SIDES)
        if weight is not None and prompted:
            raise RowError("answer_weight", "compared and judged answers can't be weighted: leave `weight` out")
        made = {
            "id": content_id(turns["messages"], turns["tools"], **answers),
            "messages": turns["messages"],
            **answers,
            "tools": turns["tools"],
            "source": raw.source,
            "privacy": self._privacy(row),
            "group": self._group(row),
            "weight": weight,
        }
        if not made["group"]:
            # Answers to one prompt, and rows about one picture, stay on one side of the split: else validation would
            # ask about what was trained on.
            seen = parts.media_of(turns["messages"])
            own = content_id(turns["messages"], turns["tools"]) if prompted else made["id"]
            made["group"] = Path(seen[0]["path"]).stem[:32] if seen else own
        return Imported(raw, {key: value for key, value in made.items() if value is not None}, tuple(notes), found)

    def _privacy(self, row: dict[str, Any]) -> str:
        own = _meta(row, "privacy")
        if own is None:
            return self.settings.privacy
        if own not in PRIVACY:
            raise RowError("bad_privacy", f"the privacy class {own!r} is none of {', '.join(PRIVACY)}")
        return stricter(self.settings.privacy, own)

    def _group(self, row: dict[str, Any]) -> str | None:
        if self.settings.group_by is None:
            # Rows that `synthesize` wrote from one document belong together, whether the configuration says so or not.
            own = row.get("group")
            return own if isinstance(own, str) and own and isinstance(row.get("provenance"), dict) else None
        value = _meta(row, self.settings.group_by)
        if value is None or isinstance(value, dict | list) or value == "":
            raise RowError("no_group", f"the row has no value for data.group_by ({self.settings.group_by})")
        return str(value)


class Importer:
    """Reads a source once. `layout` and `rows` are known after the first row was asked for.

    `senses` is what the model takes besides text, None to take everything; `out` the folder below which images and
    sounds are kept.
    """

    def __init__(
        self, source: Path | None, settings: DataConfig, senses: Senses | None = None, *, out: Path | None = None
    ) -> None:
        self.settings = settings
        self.layout = ""
        root = source.parent if source is not None and source.is_file() else source
        self.rows = RowImporter("none", settings, root, senses, out)
        """What imports the rows."""
        self._rows = read_rows(source, settings)

    def __iter__(self) -> Iterator[Imported]:
        for raw in self.raw():
            yield self.rows.row(raw)

    def raw(self) -> Iterator[RawRow]:
        """Yield the rows as they stand in their files, which `rows` imports. Raises DataError where they have no known
        layout."""
        first = list(itertools.islice(self._rows, _PEEK))
        values = [row.value for row in first if row.value is not None]
        self.layout = _layout(self.settings, values) if first else "none"
        self.rows = replace(self.rows, layout=self.layout)
        if values:
            row_formats.reader(self.layout, self.settings)  # which raises where the settings lack something
        rows: Iterator[RawRow] = itertools.chain(first, self._rows)
        if not values:  # none of the first rows can be read: nothing says how later ones would be
            rows = (replace(row, value=None) for row in rows)
        yield from itertools.islice(rows, self.settings.max_rows)


def _layout(settings: DataConfig, values: list[dict[str, Any]]) -> str:
    if settings.format not in ("auto", "columns") and settings.prompt is not None:
        raise DataError(
            f"data.format is {settings.format}, but data.prompt and data.completion are given",
            "leave data.format out to fill columns into the templates, or leave the templates out",
        )
    if settings.format == "columns" or settings.prompt is not None:
        row_formats.check_columns(settings, values)
        return "columns"
    found = settings.format if settings.format != "auto" else row_formats.detect(values) if values else "none"
    if found == "text" and settings.system is not None:
        raise DataError("data.system has no effect on rows of raw text", "leave data.system out")
    return found


def peek(source: Path, settings: DataConfig, limit: int = _PEEK) -> list[dict[str, Any]]:
    """Return the first rows of a source, without those that can't be used. Raises like `Importer`."""
    items = itertools.islice(Importer(source, settings), limit)
    return [item.example for item in items if item.example is not None]


def kinds(rows: list[dict[str, Any]]) -> Counter[Kind]:
    """Return how many rows there are of each kind."""
    return Counter(map(kind, rows))


class Teacher(NamedTuple):
    """The model that wrote a row: empty where the row doesn't say; `rehearsal` when an emulator stood in for it."""

    name: str
    family: str
    version: str
    terms: str
    """Date of the terms under which it wrote."""
    rehearsal: bool


def teacher_of(row: dict[str, Any]) -> Teacher | None:
    """Return who wrote a row, from its provenance; None for a row that names no model."""
    provenance = row.get("provenance")
    teacher = provenance.get("teacher") if isinstance(provenance, dict) else None
    if not isinstance(teacher, dict):
        return None
    return Teacher(
        str(teacher.get("name") or "unknown"),
        str(teacher.get("family") or "unknown"),
        str(teacher.get("version") or ""),
        str(teacher.get("terms") or ""),
        teacher.get("rehearsal") is True,
    )


def _meta(row: dict[str, Any], key: str) -> Any:
    """Return a value of the row, or of its metadata."""
    metadata = row.get("metadata")
    return row.get(key, metadata.get(key) if isinstance(metadata, dict) else None)


def _weight(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise RowError("bad_weight", f"the weight {value!r} is not a number above 0")
    return float(value)


def _scan(key: str, value: Any, look: Callable[[str], str]) -> Any:
    """Return a message's field with its texts passed through `look`; roles, ids and function names are left as they
    are."""
    if key == "content" and isinstance(value, list):
        return [{**part, "text": look(part["text"])} if part["type"] == "text" else part for part in value]
    if key in ("content", "reasoning"):
        return look(value)
    if key == "tool_calls":
        return [
            {
                **call,
                "function": {
                    **call["function"],
                    "arguments": personal_data.each_text(call["function"]["arguments"], look),
                },
            }
            for call in value
        ]
    if key == "tool_responses":
        return [{**entry, "response": personal_data.each_text(entry["response"], look)} for entry in value]
    return value
