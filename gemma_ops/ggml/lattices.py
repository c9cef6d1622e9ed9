"""The values that each of GGML's block types can hold, and blocks of them as numbers.

A block stores codes and what scales them. A weight is `step × level(code) − offset`; step and offset belong to a group
of weights. In the types with blocks of 32 the step is a float16 of the block itself. In those with blocks of 256 the
step of a group is a float16 of the block times a small integer of the group, and so is the offset.

Sizes, ranges and the levels of IQ4_XS: llama.cpp, ggml-common.h and ggml-quants.c (`dequantize_row_*`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from gemma_ops.family.formats import BLOCKS, TensorType

_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Lattice:
    """The values that a block of one type can hold."""

    type: TensorType
    group: int
    """Weights that share a step."""
    low: int
    """Smallest code; the largest is `high`."""
    high: int
    levels: tuple[int, ...] | None = None
    """Value of each code before scaling; None where a code is its own value."""
    step_range: tuple[int, int] | None = None
    """Range of the integer that scales the block's float16 for a group; None where that float16 is the step."""
    offset_range: tuple[int, int] | None = None
    """Range of the integer that scales the block's second float16, the offset's; None where there is no offset."""

    @property
    def block(self) -> int:
        """Return the weights that are stored together."""
        return BLOCKS[self.type]

    @property
    def groups(self) -> int:
        """Return the groups in a block."""
        return self.block // self.group

    @property
    def extremes(self) -> tuple[int, int]:
        """Return the smallest and the largest level."""
        return (self.levels[0], self.levels[-1]) if self.levels else (self.low, self.high)


_EVERY = (
    Lattice("Q8_0", 32, -127, 127),
    Lattice("Q5_0", 32, -16, 15),
    Lattice("Q4_0", 32, -8, 7),
    Lattice("Q6_K", 16, -32, 31, step_range=(-128, 127)),
    Lattice("Q5_K", 32, 0, 31, step_range=(0, 63), offset_range=(0, 63)),
    Lattice("Q4_K", 32, 0, 15, step_range=(0, 63), offset_range=(0, 63)),
    Lattice("IQ4_XS", 32, 0, 15, _IQ4_LEVELS, step_range=(-32, 31)),
)
LATTICES: dict[TensorType, Lattice] = {each.type: each for each in _EVERY}
"""Lattices by tensor type."""


@dataclass(frozen=True)
class Blocks:
    """Quantized rows as numbers. With rows of `width` weights, `blocks` blocks and `groups` groups each:

    - `codes` (rows, width), int16
    - `scale` (rows, blocks), float32 that a float16 can hold
    - `steps` (rows, blocks × groups), int16; None where a block is one group
    - `floor` like `scale` and `offsets` like `steps`, of the offset; None where there is none
    """

    lattice: Lattice
    codes: torch.Tensor
    scale: torch.Tensor
    steps: torch.Tensor | None = None
    floor: torch.Tensor | None = None
    offsets: torch.Tensor | None = None

    def group_steps(self) -> torch.Tensor:
        """Return the step of each group, (rows, width / group) float32."""
        return _group_values(self.scale, self.steps, self.lattice)

    def group_offsets(self) -> torch.Tensor | None:
        """Return the offset of each group, (rows, width / group) float32; None where the lattice has none."""
        return None if self.floor is None else _group_values(self.floor, self.offsets, self.lattice)

    def decode(self) -> torch.Tensor:
        """Return the weights, (rows, width) float32, bit for bit as llama.cpp's dequantization of the packed bytes."""
        rows, width = self.codes.shape
        values = code_levels(self.codes, self.lattice).view(rows, -1, self.lattice.group)
        values = values * self.group_steps().unsqueeze(-1)
        if (offsets := self.group_offsets()) is not None:
            values = values - offsets.unsqueeze(-1)
        return values.reshape(rows, width)


def join_blocks(pieces: list[Blocks], dimension: int) -> Blocks:
    """Return pieces of one matrix put together: along rows (0) or along the width (1)."""

    def joined(name: str) -> Any:
        parts = [getattr(piece, name) for piece in pieces]
        return None if parts[0] is None else torch.cat(parts, dimension)

    return Blocks(pieces[0].lattice, *map(joined, ("codes", "scale", "steps", "floor", "offsets")))


def code_levels(codes: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """Return the values of codes before scaling, float32."""
    if lattice.levels is None:
        return codes.float()
    return torch.tensor(lattice.levels, dtype=torch.float32, device=codes.device)[codes.long()]


def nearest_codes(x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, lattice: Lattice) -> torch.Tensor:
    """Return the codes whose values are nearest to `x`, as float32; `step` and `offset` broadcast against `x`. Where
    the step is zero the code is the one whose level is nearest to zero."""
    if lattice.levels is None:
        return nearest_levels(x, step, offset, lattice)
    return _cells(lattice, x.device)[0][_cell(x, step, offset)]


def nearest_levels(x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None, lattice: Lattice) -> torch.Tensor:
    """Return the levels of the nearest codes, float32; arguments as of `nearest_codes`."""
    if lattice.levels is None:
        return _scaled(x, step, offset).round_().clamp_(lattice.low, lattice.high)
    return _cells(lattice, x.device)[1][_cell(x, step, offset)]


def _scaled(x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    lifted = x if offset is None else x + offset
    return lifted * torch.where(step == 0, 0.0, 1.0 / step)


_REACH = 128
"""Largest level of a table, by absolute value."""


def _cell(x: torch.Tensor, step: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
    """Return the number of the half-unit cell that each scaled weight lies in."""
    return _scaled(x, step, offset).mul_(2).floor_().clamp_(-2 * _REACH, 2 * _REACH - 1).add_(2 * _REACH).long()


@cache
def _cells(lattice: Lattice, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return code and level of each half-unit cell: levels are whole numbers, so the midpoints between them lie on the
    borders of cells."""
    levels = torch.tensor(lattice.levels, dtype=torch.float32)
    middles = (torch.arange(-2 * _REACH, 2 * _REACH) + 0.5) / 2
    codes = torch.bucketize(middles, (levels[1:] + levels[:-1]) / 2)
    return codes.float().to(device), levels[codes].to(device)


def _group_values(scale: torch.Tensor, small: torch.Tensor | None, lattice: Lattice) -> torch.Tensor:
    return scale if small is None else scale.repeat_interleave(lattice.groups, 1) * small.float()
