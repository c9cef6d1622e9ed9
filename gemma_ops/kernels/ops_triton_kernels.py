"""Triton kernels of the bodies in `ops_reference`; `ops_triton` calls them. Arguments: tensors, then numbers, then
constants.

A program handles one row, or some heads of tokens; sums are float32, and results are rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def norm(x, w, y, r, stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr):  # type: ignore[no-untyped-def]
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
def norm_backward(g, x, w, r, out, g_stride, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr):  # type: ignore[no-untyped-def]
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
def add_norm(  # type: ignore[no-untyped-def]
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
def add_norm_backward(  # type: ignore[no-untyped-def]
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
def rotated(  # type: ignore[no-untyped-def]
    x, w, cos, sin, y, r, count, tokens, heads, b_stride, t_stride, h_stride, p_stride, eps,
    HALF: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // heads, row % heads
    at = tl.arange(0, BLOCK)[None, :]
    inside = (row < count)[:, None] & (at < HALF)
    start = x + ((token // tokens) * b_stride + (token % tokens) * t_stride + head * h_stride)[:, None] + at
    first = tl.load(start, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(start + HALF, mask=inside, other=0.0).to(tl.float32)
    rstd = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + eps)
    tl.store(r + row, rstd, mask=row < count)
    first, second = first * rstd[:, None], second * rstd[:, None]
    if WEIGHT:
        first = first * tl.load(w + at, mask=at < HALF, other=0.0).to(tl.float32)
        second = second * tl.load(w + HALF + at, mask=at < HALF, other=0.0).to(tl.float32)
    place = (token * p_stride)[:, None] + at
    cos_first = tl.load(cos + place, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + place + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + place, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + place + HALF, mask=inside, other=0.0).to(tl.float32)
    target = y + (row * (2 * HALF))[:, None] + at
    tl.store(target, (first * cos_first - second * sin_first).to(y.dtype.element_ty), mask=inside)
    tl.store(target + HALF, (second * cos_second + first * sin_second).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def rotated_backward(  # type: ignore[no-untyped-def]
    g, x, w, cos, sin, r, out, count, tokens, heads,
    gb_stride, gt_stride, gh_stride, b_stride, t_stride, h_stride, p_stride,
    HALF: tl.constexpr, BLOCK: tl.constexpr, WEIGHT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // heads, row % heads
    batch, place = token // tokens, token % tokens
    at = tl.arange(0, BLOCK)[None, :]
    inside = (row < count)[:, None] & (at < HALF)
    rstd = tl.load(r + row, mask=row < count, other=0.0)[:, None]
    outer = g + (batch * gb_stride + place * gt_stride + head * gh_stride)[:, None] + at
    g_first = tl.load(outer, mask=inside, other=0.0).to(tl.float32)
    g_second = tl.load(outer + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = (token * p_stride)[:, None] + at
    cos_first = tl.load(cos + angle, mask=inside, other=0.0).to(tl.float32)
    cos_second = tl.load(cos + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_first = tl.load(sin + angle, mask=inside, other=0.0).to(tl.float32)
    sin_second = tl.load(sin + angle + HALF, mask=inside, other=0.0).to(tl.float32)
    first = g_first * cos_first + g_second * sin_second
    second = g_second * cos_second - g_first * sin_first
    if WEIGHT:
        first = first * tl.load(w + at, mask=at < HALF, other=0.0).to(tl.float32)
        second = second * tl.load(w + HALF + at, mask=at < HALF, other=0.0).to(tl.float32)
    start = x + (batch * b_stride + place * t_stride + head * h_stride)[:, None] + at
    unit_first = tl.load(start, mask=inside, other=0.0).to(tl.float32) * rstd
    unit_second = tl.load(start + HALF, mask=inside, other=0.0).to(tl.float32) * rstd
    mean = ((tl.sum(first * unit_first, 1) + tl.sum(second * unit_second, 1)) / (2 * HALF))[:, None]
    target = out + (row * (2 * HALF))[:, None] + at
    tl.store(target, ((first - unit_first * mean) * rstd).to(out.dtype.element_ty), mask=inside)
    tl.store(target + HALF, ((second - unit_second * mean) * rstd).to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def gelu_share(x):  # type: ignore[no-untyped-def]
    """Return the sigmoid in `gelu(x) = x * sigmoid(2 u)`, u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit  # type: ignore[untyped-decorator]
