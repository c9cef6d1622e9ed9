"""Raw rows from files: JSON Lines, JSON, CSV, TSV, Parquet, `datasets` folders and the Hub, one at a time.

Every row says where it stands (`file`, `line`); one that can't be read is yielded too, with the reason. Nothing here
holds more than a batch of rows, so a file larger than memory is fine.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from gemma_ops.config import DataConfig
from gemma_ops.data.arrow_rows import Numbered, folder_rows, hub_rows, parquet_rows
from gemma_ops.data.encodings import open_as_utf8
from gemma_ops.data.example import parse_example
from gemma_ops.data.line_reader import TextLine, read_lines
from gemma_ops.data.tables import read_csv
from gemma_ops.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_HELD_OUT = frozenset(
    {
        "test", "tests", "testing", "testset", "eval", "evals", "evaluation", "evaluate", "evalset", "valid",
        "validation",
        "validate", "val", "vals", "dev", "devel", "devset", "holdout", "heldout", "unseen", "benchmark", "gold",
    }
)  # fmt: skip
"""Words in a file's name that say it is not for training."""
_TRAINED = frozenset({"train", "training", "trainset", "trains"})
_READ = 1 << 16  # characters of a JSON array read at a time


@dataclass(frozen=True)
class RawRow:
    """A row as it stands in its file: a mapping, or None with the `code` and `reason` why it can't be read."""

    file: str
    line: int
    value: dict[str, Any] | None
    excerpt: str = ""
    code: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    """Codes of repairs made while it was read."""

    @property
    def source(self) -> str:
        return f"{self.file}:{self.line}"


def source_files(source: Path) -> list[Path]:
    """Return the files that a source stands for: itself, or a folder's supported files by name, except those
    `left_out`.

    Raises DataError when nothing readable is there.
    """
    if source.is_file():
        if source.suffix.lower() not in SUFFIXES:
            raise DataError(f"{source} has no known file type", f"give one of {', '.join(SUFFIXES)}")
        return [source]
    if not source.is_dir():
        raise DataError(f"{source} does not exist", "correct data.path")
    found, _ = _sorted_out(source)
    if not found:
        raise DataError(f"no data files in {source}", f"give a file or a folder of {', '.join(SUFFIXES)}")
    return found


def left_out(source: Path) -> list[Path]:
    """Return the files of a folder that are not read: those whose names say that they are for testing or validation,
    and next to files that are named for training all others."""
    return _sorted_out(source)[1] if source.is_dir() and not is_datasets_folder(source) else []


def _sorted_out(folder: Path) -> tuple[list[Path], list[Path]]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    found = [path for path in found if not path.name.startswith(".")]
    # Beside files of rows a text file is a note; where there are no others, each is a document.
    found = [path for path in found if path.suffix.lower() != ".txt"] or found
    kept = [path for path in found if not _words_of(path) & _HELD_OUT]
    train = [path for path in kept if _words_of(path) & _TRAINED]
    chosen = train or kept
    return chosen, [path for path in found if path not in chosen]


def _words_of(path: Path) -> set[str]:
    """Return the words of a file's name, in small letters: `Tickets_testSet2` has `tickets`, `test` and `set`."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", path.stem)}


def is_datasets_folder(source: Path) -> bool:
    """True if `datasets.save_to_disk` wrote this folder."""
    return any((source / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def read_rows(source: Path | None, settings: DataConfig) -> Iterator[RawRow]:
    """Yield every row of the source: `source`, else the Hub set `settings.hub`. Raises DataError or ServiceError."""
    if source is not None and is_datasets_folder(source):
        yield from _arrow(source.name, folder_rows(source, settings.split))
    elif source is not None:
        for path in source_files(source):
            yield from read_file(path, int(settings.max_line_mb * 1e6), settings.encoding)
    elif settings.hub:
        yield from _arrow(settings.hub, hub_rows(settings.hub, settings.split))
    else:
        raise DataError("there is no data to read", "set data.path to a file or folder, or data.hub to a Hub data set")


def read_file(path: Path, cap: int = 1 << 24, encoding: str = "auto") -> Iterator[RawRow]:
    """Yield the rows of one file, by its suffix; `cap` is the longest line in bytes. Raises DataError."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _arrow(path.name, parquet_rows(path))
        return
    with open_as_utf8(path, encoding) as file:
        if suffix in (".csv", ".tsv"):
            rows = read_csv(path, file, cap, "\t" if suffix == ".tsv" else ",")
            yield from (RawRow(path.name, *rest) for rest in rows)
        elif suffix == ".txt":
            yield _document(path, file, cap)
        elif suffix == ".json" and not _is_json_lines(path, cap, encoding):
            yield from _json(path, file, cap)
        else:
            yield from _json_lines(path, file, cap)


def _arrow(name: str, rows: Iterator[Numbered]) -> Iterator[RawRow]:
    for number, value, notes in rows:
        yield replace(_row(name, number, value), notes=notes)


