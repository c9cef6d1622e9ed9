"""Varlen attention of packed rows on a GPU: one call for all documents of a row.

Heads up to 256 wide (sliding layers) go through PyTorch's own flash kernel with variable lengths and a window. Global
layers have heads of 512, which no flash kernel takes: on a Hopper they have kernels of our own (`attention_hopper`).
Elsewhere PyTorch's memory-efficient kernel takes them over all documents at once, well forward, but backward it walks
each document and head alone: with the 8 heads of E2B and E4B most of an H200 waits for the longest (8.6 ms a layer, 0.3
forward). There the backward pass is batched products over tiles of documents, which reach the matrix units though they
write their scores (4.9 ms for both directions of 8,192 tokens); with 16 heads and more the kernel is ahead (5.5 against
15.2 ms at 31B's). `wider` chooses. Bounds are Python numbers; their tensor is made once for a forward pass. Nothing
here waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gemma_ops.kernels import attention_tiled, attention_torch
from gemma_ops.kernels.attention_spans import Pattern
from gemma_ops.kernels.graphs_inputs import Fixed
from gemma_ops.modeling.triton_launch import kernels

FLASH_WIDTH = 256
"""Widest heads of the flash kernel."""
LONG = 2048
"""Tokens of a document from which the tiled form is faster whatever the heads: 18 against 47 ms for one of 8,192
tokens."""
FEW = 8
"""Heads up to which the memory-efficient kernel's backward pass leaves a GPU idle."""

FAR = 4096
"""Tokens of a document up to which the Hopper kernels are faster than `mixed`: of 8,192 tokens one document takes 13.1
against 10.3 ms with E2B's heads and 56 against 37 with 31B's, documents of 970 at most 1.6 against 6.9 and 5.3 against
27."""

HALF = (torch.bfloat16, torch.float16)
"""Types that the kernels compute in."""

_wide = partial(kernels, "gemma_ops.kernels.attention_hopper")
"""Kernels for heads of 512; None without Triton."""

Form = Callable[[Tensor, Tensor, Tensor, Pattern, int | None, float], Tensor]


def attend(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float | None
) -> Tensor | None:
    """Map `query [B, H, T, D]`, `key` and `value [B, K, T, D]` to `[B, H, T, D]`; None where no form fits
    (`attention_eager` does)."""
    form = choose_kernel(query, key, pattern, window)
    if form is None:
        return None
    batch, heads, length, width = query.shape
    q, k, v = (states.transpose(1, 2).reshape(batch * length, -1, width) for states in (query, key, value))
    out = form(q, k, v, pattern, window, width**-0.5 if scale is None else scale)
    return out.view(batch, length, heads, width).transpose(1, 2)


def choose_kernel(query: Tensor, key: Tensor, pattern: Pattern, window: int | None) -> Form | None:
    """Return the form for these shapes on this device."""
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
    own = half and (found := _wide()) and found.takes(query)
    if isinstance(pattern, Fixed):  # the others lay out batches by the lengths of documents
        return hopper if own else efficient
    if own:
        return hopper if longest <= FAR else mixed
    return wider(query.shape[1], longest)


def steady(heads: int, width: int, longest: int, device: torch.device) -> bool:
    """True if the fastest form for these heads and documents is one whose launches don't depend on the documents."""
    if width <= FLASH_WIDTH or device.type != "cuda":
        return True
    if (own := _wide()) and width in own.WIDTHS and own.fits(device):
        return longest <= FAR
    return heads > FEW and longest <= LONG


def flash(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """Compute attention of `query [T, H, D]`, `key` and `value [T, K, D]`, bfloat16, D up to 256, on CUDA, by the flash
    kernel."""
    bounds, longest = pattern.bounds(query.device)
    found: Tensor = attention_torch.Flash.apply(
        query, key, value, bounds, longest, -1 if window is None else window - 1, scale
    )
    return found


def efficient(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """Compute attention of any width and type, without window, by PyTorch's memory-efficient kernel."""
    bounds, longest = pattern.bounds(query.device)
    found: Tensor = attention_torch.Efficient.apply(query, key, value, bounds, longest, scale)
    return found


def hopper(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """Compute attention by the kernels of `attention_hopper`."""
    found: Tensor = _wide().attend(query, key, value, *pattern.ends(query.device), scale)
    return found


def tiled(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """Compute attention by batched products (`attention_tiled`)."""
    return attention_tiled.attend(query, key, value, pattern.jobs(query.shape[1], query.device), scale, pattern.run)


def mixed(query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, window: int | None, scale: float) -> Tensor:
    """Compute attention with `efficient` forward and `tiled` backward."""
    bounds, longest = pattern.bounds(query.device)
    places, jobs = pattern.places(query.device), pattern.jobs(query.shape[1], query.device)
    found: Tensor = attention_torch.Mixed.apply(query, key, value, bounds, longest, scale, places, jobs, pattern.run)
    return found


def wider(heads: int, longest: int) -> Form:
    """Return the form for heads beyond `FLASH_WIDTH`, in documents of at most `longest` tokens."""
    if longest > LONG:
        return tiled
    return mixed if heads <= FEW else efficient
