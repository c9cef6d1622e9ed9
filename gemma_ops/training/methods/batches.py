"""Rows of a forward pass as the tensors that TRL's losses take: padded to the right, the wanted answers first.

The padding is of plain numbers only: `scoring` takes it out before the model sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_ops.training.steps import OptimizerStep

Row = dict[str, Any]


@dataclass(frozen=True)
class Whole:
    """What one process computes in one optimizer step."""

    passes: list[dict[str, Any]]
    """Tensors of each forward pass."""
    counts: list[int]
    """Number of rows of each pass; 0 where the pass only keeps another process company."""
    rows: int
    """Number of rows of the whole step, over all processes."""
    tokens: int
    """Tokens of the whole step, over all processes, without padding."""

    def pin_memory(self) -> Whole:
        """Return the step in page-locked memory, so that copies to a GPU overlap its work."""
        pinned = [{key: value.pin_memory() for key, value in one.items()} for one in self.passes]
        return Whole(pinned, self.counts, self.rows, self.tokens)


class BatchRows:
    """Data set of tokenized rows for torch's loader: asked for a `Step`, it gives the rows of each pass.

    With `partners` each row carries the answer of a far one as `other_ids` and `other_loss`: KTO compares how a prompt
    goes with an answer that isn't its own. Half a table away stand no answers to the same prompt.
    """

    def __init__(self, table: Any, *, partners: bool = False) -> None:
        self.table = table
        self.lengths = [int(value) for value in table["length"]]
        self.partners = partners

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitems__(self, step: OptimizerStep) -> list[Any]:
        """Return the rows of each pass, and how many rows and tokens the step has: what a collator takes."""
        passes = [[self._row(number) for number in one] for one in step.passes]
        return [passes, len(step.rows), sum(self.lengths[row] for row in step.rows)]

    def _row(self, number: int) -> Row:
        row: Row = self.table[number]
        if self.partners:
            other = self.table[(number + len(self) // 2) % len(self)]
            row |= {"other_ids": other["completion_ids"], "other_loss": other["completion_loss"]}
        return row


class Pairs:
    """Collator of pairs: chosen answers, then rejected ones, each behind its prompt."""

    def __call__(self, step: list[Any]) -> Whole:
        passes, rows, tokens = step
        return Whole([self.tensors(one or [_PAIR]) for one in passes], [len(one) for one in passes], rows, tokens)

    def tensors(self, rows: list[Row]) -> dict[str, Any]:
        """Return `input_ids`, `attention_mask`, `completion_mask` [2 rows, length]; reference values where the table
        has them."""
        import torch

        sides = [(row["prompt_ids"], row[f"{side}_ids"], row[f"{side}_loss"]) for side in _SIDES for row in rows]
        known = [key for key in ("ref_chosen_logps", "ref_rejected_logps") if key in rows[0]]
        return padded(sides) | {key: torch.tensor([row[key] for row in rows]) for key in known}


class JudgedBatches:
    """Collator of judged answers, each with the answer of another row where it has one."""

    def __call__(self, step: list[Any]) -> Whole:
        passes, rows, tokens = step
        return Whole([self.tensors(one or [_JUDGED]) for one in passes], [len(one) for one in passes], rows, tokens)

    def tensors(self, rows: list[Row]) -> dict[str, Any]:
        """Return tensors [rows, length], the `label`, and under names that begin with `KL_` those with the other
        answer."""
        import torch

        found = padded([(row["prompt_ids"], row["completion_ids"], row["completion_loss"]) for row in rows])
        if "other_ids" in rows[0]:
            others = padded([(row["prompt_ids"], row["other_ids"], row["other_loss"]) for row in rows])
            found |= {f"KL_{key}": value for key, value in others.items()}
        known = [key for key in ("ref_logps", "ref_KL_logps") if key in rows[0]]
        found |= {key: torch.tensor([row[key] for row in rows]) for key in known}
        return found | {"label": torch.tensor([bool(row["label"]) for row in rows])}


_SIDES = ("chosen", "rejected")
_PAIR: Row = {
    "prompt_ids": [0],
    **{f"{side}_ids": [0] for side in _SIDES},
    **{f"{side}_loss": [True] for side in _SIDES},
}
_JUDGED: Row = {"prompt_ids": [0], "label": True} | {f"{name}_ids": [0] for name in ("completion", "other")}
_JUDGED |= {f"{name}_loss": [True] for name in ("completion", "other")}
"""Stand-ins for a pass without rows: another process has one more to compute, and waits for this one's gradients."""


def padded(sides: list[tuple[list[int], list[int], list[bool]]]) -> dict[str, Any]:
    """Return prompts and answers, padded to the right: tokens, which of them are there, and which the model itself
    says."""
    import torch

    longest = max(len(prompt) + len(ids) for prompt, ids, _ in sides)
    ids, there, said = (np.zeros((len(sides), longest), dtype=np.int64) for _ in range(3))
    for index, (prompt, answer, loss) in enumerate(sides):
        end = len(prompt) + len(answer)
        ids[index, :end] = prompt + answer
        there[index, :end] = 1
        said[index, len(prompt) : end] = loss
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(there),
        "completion_mask": torch.from_numpy(said),
    }