def gelu(x):  # type: ignore[no-untyped-def]
    """Return the value and the slope of `gelu`."""
    share = gelu_share(x)
    active = x * share
    return active, share + active * (1.0 - share) * 1.5957691216057308 * (1.0 + 3 * 0.044715 * x * x)


@triton.jit  # type: ignore[untyped-decorator]
def geglu(a, b, y, a_stride, b_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    gate = tl.load(a + row * a_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(b + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + at, (gate * gelu_share(gate) * up).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def geglu_backward(g, a, b, by_a, by_b, y, g_stride, a_stride, b_stride, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    outer = tl.load(g + row * g_stride + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(a + row * a_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(b + row * b_stride + at, mask=inside, other=0.0).to(tl.float32)
    active, slope = gelu(gate)
    place = row * width + at
    tl.store(by_a + place, (outer * up * slope).to(by_a.dtype.element_ty), mask=inside)
    tl.store(by_b + place, (outer * active).to(by_b.dtype.element_ty), mask=inside)
    tl.store(y + place, (active * up).to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def softmax_backward(  # type: ignore[no-untyped-def]
    s, g, top, delta, real, likely, inner, rows, keys, queries, scale, BLOCK: tl.constexpr, REAL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < keys
    last = (row % rows) % queries + (keys - queries)
    place = row * keys + at
    value = tl.load(s + place, mask=inside, other=0.0).to(tl.float32) * scale - tl.load(top + row)
    value = tl.where(at <= last, tl.exp(value), 0.0)
    if REAL:
        value = value * tl.load(real + row)
    outer = tl.load(g + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(likely + place, value.to(likely.dtype.element_ty), mask=inside)
    back = value * (outer - tl.load(delta + row)) * scale
    tl.store(inner + place, back.to(inner.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def weighed_sum(  # type: ignore[no-untyped-def]
    rows, back, weights, y, width, COUNT: tl.constexpr, BLOCK: tl.constexpr, WEIGHED: tl.constexpr
):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    total = tl.zeros([BLOCK], tl.float32)
    for one in tl.static_range(COUNT):
        row = tl.load(back + token * COUNT + one).to(tl.int64)
        value = tl.load(rows + row * width + at, mask=inside, other=0.0).to(tl.float32)
        if WEIGHED:
            value = value * tl.load(weights + token * COUNT + one).to(tl.float32)
        total += value
    tl.store(y + token * width + at, total.to(y.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def weighed_geglu_backward(  # type: ignore[no-untyped-def]
    g, both, weight, by_both, by_weight, width: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    factor = tl.load(weight + row)
    total = tl.zeros([BLOCK], tl.float32)
    for piece in tl.static_range((width + BLOCK - 1) // BLOCK):
        at = piece * BLOCK + tl.arange(0, BLOCK)
        inside = at < width
        outer = tl.load(g + row * width + at, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(both + row * 2 * width + at, mask=inside, other=0.0).to(tl.float32)
        up = tl.load(both + row * 2 * width + width + at, mask=inside, other=0.0).to(tl.float32)
        active, slope = gelu(gate)
        total += outer * active * up
        outer = outer * factor
        tl.store(by_both + row * 2 * width + at, (outer * up * slope).to(by_both.dtype.element_ty), mask=inside)
        tl.store(by_both + row * 2 * width + width + at, (outer * active).to(by_both.dtype.element_ty), mask=inside)
    tl.store(by_weight + row, tl.sum(total, 0))
