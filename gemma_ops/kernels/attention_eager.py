"""Attention of spans in plain PyTorch: causal or within a window, at a cost of length times window.

A sliding layer is computed block of queries by block of queries, each against the keys its window reaches. Blocks are a
loop, not a batch: measured on a CPU (bfloat16, window 512), looping over blocks of 256 is 1.1-1.3 times as fast as one
batched call over an unfolded view and needs no padding, and 1.7 (2,048 tokens) to 4.5 times (4,096) as fast as a masked
square. Keys and values are cut by `split`, whose gradient is one concatenation: a slice's would be a row of zeros each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from gemma_ops.kernels import attention_packed
from gemma_ops.kernels.attention_spans import Pattern, Span
from gemma_ops.kernels.graphs_inputs import Fixed

BLOCK = 256
"""Queries computed together on a sliding layer."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float | None, dropout: float
) -> Tensor:
    """Map `query [B, H, Q, D]`, `key` and `value [B, K, S, D]` to `[B, H, Q, D]`; queries outside of all spans get
    zeros."""
    if dropout == 0:
        out = attention_packed.attend(query, key, value, pattern, window, scale)
        if out is not None:
            return out
    if isinstance(pattern, Fixed):
        raise TypeError("no kernel takes documents whose bounds only the device knows, for these heads and types")
    batch = query.shape[0]
    per_row = [[span for span in pattern.spans if span.row == row] for row in range(batch)]
    shapes = {tuple((span.q0, span.q1, span.k0, span.k1) for span in spans) for spans in per_row}
    if len(shapes) == 1 and pattern.images is None:
        return _row(query, key, value, per_row[0], pattern, window, scale, dropout)
    rows = []
    for row, spans in enumerate(per_row):
        one = slice(row, row + 1)
        rows.append(_row(query[one], key[one], value[one], spans, pattern, window, scale, dropout))
    return torch.cat(rows)


def _row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[Span],
    pattern: Pattern,
    window: int | None,
    scale: float | None,
    dropout: float,
) -> Tensor:
    """Compute all spans of rows that share them."""
    pieces = []
    parts = zip(
        spans,
        _cut(query, [(span.q0, span.q1) for span in spans]),
        _cut(key, [(span.k0, span.k1) for span in spans]),
        _cut(value, [(span.k0, span.k1) for span in spans]),
        strict=True,
    )
    done = 0
    for span, q, k, v in parts:
        if span.q0 > done:
            pieces.append(query.new_zeros(*query.shape[:2], span.q0 - done, value.shape[-1]))
        if pattern.images is not None and pattern.has_image(span):
            pieces.append(sdpa(q, k, v, pattern.mask(span, window, query.device), scale, dropout))
        else:
            pieces.append(causal(q, k, v, window, scale, dropout))
        done = span.q1
    if done < query.shape[2]:
        pieces.append(query.new_zeros(*query.shape[:2], query.shape[2] - done, value.shape[-1]))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 2)


def _cut(states: Tensor, ranges: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield pieces of `states` along its tokens: by one `split` where the ranges are in order, else by slices."""
    edges, done = [], 0
    for start, stop in ranges:
        if start < done:
            yield from (states[:, :, first:last] for first, last in ranges)
            return
        edges += [start - done, stop - start]
        done = stop
    if done < states.shape[2]:
        edges.append(states.shape[2] - done)
    yield from states.split(edges, 2)[1 : 2 * len(ranges) : 2]


def causal(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float | None, dropout: float) -> Tensor:
    """Compute one span, whose last query sees the last key and `window` keys at most."""
    queries, keys = q.shape[2], k.shape[2]
    limited = window is not None and keys > window
    if queries == keys and not limited:
        return sdpa(q, k, v, None, scale, dropout)
    if queries == 1:
        if limited:
            k, v = k[:, :, -window:], v[:, :, -window:]  # type: ignore[operator]
        return sdpa(q, k, v, None, scale, dropout)
    ahead = keys - queries
    blocks = []
    for start, block in zip(range(0, queries, BLOCK), q.split(BLOCK, 2), strict=True):
        stop = ahead + start + block.shape[2]
        first = max(0, ahead + start - window + 1) if window is not None else 0
        mask = None
        if first or start or ahead or limited:
            mask = _band(block.shape[2], stop - first, window, q.device)
        blocks.append(sdpa(block, k[:, :, first:stop], v[:, :, first:stop], mask, scale, dropout))
    return torch.cat(blocks, 2)


def _band(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return the sliding-window mask, [q, k] booleans aligned at the end."""
    distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(keys, device=device)[None]
    return (distance >= 0) & (distance < window) if window is not None else distance >= 0


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, dropout: float) -> Tensor:
    """Call PyTorch's attention, causal without a mask, on the kernel that is fastest for these shapes.

    On CUDA `enable_gqa` is only known to the flash kernel, which takes neither a mask nor heads wider than 256: with
    either, keys are repeated, because otherwise PyTorch silently takes the kernel that builds the whole square.
    """
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.device.type == "cuda" and (mask is not None or q.shape[-1] > 256):
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        grouped = False
    return functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and q.shape[2] > 1,
        scale=scale,
        enable_gqa=grouped,
    )
