"""Gemma 4 facts, free of torch: sizes, dimensions, exact counts, LoRA targets, what each size must never do.

`shape` counts, `sizes` holds what was published, `traps` what goes wrong. To add a size: its dimensions in
`sizes.CONFIGS`, its row in `sizes.SIZES`; the tests build it on the meta device and compare every count.
"""

from __future__ import annotations

import re
from typing import Any

from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.family.shape import Counts, Layer, Linear, Shape
from gemma_ops.family.sizes import CONFIGS, DEFAULT_LEARNING_RATE, LICENCE, SERVING_ONLY, SIZES, Size
from gemma_ops.family.traps import TRAPS, Trap, traps

__all__ = [
    "CONFIGS", "DEFAULT_LEARNING_RATE", "EXPERT_TARGETS", "LICENCE", "LORA_TARGETS", "SIZES", "SKIP_4BIT",
    "TOWER_TARGETS", "TRAPS",
    "Counts", "Layer", "Linear", "Shape", "Size", "Trap", "by_repo", "find_size", "identify", "lora_linears", "repos",
    "traps",
]  # fmt: skip

LORA_TARGETS = r"(?:model\.)?(?:language_model\.)?layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
"""PEFT `target_modules`: attention and dense MLP of the language model, in the classes with towers, the text-only ones
and the unified 12B. PEFT matches the whole name, so nothing in a tower, router or per-layer projection can match. These
seven are also what llama.cpp, vLLM and SGLang apply when they serve an adapter unmerged."""

TOWER_TARGETS = {
    "image": r"(?:model\.)?(?:vision_tower\.encoder\.layers\.\d+\."
    r"(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.linear"
    r"|embed_vision\.(?:patch_dense|(?:multimodal_embedder\.)?embedding_projection))",
    "audio": r"(?:model\.)?(?:audio_tower\.layers\.\d+\.(?:self_attn\.(?:[qkv]_proj|post)\.linear"
    r"|feed_forward[12]\.ffw_layer_[12]\.linear|lconv1d\.linear_(?:start|end)\.linear)|embed_audio\.embedding_projection)",
}
"""PEFT `target_modules` for towers (`train.lora.towers`): the linears inside their clipped wrappers, and the
projections into the language model, which are all the 12B has."""

EXPERT_TARGETS = ("experts.gate_up_proj", "experts.down_proj")
"""PEFT `target_parameters`: the two stacked weights of a layer's experts, which are no linears."""

SKIP_4BIT = (
    "model.vision_tower", "model.audio_tower", "model.embed_vision", "model.embed_audio", "lm_head",
    r".*router\.proj", r".*per_layer_.*",
)  # fmt: skip
"""bitsandbytes `llm_int8_skip_modules` for loading with transformers: modules that stay bf16, so that exactly the
attention and MLP linears of the language model become 4-bit (our loader names those instead, and counts them). Towers,
because a prefix must be whole to match; the head, because it is the embedding; the router, because its rounding changes
which experts answer; the per-layer projections, because quantizing them doubles the KL divergence for one percent of
the size (exllamav3 pull request 253)."""


def lora_linears(shape: Shape, targets: str = "default", prefix: str = "model.language_model.") -> list[Linear]:
    """Return the linears that an adapter is put on: `default`, or those whose whole name a regular expression matches.

    Raises ConfigError when the expression is not valid or matches nothing.
    """
    pattern = LORA_TARGETS if targets == "default" else targets
    try:
        chosen = [linear for linear in shape.linears(prefix) if re.fullmatch(pattern, linear.name)]
    except re.error as error:
        raise ConfigError(
            f"train.lora.targets is not a regular expression: {error}", "use `default`, or correct it"
        ) from None
    if not chosen:
        raise ConfigError(
            f"train.lora.targets {targets!r} matches no linear of the language model",
            "it must match whole names such as model.language_model.layers.0.self_attn.q_proj; or use `default`",
        )
    return chosen


def repos() -> dict[str, tuple[Size, str]]:
    """Return every repository that can be fine-tuned, with its size and variant."""
    return {repo: (size, variant) for size in SIZES.values() for repo, variant in size.repos.items()}


def find_size(repo: str) -> Size | None:
    """Return the size that a Hub id names, or None."""
    found = repos().get(repo)
    return found[0] if found else None


def by_repo(repo: str) -> Size:
    """Return the size a Hub id names. Raises ConfigError that lists the known ids and the closest one."""
    size = find_size(repo)
    if size:
        return size
    import difflib

    known = list(repos())
    if repo.startswith("google/gemma-4-") and repo.endswith(SERVING_ONLY):
        raise ConfigError(
            f"{repo} is made for serving and can't be fine-tuned",
            "start from the -it repository of that size, or its -it-qat-q4_0-unquantized one",
        )
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(repo.casefold(), list(folded), n=1, cutoff=0.6)
    raise ConfigError(
        f"{repo!r} is not a known Gemma 4 repository" + (f"; did you mean {folded[close[0]]}?" if close else ""),
        "model.base takes nano, a local checkpoint folder, or one of: " + ", ".join(known),
    )


def identify(config: dict[str, Any]) -> str | None:
    """Key of the size whose dimensions a `config.json` has (towers aside), or None: nano, a custom one, no Gemma 4."""
    try:
        shape = Shape.from_config(config)
    except ModelError:
        return None
    for key, size in SIZES.items():
        if _text(size.shape) == _text(shape):
            return key
    return None


def _text(shape: Shape) -> tuple[Any, ...]:
    """Return the dimensions that tell the sizes apart; a context length edited by the user doesn't."""
    return (
        shape.hidden,
        shape.vocab,
        shape.layers,
        shape.per_layer_dim,
        shape.experts,
        shape.expert_ffn,
        shape.unified,
    )


def empty_thought(config: dict[str, Any]) -> bool:
    """True if prompts of the model with this `config.json` end in an empty thought (12B, 26B-A4B, 31B)."""
    key = identify(config)
    return key is not None and SIZES[key].empty_thought
