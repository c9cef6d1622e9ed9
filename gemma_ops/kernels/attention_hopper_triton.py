"""Triton kernels of `attention_hopper`, whose arguments are tensors, then numbers, then constants.

`ROWS` are queries, a row for each head of a token, so that the heads of a group read a key once. Sums are float32 and
results are rounded once. What lies past the end is read from the last token and masked: cheaper than masked loads.

Three things look odd and are for the compiler (Triton 3.6, sm_90; seen in its TTGIR, PTX and ptxas' report):
- Scores are made in an `if` that is always taken. A product that feeds another is given all warps along its rows; with
  eight warps and 64 rows two warpgroups would make the same scores. An `if` hides what follows: they share the columns.
  The two conditions of a loop differ, because equal ones are merged, and then a tile is waited for too early.
- An `if` that is never taken touches the sum. Otherwise the last product of a turn stays under way in the next, and
  ptxas runs all products one by one (its C7515).
- `by_query` and `by_key` keep 128 KB of tiles, so of their streams only one fits twice into shared memory and is copied
  ahead. The other is read ahead into registers, and used first: the space of its tile then serves what follows.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def queries(WIDTH: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return this program's block and group, the numbers of a head, its first token, and of each row the token and
    head. Blocks at the end come first: they see most keys."""
    block, group = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    at = tl.arange(0, WIDTH)
    origin = block * ROWS // GROUP
    flat = block * ROWS + tl.arange(0, ROWS)
    return block, group, at, origin, flat // GROUP, group * GROUP + flat % GROUP


