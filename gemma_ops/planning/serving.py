"""Bytes that serving takes: the weights as they lie in the file, the cache of keys and values, and llama.cpp's
workspace.

Sliding layers need the keys of their window only, and layers that share take an earlier layer's: llama.cpp is asked to
keep sliding layers whole (`swa_full`), so that the beginning of a prompt can be read again, and pays for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from gemma_ops.family.formats import BITS, TABLE_TYPE, Gguf
from gemma_ops.family.shape import Shape
from gemma_ops.planning.kv_cache import kv_bytes, kv_layers

_BATCH = 512
"""Tokens that llama.cpp computes at once (`n_ubatch`): its workspace holds their widest values."""
_BASE = 64e6
"""Bytes of the process itself, its interpreter and library."""
_MASK = 4
"""Bytes of the attention mask for each token of the batch and each of the context."""


@dataclass(frozen=True)
class ServingBytes:
    """What a served model takes in memory, in bytes."""

    weights: float
    cache: float
    """Keys and values of all slots."""
    window_cache: float
    """The same, were sliding layers to keep no more than their window."""
    workspace: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.workspace

    def times(self, count: int) -> ServingBytes:
        """What so many replicas take. Each is counted whole, although processes share the pages of weights that
        llama.cpp maps as they lie in the file: some types it lays out anew for the processor."""
        return ServingBytes(count * self.weights, count * self.cache, count * self.window_cache, count * self.workspace)


def gguf_bytes(shape: Shape, form: Gguf) -> float:
    """Bytes of a GGUF file of the language model: its bulk in the format's type, tables and the small matrices beside
    them no coarser than `TABLE_TYPE`, norms in 32 bits."""
    count = shape.counts()
    tables = count.embedding + count.per_layer_table + count.per_layer_linears
    bulk = count.text - tables - count.norms
    return (bulk * form.bits + tables * max(form.bits, BITS[TABLE_TYPE]) + count.norms * BITS["F32"]) / 8


def bytes_per_token(shape: Shape, form: Gguf, tokens: int) -> float:
    """Bytes that one more token reads, behind `tokens` others: the weights it multiplies with and the keys and values
    of its sequence. Tables are looked up; of the experts only the chosen are read."""
    count = shape.counts()
    coarse = count.embedding + count.per_layer_linears
    bulk = shape.active_per_token() - coarse
    weights = (bulk * form.bits + coarse * max(form.bits, BITS[TABLE_TYPE])) / 8
    return weights + kv_bytes([(layer.window, layer.bytes_per_token) for layer in kv_layers(shape)], tokens)


def serving_bytes(shape: Shape, weights: float, *, slots: int, context: int) -> ServingBytes:
    """What llama.cpp takes for a file of `weights` bytes, with `slots` sequences of `context` tokens."""
    widest = max([*(layer.ffn for layer in shape.layers), shape.hidden])
    workspace = _BASE + 4.0 * _BATCH * (4 * widest + 2 * max(layer.query_width for layer in shape.layers))
    workspace += 4.0 * shape.vocab * slots + _MASK * _BATCH * context
    layers = [(layer.window, layer.bytes_per_token) for layer in kv_layers(shape)]
    whole = kv_bytes([(None, size) for _, size in layers], context)
    return ServingBytes(weights, slots * whole, slots * kv_bytes(layers, context), workspace)
