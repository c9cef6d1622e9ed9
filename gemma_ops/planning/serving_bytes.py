"""Memory that serving takes: the weights as they are loaded, the KV cache, and the engine's workspace.

Sliding layers need the keys of their window only, and layers that share take an earlier layer's: llama.cpp is asked to
keep sliding layers whole (`swa_full`), so that the beginning of a prompt can be read again, and pays for it, unless
`serve.window_cache` is set: then it keeps the window and one batch (llama.cpp, llama-kv-cache-iswa.cpp). transformers
and vLLM keep no more than the window.
"""

from __future__ import annotations

from dataclasses import dataclass

from gemma_ops.family.formats import BITS, CACHE_BITS, TABLE_TYPE, CacheName, Engine, Gguf, TensorType
from gemma_ops.family.shape import Shape
from gemma_ops.planning.kv_cache import kv_bytes, kv_layers

_BATCH = 512
"""Tokens that llama.cpp computes at once (`n_ubatch`): its workspace holds their widest values."""
_BASE = 64e6
"""Bytes of the process itself, its interpreter and library."""
_TORCH = 600e6
"""Bytes of a process that has imported torch and transformers (measured: 560 MB with nano)."""
_VLLM = 3e9
"""Bytes of vLLM's three processes (measured: 3.0 GB with nano on a CPU; about what graphs and buffers take of a
GPU)."""
_MASK = 4
"""Bytes of the attention mask for each token of the batch and each of the context."""


@dataclass(frozen=True)
class ServingBytes:
    """What a served model takes in memory, in bytes."""

    weights: float
    cache: float
    """Bytes of the KV cache of all slots."""
    window_cache: float
    """Bytes of the KV cache if sliding layers cached no more than their window."""
    workspace: float

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.workspace

    def times(self, count: int) -> ServingBytes:
        """Return the bytes of so many replicas. Each is counted whole, although processes share the pages of weights
        that llama.cpp maps as they lie in the file: some types it lays out anew for the processor."""
        return ServingBytes(count * self.weights, count * self.cache, count * self.window_cache, count * self.workspace)


def gguf_bytes(shape: Shape, form: Gguf, table_type: TensorType = TABLE_TYPE) -> float:
    """Return the bytes of a GGUF file of the language model: most weights in the format's type, per-layer projections
    no coarser than `TABLE_TYPE`, embedding tables no coarser than `table_type`, norms in 32 bits."""
    count = shape.counts()
    tables = count.embedding + count.per_layer_table
    bulk = count.text - tables - count.per_layer_linears - count.norms
    coarse = tables * max(form.bits, BITS[table_type]) + count.per_layer_linears * max(form.bits, BITS[TABLE_TYPE])
    return (bulk * form.bits + coarse + count.norms * BITS["F32"]) / 8


def bytes_per_token(shape: Shape, bits: float, tokens: int) -> float:
    """Return the bytes that are read for one more token after `tokens` others: the weights it multiplies with, of
    `bits` each, and its sequence's KV cache. Tables are looked up; of the experts only the chosen are read."""
    count = shape.counts()
    coarse = count.embedding + count.per_layer_linears
    bulk = shape.active_per_token() - coarse
    weights = (bulk * bits + coarse * max(bits, BITS[TABLE_TYPE])) / 8
    return weights + kv_bytes([(layer.window, layer.bytes_per_token) for layer in kv_layers(shape)], tokens)


def serving_bytes(
    shape: Shape, weights: float, *, slots: int, context: int, windowed: bool = False, cache: CacheName = "f16"
) -> ServingBytes:
    """Return the memory of llama.cpp for a file of `weights` bytes, with `slots` sequences of `context` tokens;
    `windowed`: sliding layers cache their window only."""
    widest = max([*(layer.ffn for layer in shape.layers), shape.hidden])
    workspace = _BASE + 4.0 * _BATCH * (4 * widest + 2 * max(layer.query_width for layer in shape.layers))
    workspace += 4.0 * shape.vocab * slots + _MASK * _BATCH * context
    layers = [(layer.window and layer.window + _BATCH, layer.bytes_per_token) for layer in kv_layers(shape)]
    share = CACHE_BITS[cache] / CACHE_BITS["f16"]
    kept = share * slots * kv_bytes(layers, context)
    whole = share * slots * kv_bytes([(None, size) for _, size in layers], context)
    return ServingBytes(weights, kept if windowed else whole, kept, workspace)


def checkpoint_bytes(shape: Shape, *, towers: bool = False) -> float:
    """Return the bytes of a checkpoint's parameters as they are loaded, 16 bits each: the language model's, or those of
    `towers` too."""
    count = shape.counts()
    return (count.text + (count.vision + count.audio if towers else 0)) * BITS["BF16"] / 8


def checkpoint_serving_bytes(
    shape: Shape, weights: float, *, slots: int, context: int, engine: Engine = "transformers"
) -> ServingBytes:
    """Return the memory of transformers or vLLM for `weights` bytes, with `slots` sequences of `context` tokens; at
    most one whole prompt is processed at a time."""
    widest = max([*(layer.ffn for layer in shape.layers), shape.hidden])
    widths = 4 * widest + 2 * max(layer.query_width for layer in shape.layers)
    workspace = (_VLLM if engine == "vLLM" else _TORCH) + BITS["BF16"] / 8 * context * widths + 4.0 * shape.vocab
    kept = slots * kv_bytes([(layer.window, layer.bytes_per_token) for layer in kv_layers(shape)], context)
    return ServingBytes(weights, kept, kept, workspace)
