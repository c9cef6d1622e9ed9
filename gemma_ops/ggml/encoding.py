"""Rows of weights as blocks of a type, with the least squared error weighted by importance.

Importance is the mean square of what each column is multiplied with (llama.cpp's importance matrix): an error there
costs so much in the output. The search begins with each group's best step and offset alone (`group_search`), shares the
blocks' float16 among their groups, and then goes round: the group's integers next to where the codes want them, the
block's float16 by least squares, the codes again. A step of the way is kept where it lowers the error of its block.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch

from gemma_ops.family.formats import TensorType
from gemma_ops.ggml.group_search import search_steps, search_steps_and_offsets, solve_step_and_offset
from gemma_ops.ggml.lattices import LATTICES, Blocks, Lattice, code_levels, join_blocks, nearest_codes, nearest_levels

_ROUNDS = 3
_PIECE = 1 << 16
"""Weights searched at once: what is computed of them stays in the processor's cache."""


def encode_rows(x: torch.Tensor, kind: TensorType, importance: torch.Tensor | None = None) -> Blocks:
    """Return rows of weights, (rows, width), as blocks of a type.

    `importance`: (width,) or (rows, width), at least zero; None weighs all weights alike. The width must be a multiple
    of the type's block.
    """
    lattice = LATTICES[kind]
    rows, width = x.shape
    weights = torch.ones(width, device=x.device) if importance is None else importance.float()
    # A block of which no column matters is rounded as if all did.
    parts = weights.reshape(-1, width // lattice.block, lattice.block)
    weights = torch.where(parts.amax(-1, keepdim=True) > 0, parts, 1.0).reshape(-1, width)
    step = max(1, _PIECE // width)
    pieces = []
    for first in range(0, rows, step):
        piece = weights if len(weights) == 1 else weights[first : first + step]
        pieces.append(_encode(x[first : first + step].float(), piece, lattice))
    return join_blocks(pieces, 0)


def _encode(x: torch.Tensor, w: torch.Tensor, lattice: Lattice) -> Blocks:
    rows = len(x)
    groups = x.reshape(rows, -1, lattice.group)
    shares = w.reshape(len(w), -1, lattice.group)
    found = _first(groups, shares, lattice)
    error = _block_errors(groups, shares, found)
    for _ in range(_ROUNDS):
        trial = _better_floats(groups, shares, _better_integers(groups, shares, found))
        lower = _block_errors(groups, shares, trial)
        found, error = _keep(found, error, trial, lower)
    return found


def _first(groups: torch.Tensor, shares: torch.Tensor, lattice: Lattice) -> Blocks:
    """Return blocks from each group's own best step and offset."""
    rows = len(groups)
    steps = floor = offsets = None
    if lattice.offset_range:
        step, offset = search_steps_and_offsets(groups, shares, lattice)
        scale, steps = _share(step.view(rows, -1, lattice.groups), lattice.step_range)
        floor, offsets = _share(offset.view(rows, -1, lattice.groups), lattice.offset_range)
    elif lattice.step_range:
        step = search_steps(groups, shares, lattice)
        scale, steps = _share(step.view(rows, -1, lattice.groups), lattice.step_range)
    else:
        scale = _half(search_steps(groups, shares, lattice))
    return _with_codes(groups, Blocks(lattice, groups.new_empty(0), scale, steps, floor, offsets))


def _share(values: torch.Tensor, limits: tuple[int, int] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return values, (rows, blocks, groups), as a float16 of the block times an integer of the group. The largest value
    lies on the end of the range that reaches further."""
    assert limits is not None
    end = limits[0] if -limits[0] > limits[1] else limits[1]
    largest = values.gather(-1, values.abs().argmax(-1, keepdim=True))
    scale = _half(largest / end)
    small = (values * torch.where(scale == 0, 0.0, 1.0 / scale)).round_().clamp_(*limits)
    return scale.squeeze(-1), small.flatten(1).to(torch.int16)


def _with_codes(groups: torch.Tensor, blocks: Blocks) -> Blocks:
    offset = blocks.group_offsets()
    offset = None if offset is None else offset.unsqueeze(-1)
    codes = nearest_codes(groups, blocks.group_steps().unsqueeze(-1), offset, blocks.lattice)
    return replace(blocks, codes=codes.flatten(1).to(torch.int16))


def _group_errors(
    groups: torch.Tensor, shares: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, lattice: Lattice
) -> torch.Tensor:
    """Return the weighted squared error of each group with the codes nearest to it, (rows, groups)."""
    step = step.unsqueeze(-1)
    offset = None if offset is None else offset.unsqueeze(-1)
    values = nearest_levels(groups, step, offset, lattice) * step
    left = groups - (values if offset is None else values - offset)
    return (left.square_() * shares).sum(-1)


def _block_errors(groups: torch.Tensor, shares: torch.Tensor, blocks: Blocks) -> torch.Tensor:
    """Return the weighted squared error of each block with its own codes, (rows, blocks)."""
    left = groups - blocks.decode().view_as(groups)
    return (left.square_() * shares).sum(-1).view(len(groups), -1, blocks.lattice.groups).sum(-1)


def _better_integers(groups: torch.Tensor, shares: torch.Tensor, blocks: Blocks) -> Blocks:
    """Return the blocks with, of the integers next to where each group's codes want them, those of least error. Where
    there are none, the blocks."""
    lattice = blocks.lattice
    if blocks.steps is None or lattice.step_range is None:
        return blocks
    scale = blocks.scale.repeat_interleave(lattice.groups, 1)
    floor = None if blocks.floor is None else blocks.floor.repeat_interleave(lattice.groups, 1)
    wanted, wanted_offset = _wanted(groups, shares, blocks)
    choices = [_around(wanted, scale, lattice.step_range)]
    if floor is not None and wanted_offset is not None and lattice.offset_range:
        choices.append(_around(wanted_offset, floor, lattice.offset_range))
    steps = blocks.steps.float()
    offsets = None if blocks.offsets is None else blocks.offsets.float()
    least = _group_errors(
        groups, shares, scale * steps, None if floor is None or offsets is None else floor * offsets, lattice
    )
    for pick in itertools.product(*choices):
        offset = floor * pick[1] if floor is not None and len(pick) > 1 else None
        error = _group_errors(groups, shares, scale * pick[0], offset, lattice)
        better = error < least
        least, steps = torch.where(better, error, least), torch.where(better, pick[0], steps)
        if offsets is not None:
            offsets = torch.where(better, pick[1], offsets)
    offsets = None if offsets is None else offsets.to(torch.int16)
    return _with_codes(groups, replace(blocks, steps=steps.to(torch.int16), offsets=offsets))


def _around(values: torch.Tensor, unit: torch.Tensor, limits: tuple[int, int]) -> list[torch.Tensor]:
    """Return the integers below and above `values / unit`, as float32 within the limits."""
    ratio = values * torch.where(unit == 0, 0.0, 1.0 / unit)
    return [ratio.floor().clamp_(*limits), ratio.ceil().clamp_(*limits)]


def _wanted(groups: torch.Tensor, shares: torch.Tensor, blocks: Blocks) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the step and the offset that fit each group's codes best by least squares, (rows, groups)."""
    levels = code_levels(blocks.codes, blocks.lattice).view_as(groups)
    weighted = shares * levels
    both, square = (weighted * groups).sum(-1), (weighted * levels).sum(-1)
    if blocks.floor is None:
        return torch.where(square > 0, both / square, 0.0), None
    first, total, count = weighted.sum(-1), (shares * groups).sum(-1), shares.expand_as(groups).sum(-1)
    return solve_step_and_offset(square, first, count, both, total)


def _better_floats(groups: torch.Tensor, shares: torch.Tensor, blocks: Blocks) -> Blocks:
    """Return the blocks with the float16 values that fit their codes and integers best by least squares."""
    lattice = blocks.lattice
    small = torch.ones_like(blocks.group_steps()) if blocks.steps is None else blocks.steps.float()
    levels = code_levels(blocks.codes, lattice).view_as(groups) * small.unsqueeze(-1)

    def summed(values: torch.Tensor) -> torch.Tensor:
        return values.sum(-1).view(len(groups), -1, lattice.groups).sum(-1)

    weighted = shares * levels
    both, square = summed(weighted * groups), summed(weighted * levels)
    floor = blocks.floor
    if floor is None or blocks.offsets is None:
        scale = torch.where(square > 0, both / square, blocks.scale)
    else:
        lifts = blocks.offsets.float().unsqueeze(-1).expand_as(groups)
        lifted = shares * lifts
        scale, floor = solve_step_and_offset(
            square, summed(weighted * lifts), summed(lifted * lifts), both, summed(lifted * groups)
        )
        floor = _half(floor)
    return _with_codes(groups, replace(blocks, scale=_half(scale), floor=floor))


def _keep(found: Blocks, error: torch.Tensor, trial: Blocks, lower: torch.Tensor) -> tuple[Blocks, torch.Tensor]:
    """Return, block by block, the one of less error."""
    better = lower < error
    wide = better.repeat_interleave(found.lattice.groups, 1)
    widest = better.repeat_interleave(found.lattice.block, 1)

    def choose(mask: torch.Tensor, one: torch.Tensor | None, two: torch.Tensor | None) -> torch.Tensor | None:
        return None if one is None or two is None else torch.where(mask, one, two)

    codes = torch.where(widest, trial.codes, found.codes)
    scale = torch.where(better, trial.scale, found.scale)
    kept = Blocks(
        found.lattice, codes, scale, choose(wide, trial.steps, found.steps),
        choose(better, trial.floor, found.floor), choose(wide, trial.offsets, found.offsets),
    )  # fmt: skip
    return kept, torch.where(better, lower, error)


def _half(values: torch.Tensor) -> torch.Tensor:
    """Return the values as a float16 can hold them, in float32."""
    return values.half().float()
