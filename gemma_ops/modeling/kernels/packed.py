"""Attention of whole packed rows on a GPU: one call for all documents of a row.

Heads up to 256 wide (sliding layers) go through PyTorch's own flash kernel with variable lengths and a window. Global
layers have heads of 512, which no flash kernel takes: on a Hopper they have kernels of our own (`wide`). Elsewhere PyTorch's
memory-efficient kernel takes them over all documents at once, well forward, but backward it walks each document and head
alone: with the 8 heads of E2B and E4B most of an H200 waits for the longest (8.6 ms a layer, 0.3 forward). There the
backward pass is batched products over tiles of documents, which reach the matrix units though they write their scores
(4.9 ms for both directions of 8,192 tokens); with 16 heads and more the kernel is ahead (5.5 against 15.2 ms at 31B's).
`wider` chooses. Bounds are Python numbers; their tensor is made once for a forward pass. Nothing here waits for the
device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gemma_ops.modeling.kernels import tiles
from gemma_ops.modeling.kernels.pattern import Pattern
from gemma_ops.modeling.kernels.slots import Fixed

FLASH_WIDTH = 256
"""Widest heads of the flash kernel."""
LONG = 2048
"""Tokens of a document from which tiles are ahead whatever the heads: 18 against 47 ms for one of 8,192 tokens."""
FEW = 8
"""Heads up to which the memory-efficient kernel's backward pass leaves a GPU idle."""

HALF = (torch.bfloat16, torch.float16)
"""What the kernels compute in."""

Form = Callable[[Tensor, Tensor, Tensor, Pattern, int | None, float], Tensor]


def attend(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float | None
) -> Tensor | None:
    """`query [B, H, T, D]`, `key` and `value [B, K, T, D]` -> `[B, H, T, D]`; None where no form fits (`banded` does)."""
    form = choose(query, key, pattern, window)
    if form is None:
        return None
    batch, heads, length, width = query.shape
    q, k, v = (states.transpose(1, 2).reshape(batch * length, -1, width) for states in (query, key, value))
    out = form(q, k, v, pattern, window, width**-0.5 if scale is None else scale)
    return out.view(batch, length, heads, width).transpose(1, 2)


def choose(query: Tensor, key: Tensor, pattern: Pattern, window: int | None) -> Form | None:
    """The form for these shapes on this device."""
    if (
        query.device.type != "cuda"
        or pattern.cuts(key.shape[0], key.shape[2]) is None
        or query.shape[2] != key.shape[2]
    ):
        return None
    half = query.dtype in HALF
    if half and query.shape[-1] <= FLASH_WIDTH:
        return flash
    longest = pattern.longest(key.shape[0], key.shape[2])
    if window is not None and window < longest:
        return None
    if half and (kernels := _wide()) and kernels.takes(query):
        return hopper
    if isinstance(pattern, Fixed):  # the others lay out batches by the lengths of documents
        return efficient
    return wider(query.shape[1], longest)


