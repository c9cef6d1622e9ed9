"""Rows of tokens as the tensors of a forward pass.

A packed pass is one row without an attention mask: positions that restart tell the documents apart, and their bounds go
along as plain numbers, so that no layer has to ask the device for them. Labels are shifted and gathered here, once:
`where` lists the places of a pass whose next token is scored, `targets` those tokens, so no document ever predicts the
first token of the next, and only what is scored meets the output head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_ops.data.row_tokens import NO_LOSS
from gemma_ops.training.steps import OptimizerStep

BOUNDS = "cu_seq_lens_q"
"""Name under which document bounds travel through the model to its attention; transformers' own for packed rows."""


@dataclass(frozen=True)
class Batch:
    """What one process computes in one optimizer step."""

    passes: list[dict[str, Any]]
    """Arguments of the model's forward pass as `head` extends it: `input_ids`, `where`, `targets`, …"""
    divisor: float
    """Divisor of the summed loss: the scored tokens of the whole step, over all processes, weighted."""
    tokens: int
    """Tokens of the whole step, over all processes, without padding."""

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, so that copies to a GPU overlap its work."""
        pinned = [
            {key: value.pin_memory() if hasattr(value, "pin_memory") else value for key, value in one.items()}
            for one in self.passes
        ]
        return Batch(pinned, self.divisor, self.tokens)


class TokenRows:
    """Data set of tokenized rows for torch's loader: asked for a `Step`, it gives the rows of each pass."""

    def __init__(self, table: Any) -> None:
        self.table = table.with_format("numpy")
        self.lengths = [int(value) for value in table["length"]]
        self.scored = np.asarray(table["scored"], dtype=np.float64)
        """Labelled tokens of each row that have a token before them, times the row's weight."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, step: OptimizerStep) -> list[Any]:
        """Return the rows of each pass, the divisor and the tokens of the step: what `Collate` takes."""
        passes = [[self.table[row] for row in one] for one in step.passes]
        return [passes, float(self.scored[step.rows].sum()), sum(self.lengths[row] for row in step.rows)]


class Collate:
    """Collator of the rows of each pass to tensors; packed end to end (varlen, with cu_seqlens), or padded to the
    right.

    `bounds` sends document bounds along. `pad` is the id of padding.
    """

    def __init__(self, *, packing: bool, bounds: bool, pad: int = 0) -> None:
        self.packing = packing
        self.bounds = bounds
        self.pad = pad

    def __call__(self, step: list[Any]) -> Batch:
        passes, divisor, tokens = step
        return Batch([self._packed(rows) if self.packing else self._padded(rows) for rows in passes], divisor, tokens)

    def _packed(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        rows = rows or [_nothing(1)]
        lengths = [len(row["input_ids"]) for row in rows]
        starts = [0, *np.cumsum(lengths).tolist()]
        found = {
            "input_ids": torch.from_numpy(np.concatenate([_ids(row) for row in rows]))[None],
            "position_ids": torch.from_numpy(np.concatenate([np.arange(length) for length in lengths]))[None],
            **_scored(rows, starts),
        }
        return found | ({BOUNDS: starts} if self.bounds else {})

    def _padded(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        rows = rows or [_nothing(1)]
        longest = max(len(row["input_ids"]) for row in rows)
        ids = np.full((len(rows), longest), self.pad)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row["input_ids"])], mask[index, : len(row["input_ids"])] = _ids(row), 1
        starts = [index * longest for index in range(len(rows))]
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            **_scored(rows, starts),
        }


def _ids(row: dict[str, Any]) -> Any:
    return np.asarray(row["input_ids"], dtype=np.int64)


def _scored(rows: list[dict[str, Any]], starts: list[int]) -> dict[str, Any]:
    """Return `where`, `targets` and, unless all are one, `weights` of rows that start at `starts` in the flattened
    pass."""
    import torch

    where, targets, weights = [], [], []
    for row, start in zip(rows, starts, strict=False):
        labels = np.asarray(row["labels"], dtype=np.int64)[1:]
        places = np.flatnonzero(labels != NO_LOSS)
        where.append(places + start)
        targets.append(labels[places])
        weights.append(np.full(len(places), row.get("weight", 1.0), dtype=np.float32))
    found = {"where": torch.from_numpy(np.concatenate(where)), "targets": torch.from_numpy(np.concatenate(targets))}
    if any((weight != 1.0).any() for weight in weights):
        found["weights"] = torch.from_numpy(np.concatenate(weights))
    return found


def _nothing(length: int) -> dict[str, Any]:
    """Return a row without loss, for a process that has none."""
    return {"input_ids": np.zeros(length, dtype=np.int64), "labels": np.full(length, NO_LOSS)}
