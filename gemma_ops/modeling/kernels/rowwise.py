"""The bodies of `bodies` as Triton kernels: one pass over memory each, started in microseconds, compiled in under a second.

Inductor makes kernels as fast, but takes two seconds for every body and width (a minute for a model) and looks at its
guards on every call. Each function here takes and gives what the body of its name does. A program handles one row, or
one head of one token; sums are float32, and results are rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_PIECE = 1024
"""Numbers of a row that one program of GeGLU handles."""


@triton.jit  # type: ignore[untyped-decorator]
def _norm(x, w, y, r, stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    value = tl.load(x + row * stride + at, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    tl.store(r + row, rstd)
    value = value * rstd
    if WEIGHT:
        value = value * tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_backward(g, x, w, r, out, g_stride, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    rstd = tl.load(r + row)
    outer = tl.load(g + row * g_stride + at, mask=inside, other=0.0).to(tl.float32)
    if WEIGHT:
        outer = outer * tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    unit = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) * rstd
    value = (outer - unit * (tl.sum(outer * unit, 0) / WIDTH)) * rstd
    tl.store(out + row * WIDTH + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]
    s, x, w, c, y, r, s_stride, x_stride, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    value = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    tl.store(r + row, rstd)
    value = value * rstd
    if WEIGHT:
        value = value * tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    value = value + tl.load(s + row * s_stride + at, mask=inside, other=0.0).to(tl.float32)
    if SCALE:
        value = value * tl.load(c).to(tl.float32)
    tl.store(y + row * WIDTH + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm_backward(  # type: ignore[no-untyped-def]
    g, x, w, c, r, by_s, by_x, g_stride, x_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < WIDTH
    rstd = tl.load(r + row)
    outer = tl.load(g + row * g_stride + at, mask=inside, other=0.0).to(tl.float32)
    if SCALE:
        outer = outer * tl.load(c).to(tl.float32)
    tl.store(by_s + row * WIDTH + at, outer.to(by_s.dtype.element_ty), mask=inside)
    if WEIGHT:
        outer = outer * tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
    unit = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32) * rstd
    value = (outer - unit * (tl.sum(outer * unit, 0) / WIDTH)) * rstd
    tl.store(by_x + row * WIDTH + at, value.to(by_x.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotated(  # type: ignore[no-untyped-def]
    x, w, cos, sin, y, r, tokens, heads, b_stride, t_stride, h_stride, p_stride, eps,
    HALF: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token, head = row // heads, row % heads
    at = tl.arange(0, BLOCK)
    inside = at < HALF
    start = x + (token // tokens) * b_stride + (token % tokens) * t_stride + head * h_stride
    first = tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(start + HALF + at, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * HALF) + eps)
    tl.store(r + row, rstd)
    first, second = first * rstd, second * rstd
    if WEIGHT:
        first = first * tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
        second = second * tl.load(w + HALF + at, mask=inside, other=0.0).to(tl.float32)
    place = token * p_stride + at
    cos_first = tl.load(cos + place, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + place + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + place, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + place + HALF, mask=inside, other=0.0).to(tl.float32)
    target = y + row * (2 * HALF) + at
    tl.store(target, (first * cos_first - second * sin_first).to(y.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (second * cos_second + first * sin_second).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _rotated_backward(  # type: ignore[no-untyped-def]
    g, x, w, cos, sin, r, out, tokens, heads,
    gb_stride, gt_stride, gh_stride, b_stride, t_stride, h_stride, p_stride,
    HALF: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    token, head = row // heads, row % heads
    batch, place = token // tokens, token % tokens
    at = tl.arange(0, BLOCK)
    inside = at < HALF
    rstd = tl.load(r + row)
    outer = g + batch * gb_stride + place * gt_stride + head * gh_stride + at
    g_first = tl.load(outer, mask=inside, other=0.0).to(tl.float32)
    g_second = tl.load(outer + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = token * p_stride + at
    cos_first = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    first = g_first * cos_first + g_second * sin_second
    second = g_second * cos_second - g_first * sin_first
    if WEIGHT:
        first = first * tl.load(w + at, mask=inside, other=0.0).to(tl.float32)
        second = second * tl.load(w + HALF + at, mask=inside, other=0.0).to(tl.float32)
    start = x + batch * b_stride + place * t_stride + head * h_stride + at
    unit_first = tl.load(start, mask=inside, other=0.0).to(tl.float32) * rstd
    unit_second = tl.load(start + HALF, mask=inside, other=0.0).to(tl.float32) * rstd
    mean = (tl.sum(first * unit_first, 0) + tl.sum(second * unit_second, 0)) / (2 * HALF)
    target = out + row * (2 * HALF) + at
    tl.store(target, ((first - unit_first * mean) * rstd).to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF, ((second - unit_second * mean) * rstd).to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _gate(x):  # type: ignore[no-untyped-def]
    """The sigmoid in `gelu(x) = x * sigmoid(2 u)`, u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit  # type: ignore[untyped-decorator]