@triton.jit  # type: ignore[untyped-decorator]
def keys(WIDTH: tl.constexpr, SPLITS: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return this program's first key, part of the heads and group, and how many groups there are; the numbers of a
    head; the first key in 64 bits; all keys."""
    begin, part = tl.program_id(0) * KEYS, tl.program_id(1)
    group, groups = part // SPLITS, tl.num_programs(1) // SPLITS
    at, far = tl.arange(0, WIDTH), begin.to(tl.int64)
    return begin, part, group, groups, at, far, begin + tl.arange(0, KEYS)


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def forward(  # type: ignore[no-untyped-def]
    q, k, v, starts, out, lse, tokens, qt, qh, kt, kh, vt, vh, scale,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, group, at, origin, token, head = queries(WIDTH, GROUP, ROWS)
    inside, safe = token < tokens, tl.minimum(token, tokens - 1)
    begin = tl.load(starts + safe)
    rows = (safe - origin)[:, None] * qt + head[:, None] * qh + at[None, :]
    query = tl.load(q + origin.to(tl.int64) * qt + rows)
    top = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    start, stop = tl.load(starts + origin), tl.minimum((block * ROWS + ROWS - 1) // GROUP + 1, tokens)
    k += start.to(tl.int64) * kt + group * kh
    v += start.to(tl.int64) * vt + group * vh
    for first in tl.range(start, stop, KEYS):
        place = first + tl.arange(0, KEYS)
        near = tl.minimum(place, tokens - 1) - start
        key = tl.load(k + near[:, None] * kt + at[None, :])
        value = tl.load(v + near[:, None] * vt + at[None, :])
        score = tl.zeros([ROWS, KEYS], tl.float32)
        if tokens > 0:
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        seen = (place[None, :] >= begin[:, None]) & (place[None, :] <= token[:, None])
        score = tl.where(seen, score * scale, -1e30)
        # A row that sees nothing yet sums ones; its first real score shrinks them to zero.
        higher = tl.maximum(top, tl.max(score, 1))
        likely = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(likely, 1)
        acc = tl.dot(likely.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
        top = higher
    row = (safe - origin) * HEADS + head
    lse += origin.to(tl.int64) * HEADS
    out += origin.to(tl.int64) * HEADS * WIDTH
    tl.store(lse + row, top + tl.log2(total), mask=inside)
    found = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + row[:, None] * WIDTH + at[None, :], found, mask=inside[:, None])


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def by_query(  # type: ignore[no-untyped-def]
    q, k, v, starts, out, outer, lse, delta, target, tokens, qt, qh, kt, kh, vt, vh, gt, gh, scale, factor,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, group, at, origin, token, head = queries(WIDTH, GROUP, ROWS)
    inside, safe = token < tokens, tl.minimum(token, tokens - 1)
    begin = tl.load(starts + safe)
    row = (safe - origin) * HEADS + head
    far = origin.to(tl.int64)
    query = tl.load(q + far * qt + (safe - origin)[:, None] * qt + head[:, None] * qh + at[None, :])
    grad = tl.load(outer + far * gt + (safe - origin)[:, None] * gt + head[:, None] * gh + at[None, :])
    own = tl.load(out + far * HEADS * WIDTH + row[:, None] * WIDTH + at[None, :])
    inner = tl.sum(own.to(tl.float32) * grad.to(tl.float32), 1)
    tl.store(delta + far * HEADS + row, inner, mask=inside)
    top = tl.load(lse + far * HEADS + row)
    acc = tl.zeros([ROWS, WIDTH], tl.float32)
    start, stop = tl.load(starts + origin), tl.minimum((block * ROWS + ROWS - 1) // GROUP + 1, tokens)
    k += start.to(tl.int64) * kt + group * kh
    v += start.to(tl.int64) * vt + group * vh
    near = tl.minimum(start + tl.arange(0, KEYS), tokens - 1) - start
    value = tl.load(v + near[:, None] * vt + at[None, :])
    for first in tl.range(start, stop, KEYS):
        place = first + tl.arange(0, KEYS)
        near = tl.minimum(place, tokens - 1) - start
        key = tl.load(k + near[:, None] * kt + at[None, :])
        score, back = tl.zeros([ROWS, KEYS], tl.float32), tl.zeros([ROWS, KEYS], tl.float32)
        if tokens > 0:
            back = tl.dot(grad, tl.trans(value), input_precision=PRECISION)
        near = tl.minimum(place + KEYS, tokens - 1) - start
        value = tl.load(v + near[:, None] * vt + at[None, :])
        if tokens > 1 - HEADS:
            score = tl.dot(query, tl.trans(key), input_precision=PRECISION)
        seen = (place[None, :] >= begin[:, None]) & (place[None, :] <= token[:, None])
        likely = tl.where(seen, tl.exp2(score * scale - top[:, None]), 0.0)
        change = likely * (back - inner[:, None])
        if tokens <= 0:
            acc = acc * scale
        acc = tl.dot(change.to(key.dtype), key, acc, input_precision=PRECISION)
    target += far * HEADS * WIDTH
    tl.store(target + row[:, None] * WIDTH + at[None, :], (acc * factor).to(target.dtype.element_ty), inside[:, None])


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def by_key(  # type: ignore[no-untyped-def]
    q, k, v, stops, outer, lse, delta, target, tokens, qt, qh, kt, kh, vt, vh, gt, gh, scale, factor,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, OWN: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    begin, part, group, groups, at, far, place = keys(WIDTH, SPLITS, KEYS)
    safe = tl.minimum(place, tokens - 1)
    end = tl.load(stops + safe)
    key = tl.load(k + far * kt + group * kh + (safe - begin)[:, None] * kt + at[None, :])
    value = tl.load(v + far * vt + group * vh + (safe - begin)[:, None] * vt + at[None, :])
    acc = tl.zeros([KEYS, WIDTH], tl.float32)
    stop = tl.load(stops + tl.minimum(begin + KEYS, tokens) - 1) - begin
    q += far * qt + part * OWN * qh
    outer += far * gt + part * OWN * gh
    lse += far * HEADS + part * OWN
    delta += far * HEADS + part * OWN
    flat = tl.arange(0, ROWS)
    near, head = tl.minimum(flat // OWN, tokens - 1 - begin)[:, None], (flat % OWN)[:, None]
    grad = tl.load(outer + near * gt + head * gh + at[None, :])
    for first in tl.range(0, stop * OWN, ROWS):
        flat = first + tl.arange(0, ROWS)
        token = begin + flat // OWN
        near, head = tl.minimum(flat // OWN, tokens - 1 - begin), flat % OWN
        query = tl.load(q + near[:, None] * qt + head[:, None] * qh + at[None, :])
        top = tl.load(lse + near * HEADS + head)
        inner = tl.load(delta + near * HEADS + head)
        score, back = tl.zeros([KEYS, ROWS], tl.float32), tl.zeros([KEYS, ROWS], tl.float32)
        if tokens > 0:
            back = tl.dot(value, tl.trans(grad), input_precision=PRECISION)
        flat += ROWS
        near, head = tl.minimum(flat // OWN, tokens - 1 - begin)[:, None], (flat % OWN)[:, None]
        grad = tl.load(outer + near * gt + head * gh + at[None, :])
        if tokens > 1 - HEADS:
            score = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        seen = (place[:, None] <= token[None, :]) & (token[None, :] < end[:, None])
        likely = tl.where(seen, tl.exp2(score * scale - top[None, :]), 0.0)
        change = likely * (back - inner[None, :])
        if tokens <= 0:
            acc = acc * scale
        acc = tl.dot(change.to(query.dtype), query, acc, input_precision=PRECISION)
    target += ((part % SPLITS) * tokens.to(tl.int64) + far) * groups * WIDTH + group * WIDTH
    spot = target + (safe - begin)[:, None] * groups * WIDTH + at[None, :]
    tl.store(spot, (acc * factor).to(target.dtype.element_ty), mask=(place < tokens)[:, None])


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def by_value(  # type: ignore[no-untyped-def]
    q, k, stops, outer, lse, target, tokens, qt, qh, kt, kh, gt, gh, scale,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, OWN: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    begin, part, group, groups, at, far, place = keys(WIDTH, SPLITS, KEYS)
    safe = tl.minimum(place, tokens - 1)
    end = tl.load(stops + safe)
    key = tl.load(k + far * kt + group * kh + (safe - begin)[:, None] * kt + at[None, :])
    acc = tl.zeros([KEYS, WIDTH], tl.float32)
    stop = tl.load(stops + tl.minimum(begin + KEYS, tokens) - 1) - begin
    q += far * qt + part * OWN * qh
    outer += far * gt + part * OWN * gh
    lse += far * HEADS + part * OWN
    for first in tl.range(0, stop * OWN, ROWS):
        flat = first + tl.arange(0, ROWS)
        token, head = begin + flat // OWN, flat % OWN
        near = tl.minimum(flat // OWN, tokens - 1 - begin)
        query = tl.load(q + near[:, None] * qt + head[:, None] * qh + at[None, :])
        grad = tl.load(outer + near[:, None] * gt + head[:, None] * gh + at[None, :])
        top = tl.load(lse + near * HEADS + head)
        score = tl.zeros([KEYS, ROWS], tl.float32)
        if tokens > 0:
            score = tl.dot(key, tl.trans(query), input_precision=PRECISION)
        seen = (place[:, None] <= token[None, :]) & (token[None, :] < end[:, None])
        likely = tl.where(seen, tl.exp2(score * scale - top[None, :]), 0.0)
        if tokens <= 0:
            acc = acc * scale
        acc = tl.dot(likely.to(grad.dtype), grad, acc, input_precision=PRECISION)
    target += ((part % SPLITS) * tokens.to(tl.int64) + far) * groups * WIDTH + group * WIDTH
    spot = target + (safe - begin)[:, None] * groups * WIDTH + at[None, :]
    tl.store(spot, acc.to(target.dtype.element_ty), mask=(place < tokens)[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def add(parts, target, numbers, SPLITS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numbers
    found = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        found += tl.load(parts + split * numbers.to(tl.int64) + at, mask=inside, other=0.0)
    tl.store(target + at, found.to(target.dtype.element_ty), mask=inside)
