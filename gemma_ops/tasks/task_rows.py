"""Reading the rows of a task: jsonl, csv, tsv or parquet, each row with the place it stands at."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_ops.errors import DataError


def read_task_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file:line`, row). Raises DataError naming file and line of the first row that can't be read."""
    readers = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path}: rows of a task can't be read from {path.suffix or 'a file without ending'}",
            f"use one of {', '.join(readers)}",
        )
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})", "save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}", "correct the path") from error


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(
                    f"{path}:{number}: not JSON: {error}", "correct that line; each line is one JSON object"
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: a row is a JSON object, not {type(row).__name__}", "write it as {…}")
            yield f"{path}:{number}", row


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        if not reader.fieldnames:
            raise DataError(f"{path} is empty", "the first line names the columns")
        try:
            for row in reader:
                place = f"{path}:{reader.line_num}"
                if None in row or None in row.values():
                    raise DataError(
                        f"{place}: the row does not have {len(reader.fieldnames)} columns",
                        "correct that line; quote fields that hold commas",
                    )
                yield place, dict(row)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: {error}", "correct that line") from error


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise DataError(f"{path} is no parquet file: {error}", "check the file") from error
    number = 0
    for batch in table.iter_batches():
        for row in batch.to_pylist():
            number += 1
            yield f"{path}: row {number}", row
