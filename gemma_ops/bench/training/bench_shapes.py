"""Shapes that are measured: the five true sizes, text only, and two small enough for a CPU. Free of torch."""

from __future__ import annotations

from typing import Any

from gemma_ops import family
from gemma_ops.errors import ConfigError

_SLIDING, _FULL = "sliding_attention", "full_attention"
_EDGE: dict[str, Any] = {
    "model_type": "gemma4_text",
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_hidden_layers": 10,
    "layer_types": [*[_SLIDING] * 4, _FULL] * 2,
    "num_kv_shared_layers": 5,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 30.0,
    "max_position_embeddings": 8192,
}
"""Dimensions that the small shapes share with E2B: four sliding layers to one global, half of the stack sharing keys
and values and twice as wide inside, per-layer embeddings, soft-capped logits."""

SMALL: dict[str, dict[str, Any]] = {
    "tiny": _EDGE
    | {"vocab_size": 512, "vocab_size_per_layer_input": 512, "hidden_size": 64, "intermediate_size": 128,
       "head_dim": 32, "global_head_dim": 64, "hidden_size_per_layer_input": 8, "sliding_window": 16},
    "cpu": _EDGE
    | {"vocab_size": 262_144, "vocab_size_per_layer_input": 262_144, "hidden_size": 384, "intermediate_size": 1536,
       "head_dim": 64, "global_head_dim": 128, "hidden_size_per_layer_input": 32, "sliding_window": 512},
}  # fmt: skip
"""Small shapes: `tiny` for tests of the benchmark itself, `cpu` with Gemma's whole vocabulary and E2B's window: 214 M
parameters."""
KEYS = (*SMALL, *(key.lower() for key in family.SIZES))


def text_config(size: str, layers: int | None = None) -> dict[str, Any]:
    """Return the text part of a `config.json`, cut to `layers` decoder layers of unchanged shape.

    A cut keeps whole repetitions of the pattern of windows, and the share of layers that share keys and values. Raises
    ConfigError where that can't be.
    """
    if size in SMALL:
        body = dict(SMALL[size])
    else:
        known = {key.lower(): key for key in family.SIZES}
        if size not in known:
            raise ConfigError(f"unknown size {size!r}", f"one of: {', '.join(KEYS)}")
        whole = family.CONFIGS[known[size]]
        body = {"model_type": f"{whole['model_type']}_text", **whole["text_config"]}
    return body if layers is None else body | _cut(body, layers)


def _cut(body: dict[str, Any], layers: int) -> dict[str, Any]:
    count, kinds = body["num_hidden_layers"], list(body["layer_types"])
    period = kinds.index(_FULL) + 1
    if layers % period or not 0 < layers <= count:
        choices = ", ".join(str(n) for n in range(period, count + 1, period))
        raise ConfigError(f"a stack of {count} layers can't be cut to {layers}", f"one of: {choices}")
    shared = body.get("num_kv_shared_layers") or 0
    if shared:
        # A layer that shares needs one of its kind before it: at least one whole period stays unshared.
        shared = min(round(layers * shared / count), layers - period)
    return {"num_hidden_layers": layers, "layer_types": kinds[:layers], "num_kv_shared_layers": shared}
