"""Rounding with error feedback on GGML's lattices: GPTQ (Frantar et al. 2022, arXiv 2210.17323).

Columns are rounded one after another; the error of each is spread over the columns not yet rounded so that the layer's
output changes least, as the second moments of its inputs say. In the place of GPTQ's own grids are the lattices: step
and offset of a block are searched (`ggml.encoding`) on the weights as they are when its first column comes up.
"""

from __future__ import annotations

import torch

from gemma_ops.family.formats import TensorType
from gemma_ops.ggml.encoding import encode_rows
from gemma_ops.ggml.lattices import LATTICES, Blocks, code_levels, join_blocks, nearest_codes

_DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean (the value of the GPTQ paper)."""
_LEAST_BLOCK = 128
"""Columns whose errors are spread within before they are spread to the rest, at least."""


def round_with_feedback(weight: torch.Tensor, moments: torch.Tensor, kind: TensorType) -> Blocks:
    """Return a matrix (outputs, inputs) on a lattice, for inputs whose second moments E[xxᵀ] are (inputs, inputs).

    Inputs that were never anything but zero are rounded to the nearest. The number of inputs must be a multiple of the
    type's block.
    """
    lattice = LATTICES[kind]
    spread = feedback_factors(moments)
    importance = moments.diagonal().float()
    left = weight.to(spread.dtype, copy=True)
    span = max(lattice.block, _LEAST_BLOCK // lattice.block * lattice.block)
    found: list[Blocks] = []
    for first in range(0, left.shape[1], span):
        last = min(first + span, left.shape[1])
        errors = torch.empty(len(left), last - first, dtype=left.dtype, device=left.device)
        for start in range(first, last, lattice.block):
            stop = start + lattice.block
            blocks = encode_rows(left[:, start:stop], kind, importance[start:stop])
            codes = _round_block(left, errors, spread, blocks, (first, start, stop, last))
            found.append(Blocks(lattice, codes, blocks.scale, blocks.steps, blocks.floor, blocks.offsets))
        left[:, last:] -= errors @ spread[first:last, last:]
    return join_blocks(found, 1)


def _round_block(
    left: torch.Tensor,
    errors: torch.Tensor,
    spread: torch.Tensor,
    blocks: Blocks,
    places: tuple[int, int, int, int],
) -> torch.Tensor:
    """Round the columns `start` to `stop`, spread their errors over those up to `last`, and return their codes."""
    first, start, stop, last = places
    lattice = blocks.lattice
    steps = blocks.group_steps().to(left.dtype)
    offsets = blocks.group_offsets()
    codes = torch.empty(len(left), stop - start, dtype=torch.int16, device=left.device)
    for column in range(start, stop):
        group = (column - start) // lattice.group
        step = steps[:, group]
        offset = None if offsets is None else offsets[:, group].to(left.dtype)
        code = nearest_codes(left[:, column], step, offset, lattice)
        value = code_levels(code, lattice).to(left.dtype) * step
        value = value if offset is None else value - offset
        codes[:, column - start] = code.to(torch.int16)
        error = (left[:, column] - value) / spread[column, column]
        errors[:, column - first] = error
        left[:, column + 1 : last] -= error[:, None] * spread[column, column + 1 : last]
    return codes


def feedback_factors(moments: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of damped second moments, (inputs, inputs).

    Raises no error for moments that are singular: the damping grows until they can be inverted.
    """
    damped = moments.double() if moments.device.type == "cpu" else moments.float()
    diagonal = damped.diagonal()
    mean = diagonal.mean().clamp_min(1e-30)
    base = damped / mean
    dead = diagonal == 0
    share = _DAMPING
    while True:
        trial = base.clone()
        trial.diagonal().add_(share + dead.to(trial.dtype))
        lower, failed = torch.linalg.cholesky_ex(trial)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper
        share *= 10
