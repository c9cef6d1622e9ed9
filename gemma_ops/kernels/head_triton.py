"""The work of `head_tiles` on a tile of soft-capped logits between its two products, in one pass of a Triton kernel.

`head_tiles` in torch takes ten elementwise kernels and 56 bytes of memory traffic a logit; here a logit is read and its
slope written over it, four bytes in all. A program has a row of the tile to itself and goes through it from left to
right: sums come out the same every time.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from gemma_ops.modeling.triton_launch import launch

_BLOCK = 2048
"""Logits of a row that a program holds at once."""
_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def folded(  # type: ignore[no-untyped-def]
    z, labels, total, own, best, start, power,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SLOPES: tl.constexpr, TOP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.load(labels + row) - start
    line = z + row * WIDTH
    sums = tl.zeros([BLOCK], tl.float32)
    tops = tl.zeros([BLOCK], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        at = first + tl.arange(0, BLOCK)
        if WIDTH % BLOCK == 0:
            x = tl.load(line + at).to(tl.float32)
        else:
            x = tl.load(line + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        s = 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))
        e = tl.exp2(s * power)
        if WIDTH % BLOCK != 0:
            e = tl.where(at < WIDTH, e, 0.0)
        sums += e
        if TOP:
            tops = tl.maximum(tops, e)
        slope = e * (s - s * s)
        if (column >= first) & (column < first + BLOCK):
            mine = at == column
            tl.store(own + row, tl.sum(tl.where(mine, e, 0.0), 0))
            slope = tl.where(mine, 0.0, slope)
        if SLOPES:
            if WIDTH % BLOCK == 0:
                tl.store(line + at, slope.to(z.dtype.element_ty))
            else:
                tl.store(line + at, slope.to(z.dtype.element_ty), mask=at < WIDTH)
    tl.store(total + row, tl.load(total + row) + tl.sum(sums, 0))
    if TOP:
        tl.store(best + row, tl.maximum(tl.load(best + row), tl.max(tops, 0)))


def fold(
    z: Tensor,
    labels: Tensor,
    start: int,
    softcap: float,
    total: Tensor,
    own: Tensor,
    best: Tensor | None,
    *,
    slopes: bool,
) -> None:
    """Add the powers `exp(z' - c)` of a tile `z [n, v]`, which holds `-2 z / c`, to `total [n]`; float32 throughout.

    Where a label lies in the tile, whose first entry is `start`, `own [n]` gets its power. `best [n]` is raised to the
    row's largest power. With `slopes`, `z` becomes `power * dz'/dz / 4`, zero at the label.
    """
    rows, width = z.shape
    constants = width, _BLOCK, slopes, best is not None
    power = -2 * softcap * math.log2(math.e)
    pointers = z, labels, total, own, total if best is None else best
    launch(folded, (rows, 1, 1), pointers, (start, power), constants, _WARPS)
