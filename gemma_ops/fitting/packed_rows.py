"""Rows read by a model several at a time, end to end in one pass, each attending to itself alone (`kernels`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gemma_ops.config.training_sections import KernelsConfig
from gemma_ops.fitting.fit_rows import FitRow
from gemma_ops.fitting.room_groups import groups_within
from gemma_ops.kernels.install import forward_hidden, install_kernels

_PASS = 2048
"""Tokens of a pass, unless one row alone has more."""


def packed_passes(rows: Sequence[FitRow], picked: Sequence[int]) -> Iterator[list[int]]:
    """Yield the picked rows in groups that one pass reads, in order."""
    yield from groups_within(picked, lambda row: len(rows[row]), _PASS)


def install_reading(model: Any, *, recompute: bool) -> None:
    """Prepare a loaded model for `packed_states`; `recompute`: the backward pass makes the layers' values again, for
    models whose values don't fit into memory."""
    settings = KernelsConfig(lora="peft", norms="eager", compile="off", graphs="off")
    install_kernels(model, settings, recompute="all" if recompute else "none")


def packed_states(model: Any, rows: Sequence[FitRow]) -> torch.Tensor:
    """Return the states that the head reads, (tokens of all rows, hidden), from one pass over the rows."""
    ids = torch.tensor([[token for row in rows for token in row.ids]], device=model.device)
    places = torch.cat([torch.arange(len(row)) for row in rows]).unsqueeze(0).to(model.device)
    bounds = list(itertools.accumulate((len(row) for row in rows), initial=0))
    return forward_hidden(model, input_ids=ids, position_ids=places, cu_seq_lens_q=bounds)[0]
