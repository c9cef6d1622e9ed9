"""The key-value part of a GGUF file: what llama.cpp must know of a Gemma 4 to run it.

Keys and their meaning: llama.cpp, architecture `gemma4` (gguf-py 0.19, `constants.py`, class `Keys`). No dates, paths
or names of machines: the same checkpoint gives the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gemma_ops import family
from gemma_ops.data.prompt_record import read_prompting
from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint, read_checkpoint_json
from gemma_ops.family import Shape

_ROPE = {
    "full_attention": {"rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
    "sliding_attention": {"rope_theta": 10_000.0},
}  # the defaults of transformers' Gemma4TextConfig


def add_metadata(writer: Any, source: MergedCheckpoint, file_type: str) -> None:
    """Write dimensions, attention pattern, RoPE, experts and file type (gguf-py, `LlamaFileType`) to a
    `gguf.GGUFWriter`."""
    import gguf

    text, shape = source.text, Shape.from_config(source.config)
    full = next(layer for layer in shape.layers if layer.window is None)
    sliding = next((layer for layer in shape.layers if layer.window is not None), full)
    rope = _rope(text)
    key = family.identify(source.config)
    writer.add_name(f"Gemma 4 {key}" if key else "Gemma 4")
    writer.add_file_type(gguf.LlamaFileType[file_type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(len(shape.layers))
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(_one_or_all([layer.ffn for layer in shape.layers]))
    writer.add_head_count(full.heads)
    writer.add_head_count_kv(_one_or_all([layer.kv_heads for layer in shape.layers]))
    writer.add_layer_norm_rms_eps(text.get("rms_norm_eps", 1e-6))
    writer.add_sliding_window(sliding.window or shape.context)
    writer.add_sliding_window_pattern([layer.window is not None for layer in shape.layers])
    writer.add_shared_kv_layers(sum(layer.shares_kv for layer in shape.layers))
    writer.add_key_length(full.head_dim)
    writer.add_value_length(full.head_dim)
    writer.add_key_length_swa(sliding.head_dim)
    writer.add_value_length_swa(sliding.head_dim)
    writer.add_rope_dimension_count(full.head_dim)
    writer.add_rope_dimension_count_swa(sliding.head_dim)
    writer.add_rope_freq_base(rope["full_attention"]["rope_theta"])
    writer.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
    writer.add_embedding_length_per_layer_input(shape.per_layer_dim)
    _add_sampling(writer, source)
    if prompting := read_prompting(source.folder):
        writer.add_string("gemma_ops.thinking", prompting.thinking)
    if shape.softcap:
        writer.add_final_logit_softcapping(shape.softcap)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.experts_per_token)
        writer.add_expert_feed_forward_length(shape.expert_ffn)


def _add_sampling(writer: Any, source: MergedCheckpoint) -> None:
    """Write the sampling settings of generation_config.json under the keys that llama.cpp's converter writes (gguf-py
    0.19, `metadata.py`); servers take them as their defaults."""
    path = source.folder / "generation_config.json"
    settings = read_checkpoint_json(path, "generation settings") if path.exists() else {}
    for key, add, kind in (
        ("temperature", writer.add_sampling_temp, float),
        ("top_k", writer.add_sampling_top_k, int),
        ("top_p", writer.add_sampling_top_p, float),
        ("min_p", writer.add_sampling_min_p, float),
        ("repetition_penalty", writer.add_sampling_penalty_repeat, float),
    ):
        if settings.get(key) is not None:
            add(kind(settings[key]))


def rope_factors(source: MergedCheckpoint) -> np.ndarray:
    """Return the divisors of the rotary frequencies of full-attention layers, (head_dim / 2,) F32.

    Gemma 4 rotates only the first `partial_rotary_factor` of each head, with frequencies spaced over the whole head
    ("proportional" RoPE). A divisor of 1e30 makes a frequency zero, so that part of the head is left as it is.
    """
    shape = Shape.from_config(source.config)
    half = next(layer for layer in shape.layers if layer.window is None).head_dim // 2
    rotated = int(half * _rope(source.text)["full_attention"].get("partial_rotary_factor", 1.0))
    return np.array([1.0] * rotated + [1e30] * (half - rotated), dtype=np.float32)


def _rope(text: dict[str, Any]) -> dict[str, Any]:
    """Return the RoPE settings by kind of layer. Raises ModelError for kinds of scaling llama.cpp would not apply."""
    found: dict[str, Any] = text.get("rope_parameters") or _ROPE
    types = {kind: found.get(kind, {}).get("rope_type", "default") for kind in _ROPE}
    if types["full_attention"] not in ("proportional", "default") or types["sliding_attention"] != "default":
        raise ModelError(
            f"the config scales RoPE in a way GGUF can't say for Gemma 4: {types}",
            "export with the rope_parameters the checkpoint was published with",
        )
    return {kind: found.get(kind) or default for kind, default in _ROPE.items()}


def _one_or_all(values: list[int]) -> int | list[int]:
    """Return one number where all layers agree, else one per layer: the two forms llama.cpp reads."""
    return values[0] if len(set(values)) == 1 else values
