"""Weights of a layer that lie on a lattice while their scales are trained.

Codes and integers stay; the float16 values of the blocks are trained as logarithms of a factor, so that one learning
rate suits scales of every size. Forward, the weights are those that the file will hold: the trained values are rounded
to float16 on the way (straight through, Bengio et al. 2013). Between forward passes no weight exists.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from gemma_ops.ggml.lattices import Blocks, code_levels


class LatticeWeight(torch.nn.Module):  # type: ignore[misc]
    """A weight of any shape whose rows are `blocks`, with trained scales. What it computes with moves along with `to`;
    the codes stay in main memory."""

    levels: torch.Tensor
    start: torch.Tensor
    start_floor: torch.Tensor | None
    offsets: torch.Tensor | None

    def __init__(self, blocks: Blocks, shape: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        self.dtype = dtype
        self._blocks = replace(blocks, codes=blocks.codes.to("cpu", torch.int8))
        rows, lattice = len(blocks.codes), blocks.lattice
        levels = code_levels(blocks.codes, lattice).view(rows, -1, lattice.group)
        if blocks.steps is not None:
            levels = levels * blocks.steps.float().unsqueeze(-1)
        small = levels.abs().amax() <= 127
        levels = levels.reshape(rows, -1, lattice.block).to(torch.int8 if small else torch.int16)
        for name, value in (
            ("levels", levels), ("start", blocks.scale), ("start_floor", blocks.floor), ("offsets", blocks.offsets)
        ):  # fmt: skip
            self.register_buffer(name, value, persistent=False)
        self.scale = torch.nn.Parameter(torch.zeros_like(blocks.scale))
        self.floor = None if blocks.floor is None else torch.nn.Parameter(torch.zeros_like(blocks.floor))

    def forward(self) -> torch.Tensor:
        """Return the weight, differentiable by the scales."""
        lattice = self._blocks.lattice
        weight = self.levels.float() * trained_half(self.start, self.scale).unsqueeze(-1)
        if self.floor is not None and self.start_floor is not None and self.offsets is not None:
            floor = trained_half(self.start_floor, self.floor).repeat_interleave(lattice.groups, 1)
            offset = floor * self.offsets.float()
            weight = weight.view(len(offset), -1, lattice.group) - offset.unsqueeze(-1)
        return weight.reshape(self.shape).to(self.dtype)

    def trained_blocks(self) -> Blocks:
        """Return the blocks in main memory with their scales as trained, as float16 can hold them."""
        with torch.no_grad():
            floor = None
            if self.floor is not None and self.start_floor is not None:
                floor = trained_half(self.start_floor, self.floor).cpu()
            return replace(self._blocks, scale=trained_half(self.start, self.scale).cpu(), floor=floor)


def trained_half(start: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Return `start × exp(change)` rounded to float16, with the gradient of the unrounded."""
    value = start * change.exp()
    return value + (value.half().float() - value).detach()


def put_lattice(layer: Any, name: str, weight: LatticeWeight) -> None:
    """Make a layer compute with a lattice's weight in the place of its parameter `name`."""
    delattr(layer, name)

    def enter(module: Any, _arguments: Any) -> None:
        object.__setattr__(module, name, weight())

    def leave(module: Any, _arguments: Any, _result: Any) -> None:
        object.__delattr__(module, name)

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
