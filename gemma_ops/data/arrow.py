"""Tokenized rows as an Arrow table on disk: memory-mapped, so a data set larger than memory trains."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_ops.data.tokens import encode_rows


def table(path: Path, tokenizer: Any, *, max_length: int, empty_thought: bool) -> tuple[Any, int]:
    """Rows of a file of examples as a `datasets.Dataset` with `input_ids` and `labels`, and how many were cut.

    Rows left without a labelled token (a prompt that fills `max_length` alone) are left out and count as cut. The table
    lies in a temporary folder that goes with the process.
    """
    import datasets

    cut = 0

    def rows() -> Iterator[dict[str, list[int]]]:
        nonlocal cut
        for row in encode_rows(path, tokenizer, max_length=max_length, empty_thought=empty_thought):
            cut += bool(row["truncated"])
            if any(label != -100 for label in row["labels"]):
                yield {"input_ids": row["input_ids"], "labels": row["labels"]}

    scratch = tempfile.TemporaryDirectory(prefix="gemma-ops-rows-")
    features = datasets.Features(
        {"input_ids": datasets.List(datasets.Value("int32")), "labels": datasets.List(datasets.Value("int64"))}
    )
    writer = datasets.arrow_writer.ArrowWriter(path=f"{scratch.name}/rows.arrow", features=features)
    count = 0
    for row in rows():
        writer.write(row)
        count += 1
    writer.finalize()
    if count == 0:
        return datasets.Dataset.from_dict({"input_ids": [], "labels": []}, features=features), cut
    result = datasets.Dataset.from_file(f"{scratch.name}/rows.arrow")
    result.scratch = scratch  # the folder lives as long as the table
    return result, cut


def from_rows(rows: list[dict[str, list[int]]]) -> Any:
    """Rows with `input_ids` and `labels` that are in memory already, as a `datasets.Dataset`."""
    import datasets

    return datasets.Dataset.from_list(rows)