def _geglu(a, b, y, a_stride, b_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(a + row * a_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(b + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + at, (gate * _gate(gate) * up).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _geglu_backward(g, a, b, by_a, by_b, y, g_stride, a_stride, b_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    outer = tl.load(g + row * g_stride + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(a + row * a_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(b + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    share = _gate(gate)
    active = gate * share
    slope = share + active * (1.0 - share) * 1.5957691216057308 * (1.0 + 3 * 0.044715 * gate * gate)
    place = row * width + at
    tl.store(by_a + place, (outer * up * slope).to(by_a.dtype.element_ty), mask=inside)
    tl.store(by_b + place, (outer * active).to(by_b.dtype.element_ty), mask=inside)
    tl.store(y + place, (active * up).to(y.dtype.element_ty), mask=inside)


def _rows(x: Tensor) -> Tensor:
    """As `[rows, width]` with adjacent numbers, copied only where it must be."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def _size(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": 4 if block <= 1024 else 8 if block <= 4096 else 16}


def norm(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """See `bodies.norm`."""
    flat, width = _rows(x), x.shape[-1]
    y, rstd = (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty((*x.shape[:-1], 1), dtype=torch.float32),
    )
    _norm[(flat.shape[0],)](
        flat, flat if weight is None else weight, y, rstd, flat.stride(0), eps,
        WIDTH=width, WEIGHT=weight is not None, **_size(width),
    )  # fmt: skip
    return y, rstd


def norm_backward(outer: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> Tensor:
    """See `bodies.norm_backward`."""
    g, flat, width = _rows(outer), _rows(x), x.shape[-1]
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    _norm_backward[(flat.shape[0],)](
        g, flat, flat if weight is None else weight, rstd, by_x, g.stride(0), flat.stride(0),
        WIDTH=width, WEIGHT=weight is not None, **_size(width),
    )  # fmt: skip
    return by_x


def add_norm(
    residual: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `bodies.add_norm`."""
    stream, flat, width = _rows(residual), _rows(x), x.shape[-1]
    y = torch.empty_like(residual, memory_format=torch.contiguous_format)
    rstd = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    _add_norm[(flat.shape[0],)](
        stream, flat, flat if weight is None else weight, flat if scale is None else scale, y, rstd,
        stream.stride(0), flat.stride(0), eps,
        WIDTH=width, WEIGHT=weight is not None, SCALE=scale is not None, **_size(width),
    )  # fmt: skip
    return y, rstd


def add_norm_backward(
    outer: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """See `bodies.add_norm_backward`."""
    g, flat, width = _rows(outer), _rows(x), x.shape[-1]
    by_residual = torch.empty_like(outer, memory_format=torch.contiguous_format)
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    _add_norm_backward[(flat.shape[0],)](
        g, flat, flat if weight is None else weight, flat if scale is None else scale, rstd, by_residual, by_x,
        g.stride(0), flat.stride(0),
        WIDTH=width, WEIGHT=weight is not None, SCALE=scale is not None, **_size(width),
    )  # fmt: skip
    return by_residual, by_x


def rotated(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `bodies.rotated`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, tokens, heads, width = x.shape
    cos, sin = (_angles(angle, batch, tokens) for angle in (cos, sin))
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    rstd = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    _rotated[(batch * tokens * heads,)](
        x, x if weight is None else weight, cos, sin, y, rstd, tokens, heads, *x.stride()[:3], cos.stride(0), eps,
        HALF=width // 2, WEIGHT=weight is not None, **_size(width // 2),
    )  # fmt: skip
    return y, rstd


def rotated_backward(
    outer: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, rstd: Tensor
) -> tuple[Tensor, None]:
    """See `bodies.rotated_backward`; what a gradient by the weight would need is not made."""
    outer = outer if outer.stride(-1) == 1 else outer.contiguous()
    x = x if x.stride(-1) == 1 else x.contiguous()
    batch, tokens, heads, width = x.shape
    cos, sin = (_angles(angle, batch, tokens) for angle in (cos, sin))
    by_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    _rotated_backward[(batch * tokens * heads,)](
        outer, x, x if weight is None else weight, cos, sin, rstd, by_x, tokens, heads,
        *outer.stride()[:3], *x.stride()[:3], cos.stride(0),
        HALF=width // 2, WEIGHT=weight is not None, **_size(width // 2),
    )  # fmt: skip
    return by_x, None


def _angles(angle: Tensor, batch: int, tokens: int) -> Tensor:
    """`[rows, D]`, one row a token of every sequence."""
    return _rows(angle.expand(batch, tokens, angle.shape[-1]))


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `bodies.geglu`."""
    a, b, width = _rows(gate), _rows(up), gate.shape[-1]
    y = torch.empty_like(gate, memory_format=torch.contiguous_format)
    block = min(_PIECE, triton.next_power_of_2(width))
    _geglu[(a.shape[0], triton.cdiv(width, block))](a, b, y, a.stride(0), b.stride(0), width, BLOCK=block)
    return y


def geglu_backward(outer: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `bodies.geglu_backward`."""
    g, a, b, width = _rows(outer), _rows(gate), _rows(up), gate.shape[-1]
    by_gate, by_up, y = (torch.empty_like(gate, memory_format=torch.contiguous_format) for _ in range(3))
    block = min(_PIECE, triton.next_power_of_2(width))
    _geglu_backward[(a.shape[0], triton.cdiv(width, block))](
        g, a, b, by_gate, by_up, y, g.stride(0), a.stride(0), b.stride(0), width, BLOCK=block
    )
    return by_gate, by_up, y


KERNELS: dict[str, Any] = {
    one.__name__: one
    for one in (norm, norm_backward, add_norm, add_norm_backward, rotated, rotated_backward, geglu, geglu_backward)
}
"""By the name of the body each stands for."""