def _document(path: Path, file: BinaryIO, cap: int) -> RawRow:
    """Return a text file as one row, for `train.method: pretrain`."""
    size = path.stat().st_size
    if size > cap:
        reason = f"the file is {size / 1e6:.1f} MB long, above data.max_line_mb ({cap / 1e6:g})"
        return RawRow(path.name, 1, None, "", "line_too_long", reason)
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return RawRow(path.name, 1, None, "", "not_utf8", f"not UTF-8: byte at position {error.start + 1}")
    return RawRow(path.name, 1, {"text": text}, text[:2000])


def _oversized(path: Path, line: TextLine, cap: int) -> RawRow:
    reason = f"the line is {line.length / 1e6:.1f} MB long, above data.max_line_mb ({cap / 1e6:g})"
    return RawRow(path.name, line.number, None, line.excerpt(), "line_too_long", reason)


def _not_utf8(path: Path, line: TextLine, error: UnicodeDecodeError) -> RawRow:
    place = f"byte 0x{error.object[error.start]:02x} at position {error.start + 1}"
    reason = f"not UTF-8: {place}; name the file's encoding, for example --set data.encoding=cp1252"
    return RawRow(path.name, line.number, None, line.excerpt(), "not_utf8", reason)


def _json_lines(path: Path, file: BinaryIO, cap: int) -> Iterator[RawRow]:
    for line in read_lines(file, cap):
        if line.skipped:
            yield _oversized(path, line, cap)
        elif line.data.strip():
            try:
                value = parse_example(line.text())
            except UnicodeDecodeError as error:
                yield _not_utf8(path, line, error)
            except (ValueError, RecursionError) as error:
                yield RawRow(path.name, line.number, None, line.excerpt(), "bad_json", f"not JSON: {error}")
            else:
                yield _row(path.name, line.number, value, line.excerpt())


def _row(file: str, number: int, value: Any, excerpt: str = "") -> RawRow:
    excerpt = excerpt or _excerpt(value)
    if not isinstance(value, dict):
        return RawRow(file, number, None, excerpt, "not_an_object", f"the row is {type(value).__name__}, not an object")
    return RawRow(file, number, value, excerpt)


def _excerpt(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_brief)[:2000]


def _brief(value: Any) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)


def _is_json_lines(path: Path, cap: int, encoding: str) -> bool:
    """True if a .json file is JSON Lines under another name: its first line alone is an object, and it isn't the
    last."""
    with open_as_utf8(path, encoding) as file:
        lines = (line for line in read_lines(file, cap) if line.skipped or line.data.strip())
        first, second = next(lines, None), next(lines, None)
    if first is None or second is None or first.skipped:
        return False
    try:
        return isinstance(json.loads(first.data), dict)
    except ValueError:
        return False


def _json(path: Path, raw: BinaryIO, cap: int) -> Iterator[RawRow]:
    """Yield the rows of a JSON array, element by element; or of an object that holds one array, or is one row."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    number, buffer = 1, ""
    with io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        try:
            buffer = file.read(_READ)
            position = len(buffer) - len(buffer.lstrip())
            if buffer[position : position + 1] != "[":
                yield from _json_object(path, buffer + file.read(cap), cap)
                return
            number, position = number + buffer.count("\n", 0, position), position + 1
            while True:
                while position < len(buffer) and buffer[position] in " \t\r\n,":
                    number += buffer[position] == "\n"
                    position += 1
                if buffer[position : position + 1] == "]":
                    return
                try:
                    value, end = decoder.raw_decode(buffer, position)
                    reason = ""
                except (ValueError, RecursionError) as error:
                    value, end, reason = None, len(buffer), f"not JSON: {error}"
                if end == len(buffer) and end - position < cap:  # it may go on behind the buffer
                    # Doubling what is held, so that a large element is tried a few times only.
                    if more := file.read(max(_READ, end - position)):
                        buffer, position = buffer[position:] + more, 0
                        continue
                    if not reason:  # a whole element, and nothing after it
                        yield _row(path.name, number, value)
                    reason = reason or "the array is not closed"
                elif reason and end - position >= cap:
                    reason = "an element is longer than data.max_line_mb"
                if reason:
                    text = buffer[position : position + 2000]
                    yield RawRow(
                        path.name, number, None, text, "bad_json", f"the array can't be read from here on: {reason}"
                    )
                    return
                yield _row(path.name, number, value)
                number, position = number + buffer.count("\n", position, end), end
        except UnicodeDecodeError as error:
            yield RawRow(
                path.name, number, None, buffer[:2000], "not_utf8", f"not UTF-8 from about here on: {error.reason}"
            )


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _json_object(path: Path, text: str, cap: int) -> Iterator[RawRow]:
    if len(text) > cap:
        fix = "convert it to JSON Lines, one row a line"
        raise DataError(f"{path} is one JSON object above data.max_line_mb", fix)
    try:
        value = parse_example(text)
    except ValueError as error:
        yield RawRow(path.name, 1, None, text[:2000], "bad_json", f"not JSON: {error}")
        return
    arrays = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    looks_like_a_row = {"messages", "conversations", "contents", "prompt"} & set(value)
    rows = arrays[0] if len(arrays) == 1 and not looks_like_a_row else [value]
    for number, row in enumerate(rows, 1):
        yield _row(path.name, number, row)
