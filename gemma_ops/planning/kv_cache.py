"""Bytes of the KV cache of a served model: all tokens in layers with full attention, a window in the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gemma_ops.family.shape import Shape

_WIDTH = 2
"""Bytes of one number of the KV cache, 16-bit as engines keep it."""


@dataclass(frozen=True)
class KvLayers:
    """Layers of a model whose KV cache holds the same number of tokens."""

    window: int | None
    """Tokens that the layers cache at most; None where they cache all."""
    bytes_per_token: int
    """KV-cache bytes of one token, over all of these layers."""


def kv_layers(shape: Shape) -> tuple[KvLayers, ...]:
    """Return the layers with a KV cache of their own, by window. Layers that share an earlier one's keep none; those
    whose keys serve as values are counted twice all the same, since an engine may keep both."""
    found: dict[int | None, int] = {}
    for layer in shape.layers:
        if not layer.shares_kv:
            found[layer.window] = found.get(layer.window, 0) + 2 * layer.kv_width * _WIDTH
    return tuple(KvLayers(window, size) for window, size in found.items())


def kv_bytes(layers: Iterable[tuple[int | None, int]], context: int) -> int:
    """Return the KV-cache bytes of `context` tokens, from pairs of (window, bytes per token)."""
    return sum(size * (context if window is None else min(context, window)) for window, size in layers)