def flash(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """`query [T, H, D]`, `key` and `value [T, K, D]`, bfloat16, D up to 256, on CUDA."""
    bounds, longest = pattern.bounds(query.device)
    found: Tensor = _Flash.apply(query, key, value, bounds, longest, -1 if window is None else window - 1, scale)
    return found


def efficient(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """The same for any width and type, without window."""
    bounds, longest = pattern.bounds(query.device)
    found: Tensor = _Efficient.apply(query, key, value, bounds, longest, scale)
    return found


def hopper(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """The same by `wide`."""
    found: Tensor = _wide().attend(query, key, value, *pattern.ends(query.device), scale)
    return found


def tiled(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """The same, by batched products."""
    return tiles.attend(query, key, value, pattern.jobs(query.shape[1], query.device), scale, pattern.run)


def mixed(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """`efficient` forward, `tiled` backward."""
    bounds, longest = pattern.bounds(query.device)
    places, jobs = pattern.places(query.device), pattern.jobs(query.shape[1], query.device)
    found: Tensor = _Mixed.apply(query, key, value, bounds, longest, scale, places, jobs, pattern.run)
    return found


@cache
def _wide() -> Any:
    """The kernels for heads of 512; None without Triton."""
    try:
        from gemma_ops.modeling.kernels import wide
    except ImportError:
        return None
    return wide


def wider(heads: int, longest: int) -> Form:
    """The form for heads beyond `FLASH_WIDTH`, in documents of at most `longest` tokens."""
    if longest > LONG:
        return tiled
    return mixed if heads <= FEW else efficient


class _Flash(torch.autograd.Function):  # type: ignore[misc]
    """PyTorch's flash attention with cumulative lengths; `left` keys are seen before the own one, -1 for all.

    Source of the operators' signatures: native_functions.yaml, the same arguments in torch 2.11 and 2.13.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, left: int, scale: float
    ) -> Tensor:
        out, lse, state, unused, _ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            bounds,
            bounds,
            longest,
            longest,
            0.0,
            True,
            False,
            scale=scale,
            window_size_left=left,
            window_size_right=0,
        )
        ctx.save_for_backward(query, key, value, out, lse, bounds, state, unused)
        ctx.longest, ctx.left, ctx.scale = longest, left, scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        query, key, value, out, lse, bounds, state, unused = ctx.saved_tensors
        gradients = torch.ops.aten._flash_attention_backward(
            outer.contiguous(),
            query,
            key,
            value,
            out,
            lse,
            bounds,
            bounds,
            ctx.longest,
            ctx.longest,
            0.0,
            True,
            state,
            unused,
            scale=ctx.scale,
            window_size_left=ctx.left,
            window_size_right=0,
        )
        return *gradients, None, None, None, None


class _Efficient(torch.autograd.Function):  # type: ignore[misc]
    """PyTorch's memory-efficient attention with cumulative lengths. Keys of a group are read in place by its heads."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float
    ) -> Tensor:
        out, lse, seed, offset, _, _ = torch.ops.aten._efficient_attention_forward(
            query[None],
            _shared(key, query.shape[1]),
            _shared(value, query.shape[1]),
            None,
            bounds,
            bounds,
            longest,
            longest,
            0.0,
            1,  # causal
            True,
            scale=scale,
        )
        ctx.save_for_backward(query, key, value, out, lse, bounds, seed, offset)
        ctx.longest, ctx.scale = longest, scale
        return out[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        query, key, value, out, lse, bounds, seed, offset = ctx.saved_tensors
        by_query, by_key, by_value, _ = torch.ops.aten._efficient_attention_backward(
            outer.contiguous()[None],
            query[None],
            _shared(key, query.shape[1]),
            _shared(value, query.shape[1]),
            None,
            out,
            bounds,
            bounds,
            ctx.longest,
            ctx.longest,
            lse,
            0.0,
            seed,
            offset,
            1,
            False,
            scale=ctx.scale,
        )
        groups = (*key.shape[:2], -1, key.shape[2])
        return by_query[0], by_key.view(groups).sum(2), by_value.view(groups).sum(2), None, None, None


class _Mixed(torch.autograd.Function):  # type: ignore[misc]
    """The forward pass of `_Efficient` with the backward pass of `tiles`; `places` say where each token's sum is."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bounds: Tensor,
        longest: int,
        scale: float,
        places: tuple[Tensor, Tensor],
        jobs: Any,
        run: Any,
    ) -> Tensor:
        heads = query.shape[1]
        out, lse, _, _, _, _ = torch.ops.aten._efficient_attention_forward(
            query[None], _shared(key, heads), _shared(value, heads), None, bounds, bounds, longest, longest, 0.0, 1, True,
            scale=scale,
        )  # fmt: skip
        document, offset = places
        ctx.save_for_backward(query, key, value, out[0], lse[document, :, offset].unsqueeze(-1))
        ctx.jobs, ctx.scale, ctx.run = jobs, scale, run
        return out[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        found = tiles.gradients(outer, query, key, value, out, lse, ctx.jobs, ctx.scale, ctx.run)
        return *found, None, None, None, None, None, None


def _shared(states: Tensor, heads: int) -> Tensor:
    """`[T, K, D]` as `[1, T, heads, D]`; where there is one head of keys, a view, because then no stride is needed."""
    tokens, own, width = states.shape
    if own == heads:
        return states[None]
    if own == 1:
        return states.expand(tokens, heads, width)[None]
    return states.repeat_interleave(heads // own, 1)[None]
