"""Triton kernels of the bodies in `ops_reference`: one pass over memory each, compiled in under a second.

Inductor makes kernels as fast, but takes two seconds for every body and width (a minute for a model) and looks at its
guards on every call. `KERNELS` says which stands for which body.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from gemma_ops.kernels import ops_reference, ops_triton_kernels
from gemma_ops.modeling.triton_launch import launch

_PIECE = 1024
"""Numbers of a row that one program of GeGLU handles."""


def _rows(x: Tensor) -> Tensor:
    """Return a tensor as `[rows, width]` with adjacent numbers, copied only where it must be."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _block(width: int) -> int:
    return int(triton.next_power_of_2(width))


def norm(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Compute `ops_reference.norm` in one kernel."""
    flat, width = _rows(x), x.shape[-1]
    y, rstd = (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty((*x.shape[:-1], 1), dtype=torch.float32),
    )
    pointers = flat, flat if weight is None else weight, y, rstd
    constants = width, _block(width), weight is not None
    launch(ops_triton_kernels.norm, (flat.shape[0], 1, 1), pointers, (flat.stride(0), eps), constants)
    return y, rstd


def norm_backward(outer: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> Tensor:
    """Compute `ops_reference.norm_backward` in one kernel."""
    g, flat, width = _rows(outer), _rows(x), x.shape[-1]
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    pointers = g, flat, flat if weight is None else weight, rstd, by_x
    constants = width, _block(width), weight is not None
    launch(ops_triton_kernels.norm_backward, (flat.shape[0], 1, 1), pointers, (g.stride(0), flat.stride(0)), constants)
    return by_x


def add_norm(
    residual: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute `ops_reference.add_norm` in one kernel."""
    stream, flat, width = _rows(residual), _rows(x), x.shape[-1]
    y = torch.empty_like(residual, memory_format=torch.contiguous_format)
    rstd = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    pointers = stream, flat, flat if weight is None else weight, flat if scale is None else scale, y, rstd
    constants = width, _block(width), weight is not None, scale is not None
    launch(
        ops_triton_kernels.add_norm, (flat.shape[0], 1, 1), pointers, (stream.stride(0), flat.stride(0), eps), constants
    )
    return y, rstd


def add_norm_backward(
    outer: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute `ops_reference.add_norm_backward` in one kernel."""
    g, flat, width = _rows(outer), _rows(x), x.shape[-1]
    by_residual = torch.empty_like(outer, memory_format=torch.contiguous_format)
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    pointers = g, flat, flat if weight is None else weight, flat if scale is None else scale, rstd, by_residual, by_x
    constants = width, _block(width), weight is not None, scale is not None
    launch(
        ops_triton_kernels.add_norm_backward, (flat.shape[0], 1, 1), pointers, (g.stride(0), flat.stride(0)), constants
    )
    return by_residual, by_x


def rotated(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute `ops_reference.rotated` in one kernel."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, tokens, heads, width = x.shape
    cos, sin = (_angles(angle, batch, tokens) for angle in (cos, sin))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rstd = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    pointers = x, x if weight is None else weight, cos, sin, y, rstd
    numbers = rstd.numel(), tokens, heads, *x.stride()[:3], cos.stride(0), eps
    grid, constants = _heads(rstd.numel(), width // 2, weight is not None)
    launch(ops_triton_kernels.rotated, grid, pointers, numbers, constants)
    return y, rstd


def rotated_backward(
    outer: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, rstd: Tensor
) -> tuple[Tensor, None]:
    """Compute `ops_reference.rotated_backward` in one kernel, without what a gradient by the weight would need."""
    outer = outer if outer.stride(-1) == 1 else outer.contiguous()
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, tokens, heads, width = x.shape
    cos, sin = (_angles(angle, batch, tokens) for angle in (cos, sin))
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    pointers = outer, x, x if weight is None else weight, cos, sin, rstd, by_x
    numbers = rstd.numel(), tokens, heads, *outer.stride()[:3], *x.stride()[:3], cos.stride(0)
    grid, constants = _heads(rstd.numel(), width // 2, weight is not None)
    launch(ops_triton_kernels.rotated_backward, grid, pointers, numbers, constants)
    return by_x, None


def _heads(count: int, half: int, weighed: bool) -> tuple[tuple[int, int, int], tuple[Any, ...]]:
    """Return the grid and the constants of a kernel for so many heads: some of them to a program, or its threads
    idle."""
    rows = max(1, _PIECE // _block(half))
    return (-(-count // rows), 1, 1), (half, _block(half), weighed, rows)


def _angles(angle: Tensor, batch: int, tokens: int) -> Tensor:
    """Return angles `[rows, D]`, one row a token of every sequence."""
    return _rows(angle.expand(batch, tokens, angle.shape[-1]))


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute `ops_reference.geglu` in one kernel."""
    a, b, width = _rows(gate), _rows(up), gate.shape[-1]
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    block = min(_PIECE, _block(width))
    grid = a.shape[0], -(-width // block), 1
    launch(ops_triton_kernels.geglu, grid, (a, b, y), (a.stride(0), b.stride(0), width), (block,))
    return y


def geglu_backward(outer: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `ops_reference.geglu_backward` in one kernel."""
    g, a, b, width = _rows(outer), _rows(gate), _rows(up), gate.shape[-1]
    by_gate, by_up, y = (torch.empty_like(gate, memory_format=torch.contiguous_format) for _ in range(3))
    block = min(_PIECE, _block(width))
    grid, numbers = (a.shape[0], -(-width // block), 1), (g.stride(0), a.stride(0), b.stride(0), width)
    launch(ops_triton_kernels.geglu_backward, grid, (g, a, b, by_gate, by_up, y), numbers, (block,))
    return by_gate, by_up, y


def softmax_backward(
    scores: Tensor, outer: Tensor, lse: Tensor, delta: Tensor, real: Tensor | None, queries: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Compute `ops_reference.softmax_backward` in one kernel."""
    batch, rows, keys = scores.shape
    scores, outer, lse, delta = (one.contiguous() for one in (scores, outer, lse, delta))
    likely, inner = torch.empty_like(outer), torch.empty_like(outer)
    block = min(_PIECE, _block(keys))
    pointers = scores, outer, lse, delta, lse if real is None else real.contiguous(), likely, inner
    grid = batch * rows, -(-keys // block), 1
    launch(
        ops_triton_kernels.softmax_backward,
        grid,
        pointers,
        (rows, keys, queries, float(scale)),
        (block, real is not None),
    )
    return likely, inner


def weighed_sum(rows: Tensor, back: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """Compute `ops_reference.weighed_sum` in one kernel."""
    rows, width = rows.contiguous(), rows.shape[-1]
    y = rows.new_empty(back.shape[0] // count, width)
    block = min(_PIECE, _block(width))
    pointers = rows, back, rows if weights is None else weights.contiguous(), y
    grid = y.shape[0], -(-width // block), 1
    launch(ops_triton_kernels.weighed_sum, grid, pointers, (width,), (count, block, weights is not None))
    return y


def weighed_geglu_backward(outer: Tensor, both: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `ops_reference.weighed_geglu_backward` in one kernel."""
    outer, both, weight = outer.contiguous(), both.contiguous(), weight.contiguous()
    by_both, by_weight = torch.empty_like(both), torch.empty_like(weight)
    width, pointers = outer.shape[-1], (outer, both, weight, by_both, by_weight)
    constants = width, min(_PIECE, _block(width))
    launch(ops_triton_kernels.weighed_geglu_backward, (outer.shape[0], 1, 1), pointers, (), constants)
    return by_both, by_weight


KERNELS: dict[Callable[..., Any], Callable[..., Any]] = {
    ops_reference.norm: norm,
    ops_reference.norm_backward: norm_backward,
    ops_reference.add_norm: add_norm,
    ops_reference.add_norm_backward: add_norm_backward,
    ops_reference.rotated: rotated,
    ops_reference.rotated_backward: rotated_backward,
    ops_reference.geglu: geglu,
    ops_reference.geglu_backward: geglu_backward,
    ops_reference.softmax_backward: softmax_backward,
    ops_reference.weighed_sum: weighed_sum,
    ops_reference.weighed_geglu_backward: weighed_geglu_backward,
}
"""Triton kernel of each body."""
