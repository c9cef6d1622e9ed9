"""Attention of packed rows with heads of 512 on Hopper, forward and backward, by Triton kernels.

No shape or grid depends on the documents and nothing waits for the device, so a CUDA graph can hold it: a block of
queries walks the keys from where the document of its first token begins, a block of keys the queries up to where that
of its last token ends. The gradients by key and value are sums over queries in a fixed order: the same every time.

What decides the shapes is one multiprocessor: 64 x 512 float32 sums are half of its registers, and 64 x 512 bfloat16
numbers 64 of its 227 KB. So keys and values have a kernel each, which makes scores again (8 products in all where 5
would do with twice the registers), and all kernels walk tiles of 32. What Triton 3.6 and `ptxas -v` for sm_90 say,
eight warps, 255 registers a thread, no wgmma serialized, over the heads of the four models: `forward` 216 KB of shared
memory, 28 to 88 bytes of a thread spilled; `by_query` 224 KB, 120 to 152; `by_key` 224 KB, 96 to 144; `by_value` 200
KB, none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import attention_hopper_triton
from gemma_ops.modeling.triton_launch import launch

WIDTHS = (128, 256, 512)
"""Widths of heads that the kernels take."""
SHARED = 230_000
"""Bytes of shared memory of a block that heads of 512 need."""
LOG2E = 1.4426950408889634

Blocks = tuple[int, int, int, int]
FORWARD: Blocks = (64, 32, 8, 2)
"""Tile of the forward pass: rows (a query of one head each), keys, warps and stages."""
QUERY: Blocks = (64, 32, 8, 2)
KEY: Blocks = (32, 64, 8, 2)
VALUE: Blocks = (32, 64, 8, 2)
PROGRAMS = 1024
"""Fewest programs that the gradients by key and value are spread over, by heads of a group, while there are any. The
longest documents decide: a key block at the start of one of 2,048 tokens has four times the work of the average."""


def takes(query: Tensor) -> bool:
    """True if the kernels take queries of this width on their device."""
    return query.shape[-1] in WIDTHS and fits_hopper(query.device)


@cache
def fits_hopper(device: torch.device) -> bool:
    """True if `device` is a Hopper with the shared memory that heads of 512 in bfloat16 need."""
    if device.type != "cuda":
        return False
    properties = torch.cuda.get_device_properties(device)
    shared: int = getattr(properties, "shared_memory_per_block_optin", 0)
    return properties.major == 9 and shared >= SHARED


def attend(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, stops: Tensor, scale: float) -> Tensor:
    """Map `query [T, H, D]`, `key` and `value [T, K, D]` to `[T, H, D]`; token i sees those from `starts[i]` to itself.

    `starts` and `stops [T]` int32, on the device: the first token of each token's document and one past its last.
    bfloat16 or float16; float32 is for tests (at 512 it needs more shared memory than there is).
    """
    if query.shape[-1] not in WIDTHS:
        raise ValueError(f"heads of {query.shape[-1]}, the kernels take {WIDTHS}")
    found: Tensor = _Wide.apply(query, key, value, starts, stops, scale)
    return found


class _Wide(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, stops: Tensor, scale: float
    ) -> Tensor:
        query, key, value = (_adjacent(states) for states in (query, key, value))
        out, lse = forward(query, key, value, starts, scale)
        ctx.save_for_backward(query, key, value, starts, stops, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        query, key, value, starts, stops, out, lse = ctx.saved_tensors
        outer, needed = _adjacent(outer), ctx.needs_input_grad
        by_query, delta = query_gradient(outer, query, key, value, starts, out, lse, ctx.scale)
        by_key = key_gradient(outer, query, key, value, stops, lse, delta, ctx.scale) if needed[1] else None
        by_value = value_gradient(outer, query, key, stops, lse, ctx.scale) if needed[2] else None
        return by_query, by_key, by_value, None, None, None


def forward(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output and `lse [T, H]` float32, the logarithm to base 2 of each softmax's sum."""
    (tokens, heads, width), groups = query.shape, key.shape[1]
    rows, keys, warps, stages = FORWARD
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    lse = query.new_empty((tokens, heads), dtype=torch.float32)
    group = heads // groups
    numbers = tokens, *_strides(query, key, value), scale * LOG2E
    constants = width, heads, group, rows, keys, _precision(query)
    grid = -(-tokens * group // rows), groups, 1
    launch(
        attention_hopper_triton.forward,
        grid,
        (query, key, value, starts, out, lse),
        numbers,
        constants,
        warps,
        num_stages=stages,
    )
    return out, lse


def query_gradient(
    outer: Tensor, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the gradient by query, and `delta [T, H]` float32, the product of each output with its gradient."""
    (tokens, heads, width), groups = query.shape, key.shape[1]
    rows, keys, warps, stages = QUERY
    by_query, delta = torch.empty_like(out), torch.empty_like(lse)
    group = heads // groups
    numbers = tokens, *_strides(query, key, value, outer), scale * LOG2E, scale
    constants = width, heads, group, rows, keys, _precision(query)
    pointers = query, key, value, starts, out, outer, lse, delta, by_query
    launch(
        attention_hopper_triton.by_query,
        (-(-tokens * group // rows), groups, 1),
        pointers,
        numbers,
        constants,
        warps,
        num_stages=stages,
    )
    return by_query, delta


def key_gradient(
    outer: Tensor, query: Tensor, key: Tensor, value: Tensor, stops: Tensor, lse: Tensor, delta: Tensor, scale: float
) -> Tensor:
    """Return the gradient by key."""
    rows, keys, warps, stages = KEY
    parts, grid, own = _parts(query, key, keys)
    numbers = query.shape[0], *_strides(query, key, value, outer), scale * LOG2E, scale
    constants = query.shape[2], query.shape[1], own, parts.shape[0], rows, keys, _precision(query)
    pointers = query, key, value, stops, outer, lse, delta, parts
    launch(attention_hopper_triton.by_key, grid, pointers, numbers, constants, warps, num_stages=stages)
    return _sum(parts, key)


def value_gradient(outer: Tensor, query: Tensor, key: Tensor, stops: Tensor, lse: Tensor, scale: float) -> Tensor:
    """Return the gradient by value."""
    rows, keys, warps, stages = VALUE
    parts, grid, own = _parts(query, key, keys)
    numbers = query.shape[0], *_strides(query, key, outer), scale * LOG2E
    constants = query.shape[2], query.shape[1], own, parts.shape[0], rows, keys, _precision(query)
    launch(
        attention_hopper_triton.by_value,
        grid,
        (query, key, stops, outer, lse, parts),
        numbers,
        constants,
        warps,
        num_stages=stages,
    )
    return _sum(parts, key)


def _parts(query: Tensor, key: Tensor, keys: int) -> tuple[Tensor, tuple[int, int, int], int]:
    """Return space for a sum for each part of a group's heads, the grid, and the heads of a part.

    Several parts are float32: 134 MB at 1,024 programs, until they are added.
    """
    tokens, groups, width = key.shape
    group, blocks = query.shape[1] // groups, -(-tokens // keys)
    splits = next(n for n in range(1, group + 1) if group % n == 0 and (n * groups * blocks >= PROGRAMS or n == group))
    dtype = key.dtype if splits == 1 else torch.float32
    return key.new_empty((splits, tokens, groups, width), dtype=dtype), (blocks, groups * splits, 1), group // splits


def _sum(parts: Tensor, like: Tensor) -> Tensor:
    """Return the sum over parts in the type of `like`, rounded once."""
    if parts.shape[0] == 1:
        return parts[0]
    total = parts.new_empty(parts.shape[1:], dtype=like.dtype)
    block = 1024
    grid = -(-total.numel() // block), 1, 1
    launch(attention_hopper_triton.add, grid, (parts, total), (total.numel(),), (parts.shape[0], block), 4)
    return total


def _adjacent(states: Tensor) -> Tensor:
    """Return the tensor with adjacent numbers, copied only where it must be."""
    return states if states.stride(-1) == 1 else states.contiguous()


def _strides(*states: Tensor) -> list[int]:
    return [stride for one in states for stride in one.stride()[:2]]


def _precision(states: Tensor) -> str:
    """Return the precision of float32 products: exact, not the matrix units' tf32."""
    return "ieee" if states.dtype == torch.float32 else "tf32"
