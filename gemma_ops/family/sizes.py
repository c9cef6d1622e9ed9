"""The five Gemma 4 sizes: their published dimensions, repositories, context, modalities and training defaults.

Sources, by what they are quoted for:
- dimensions: transformers, `models/gemma4/convert_gemma4_weights.py` at 0f3f0632 and
  `models/gemma4_unified/convert_gemma4_unified_weights.py` at 05babaa3, `_VARIANTS` (the scripts Google's checkpoints
  were converted with); checked against the public totals 5.1, 8, 11.95, 25.8 and 31.3 B
- repositories, context, modalities, licence: the model cards of google/gemma-4-* and ai.google.dev/gemma/docs/core
- quantization-aware (QAT) variants: model card of google/gemma-4-31B-it-qat-q4_0-unquantized
- learning rates: next to each one
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemma_ops.family.shape import Shape

AS_OF = "2026-09"
"""Date at which repositories and licence were last looked at."""

LICENCE = "Apache-2.0"
VARIANTS = {"it": "-it", "base": "", "qat": "-it-qat-q4_0-unquantized"}
"""Suffix of the repository by variant. `qat` holds bf16 weights trained to survive Q4_0; it can be fine-tuned."""
SERVING_ONLY = ("-gguf", "-ct", "-mobile-transformers", "-assistant")
"""Repository endings that can't be fine-tuned: quantized files, and drafters for speculative decoding."""

_SLIDING, _FULL = "sliding_attention", "full_attention"
_SMALL_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
                 "num_key_value_heads": 12, "head_dim": 64, "use_clipped_linears": True}  # fmt: skip
_LARGE_VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
                 "num_key_value_heads": 16, "head_dim": 72, "standardize": True}  # fmt: skip
_COMMON = {"vocab_size": 262_144, "head_dim": 256, "global_head_dim": 512, "final_logit_softcapping": 30.0}


def _config(kind: str, every: int, vision: dict[str, Any], audio: dict[str, Any] | None, **text: Any) -> dict[str, Any]:
    """Return a configuration as `config.json` holds it; one layer in `every` has full attention."""
    count = text["num_hidden_layers"]
    text["layer_types"] = [_FULL if (index + 1) % every == 0 else _SLIDING for index in range(count)]
    return {"model_type": kind, "text_config": _COMMON | text, "vision_config": vision, "audio_config": audio}


CONFIGS: dict[str, dict[str, Any]] = {
    "E2B": _config(
        "gemma4", 5, _SMALL_VISION, {},
        hidden_size=1536, intermediate_size=6144, num_hidden_layers=35, num_attention_heads=8, num_key_value_heads=1,
        sliding_window=512, num_kv_shared_layers=20, use_double_wide_mlp=True, hidden_size_per_layer_input=256,
        max_position_embeddings=131_072,
    ),
    "E4B": _config(
        "gemma4", 6, _SMALL_VISION, {},
        hidden_size=2560, intermediate_size=10_240, num_hidden_layers=42, num_attention_heads=8, num_key_value_heads=2,
        sliding_window=512, num_kv_shared_layers=18, hidden_size_per_layer_input=256, max_position_embeddings=131_072,
    ),
    "12B": _config(
        "gemma4_unified", 6, {}, {},
        hidden_size=3840, intermediate_size=15_360, num_hidden_layers=48, num_attention_heads=16, num_key_value_heads=8,
        num_global_key_value_heads=1, attention_k_eq_v=True, sliding_window=1024,
        use_bidirectional_attention="vision", max_position_embeddings=262_144,
    ),
    "26B-A4B": _config(
        "gemma4", 6, _LARGE_VISION, None,
        hidden_size=2816, intermediate_size=2112, num_hidden_layers=30, num_attention_heads=16, num_key_value_heads=8,
        num_global_key_value_heads=2, attention_k_eq_v=True, sliding_window=1024, hidden_size_per_layer_input=0,
        enable_moe_block=True, num_experts=128, top_k_experts=8, moe_intermediate_size=704,
        use_bidirectional_attention="vision", max_position_embeddings=262_144,
    ),
    "31B": _config(
        "gemma4", 6, _LARGE_VISION, None,
        hidden_size=5376, intermediate_size=21_504, num_hidden_layers=60, num_attention_heads=32,
        num_key_value_heads=16,
        num_global_key_value_heads=4, attention_k_eq_v=True, sliding_window=1024, hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision", max_position_embeddings=262_144,
    ),
}  # fmt: skip
"""Dimensions of the sizes as `config.json` spells them; `Shape.from_config` reads them as it reads a checkpoint's
own."""


@dataclass(frozen=True)
class Size:
    """One size of the family."""

    key: str
    shape: Shape
    modalities: tuple[str, ...]
    """Kinds of input besides text; output is text."""
    empty_thought: bool
    """Whether, with thinking off, the generation prompt ends in an empty thought (`<|channel>thought` … `<channel|>`),
    so that training must put it before each answer too, without loss. Chat template of google/gemma-4-31B-it, which the
    12B shares; E2B and E4B have a template without it."""
    learning_rate: float
    """Peak learning rate of LoRA and QLoRA when the configuration gives none."""
    learning_rate_why: str
    repos: dict[str, str]
    """Hub repositories that can be fine-tuned, with the variant of each: `it`, `base`, `qat`."""
    licence: str = LICENCE

    @property
    def context(self) -> int:
        """Longest context in tokens."""
        return self.shape.context

    @property
    def global_layers(self) -> int:
        return sum(layer.window is None for layer in self.shape.layers)


DEFAULT_LEARNING_RATE = 2e-4
"""Peak learning rate of LoRA for a Gemma 4 that is none of these sizes."""
_LARGE_RATE = (
    "2e-4: where LoRA recipes for this family agree (oumi, axolotl, Unsloth; NeMo AutoModel #1748 raised its own "
    "to that, to converge)"
)


def _size(key: str, modalities: tuple[str, ...], rate: float = DEFAULT_LEARNING_RATE, why: str = _LARGE_RATE) -> Size:
    repos = {f"google/gemma-4-{key}{suffix}": variant for variant, suffix in VARIANTS.items()}
    shape = Shape.from_config(CONFIGS[key])
    return Size(key, shape, modalities, not key.startswith("E"), rate, why, repos)


SIZES: dict[str, Size] = {
    size.key: size
    for size in (
        _size(
            "E2B",
            ("image", "audio", "video"),
            5e-5,
            "5e-5: Google's text QLoRA notebook uses it, and oumi's recipe found that at 2e-4 the smaller compute "
            "path overfits",
        ),
        _size("E4B", ("image", "audio", "video")),
        _size("12B", ("image", "audio", "video")),
        _size("26B-A4B", ("image", "video")),
        _size("31B", ("image", "video")),
    )
}
"""Sizes by key, smallest first."""
