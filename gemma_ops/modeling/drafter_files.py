"""Drafters of Gemma 4 on disk and in memory: small models that read a target's states, keys and values, and say its
next tokens ahead of it (`*-it-assistant`; transformers, `models/gemma4_assistant`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_ops.config import DraftConfig, ModelConfig
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.family import SIZES, Shape
from gemma_ops.modeling.checkpoint_source import check_shards, local_base, read_model_config

TYPES = ("gemma4_assistant", "gemma4_unified_assistant")
"""`model_type` of drafters: of the sizes with towers, and of the encoder-free 12B."""
NONE, STOCK = "none", "stock"


def stock_drafter(settings: DraftConfig, model: ModelConfig) -> ModelConfig | None:
    """Return the drafter that `draft.base` names, as a model to fetch; None for `none`. Raises ConfigError for `stock`
    where the base is no published checkpoint."""
    if settings.base == NONE:
        return None
    if settings.base != STOCK:
        return ModelConfig(base=settings.base, revision=settings.revision)
    if model.base != "nano" and local_base(model.base) is not None:
        raise ConfigError(
            f"draft.base is stock, and model.base {model.base!r} is a folder, whose drafter has no name",
            "name it: --set draft.base=google/gemma-4-E2B-it-assistant, or a folder that holds one",
        )
    size = next((size.key for size in SIZES.values() if model.base in size.repos), None)
    return ModelConfig(
        base=f"google/gemma-4-{size}-it-assistant" if size else f"{model.base}-assistant", revision=settings.revision
    )


def read_drafter_config(folder: Path) -> dict[str, Any]:
    """Return a drafter's `config.json`. Raises ModelError for a folder that holds none."""
    config = read_model_config(folder)
    if config.get("model_type") not in TYPES:
        raise ModelError(
            f"{folder} is no drafter of Gemma 4: its config.json says model_type {config.get('model_type')!r}",
            "draft.base takes a repository such as google/gemma-4-E2B-it-assistant, or a folder that holds one",
        )
    return config


def check_drafter(drafter: dict[str, Any], target: dict[str, Any]) -> None:
    """Check that a drafter's configuration fits a target's: width, vocabulary, and the keys and values that it reads.
    Raises ModelError that names what doesn't."""
    text, shape = drafter["text_config"], Shape.from_config(target)
    own = Shape.from_config({"model_type": "gemma4_text", **text})
    found = [("width of its target", int(drafter["backbone_hidden_size"]), shape.hidden)]
    found.append(("vocabulary", own.vocab, shape.vocab))
    for full in (True, False):
        read = next((layer for layer in own.layers if (layer.window is None) == full), None)
        there = next((layer for layer in reversed(shape.layers) if (layer.window is None) == full), None)
        if read is None or there is None:
            continue
        kind = "full" if full else "sliding"
        found.append((f"keys and values of {kind} attention", read.kv_width, there.kv_width))
    for what, has, wants in found:
        if has != wants:
            raise ModelError(
                f"the drafter is for another size of Gemma 4: {what} {has:,}, and the target has {wants:,}",
                "take the drafter of the model's own size: draft.base=stock",
            )


def load_drafter(folder: Path, *, device: str = "cpu") -> Any:
    """Load a drafter to be trained, in float32. Raises ModelError when a file is missing or a parameter has no
    value."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    config = read_drafter_config(folder)
    check_shards(folder)
    cls = getattr(transformers, config["architectures"][0])
    drafter, told = cls.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    if told["missing_keys"]:
        raise ModelError(
            f"{folder} has no value for {len(told['missing_keys'])} parameters of a drafter, among them "
            f"{min(told['missing_keys'])}",
            "fetch the drafter again",
        )
    return drafter.to(device).eval()


def save_drafter(drafter: Any, folder: Path) -> Path:
    """Write a drafter in bf16, as transformers and vLLM read it; what is in memory stays as it is."""
    import copy

    import torch

    kept = copy.deepcopy(drafter).to(torch.bfloat16)
    kept.save_pretrained(folder)
    return folder
