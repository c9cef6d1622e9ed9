"""Tokenized rows as an Arrow table on disk: made once a step, memory-mapped, so that a set larger than memory
trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.data.row_tokens import NO_LOSS, Manner, encode_rows
from gemma_ops.runs.durable import write_json


def token_table(path: Path, folder: Path, tokenizer: Any, manner: Manner, *, max_length: int) -> tuple[Any, int]:
    """Return the rows of a file of examples as a `datasets.Dataset`, and how many were cut at `max_length` tokens.

    Columns: `input_ids` and `labels` (lists of one length), `length`, `weight`, and `scored`, the labelled tokens after
    the first times the weight. Rows left without a labelled token (a prompt that fills `max_length` alone) are left out
    and count as cut. `media` says as JSON what a row shows, empty for text (see `encode_rows`). The table is written to
    `folder`, and found there by a run that goes on.
    """
    import datasets

    facts = folder / f"{path.stem}.json"
    if not facts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(facts, _write(path, folder / f"{path.stem}.arrow", tokenizer, manner, max_length))
    found = json.loads(facts.read_text(encoding="utf-8"))
    if not found["rows"]:
        return datasets.Dataset.from_dict({name: [] for name in _features()}, features=_features()), found["cut"]
    return datasets.Dataset.from_file(str(folder / f"{path.stem}.arrow")), found["cut"]


def _write(path: Path, target: Path, tokenizer: Any, manner: Manner, max_length: int) -> dict[str, int]:
    import datasets

    writer = datasets.arrow_writer.ArrowWriter(path=str(target), features=_features())
    cut = kept = 0
    for row in encode_rows(path, tokenizer, manner, max_length=max_length):
        cut += bool(row["truncated"])
        scored = sum(label != NO_LOSS for label in row["labels"][1:])
        if scored:
            length, weight = len(row["input_ids"]), row["weight"]
            body = {"input_ids": row["input_ids"], "labels": row["labels"], "length": length, "weight": weight}
            media = json.dumps(row["media"]) if row["media"] else ""
            writer.write(body | {"scored": scored * weight, "media": media})
            kept += 1
    writer.finalize()
    return {"rows": kept, "cut": cut}


def from_rows(rows: list[dict[str, list[int]]]) -> Any:
    """Return rows that are tokens already, `input_ids` and `labels`, as a `datasets.Dataset` in memory with the columns
    of `table`."""
    import datasets

    made = []
    for row in rows:
        scored = sum(label != NO_LOSS for label in row["labels"][1:])
        rest = {"length": len(row["input_ids"]), "weight": 1.0, "scored": float(scored), "media": ""}
        made.append({**row, **rest})
    return datasets.Dataset.from_list(made, features=_features())


def _features() -> Any:
    import datasets

    tokens, number = datasets.List(datasets.Value("int32")), datasets.Value("float32")
    return datasets.Features(
        {
            "input_ids": tokens,
            "labels": tokens,
            "length": datasets.Value("int32"),
            "weight": number,
            "scored": number,
            "media": datasets.Value("string"),
        }
    )
