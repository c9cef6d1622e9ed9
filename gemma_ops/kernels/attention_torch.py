"""PyTorch's own varlen attention kernels with gradients: its operators have none by themselves for bounds that are
given as numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import attention_tiled


class Flash(torch.autograd.Function):  # type: ignore[misc]
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


class Efficient(torch.autograd.Function):  # type: ignore[misc]
    """PyTorch's memory-efficient attention with cumulative lengths. Keys of a group are read in place by its heads."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float
    ) -> Tensor:
        out, lse, seed, offset = _efficient(query, key, value, bounds, longest, scale)
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


class Mixed(torch.autograd.Function):  # type: ignore[misc]
    """The forward pass of `Efficient` with the backward pass of `attention_tiled`; `places` say where each token's sum
    is."""

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
        out, lse, _, _ = _efficient(query, key, value, bounds, longest, scale)
        document, offset = places
        ctx.save_for_backward(query, key, value, out[0], lse[document, :, offset].unsqueeze(-1))
        ctx.jobs, ctx.scale, ctx.run = jobs, scale, run
        return out[0]  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        found = attention_tiled.gradients(outer, query, key, value, out, lse, ctx.jobs, ctx.scale, ctx.run)
        return *found, None, None, None, None, None, None


def _efficient(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the output [1, T, H, D], logarithms [documents, H, longest] rounded up, and the state of an unused
    dropout."""
    heads = query.shape[1]
    out, lse, seed, offset, _, _ = torch.ops.aten._efficient_attention_forward(
        query[None],
        _shared(key, heads),
        _shared(value, heads),
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
    return out, lse, seed, offset


def _shared(states: Tensor, heads: int) -> Tensor:
    """Return `[T, K, D]` as `[1, T, heads, D]`; where there is one head of keys, a view, because then no stride is
    needed."""
    tokens, own, width = states.shape
    if own == heads:
        return states[None]
    if own == 1:
        return states.expand(tokens, heads, width)[None]
    return states.repeat_interleave(heads // own, 1)[None]
