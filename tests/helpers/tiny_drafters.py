"""Tiny random drafters for the checkpoints of `tiny_models`: the real transformers classes, with what their target
wants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def drafter_config(target: dict[str, Any], *, hidden: int = 32, clusters: int = 0) -> Any:
    """Return the configuration of a drafter that fits a target's `config.json`."""
    import transformers

    text = target.get("text_config") or target
    per_layer = next(iter((text.get("per_layer_config") or {}).values()), {})
    wide = text.get("global_head_dim") or per_layer.get("head_dim") or text["head_dim"]
    heads = text.get("num_global_key_value_heads") or per_layer.get("num_key_value_heads")
    settings = {
        "vocab_size": text["vocab_size"], "vocab_size_per_layer_input": 0, "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "num_attention_heads": max(2, text["num_key_value_heads"]), "num_key_value_heads": text["num_key_value_heads"],
        "head_dim": text["head_dim"], "global_head_dim": wide, "hidden_size_per_layer_input": 0,
        "sliding_window": text["sliding_window"], "max_position_embeddings": text["max_position_embeddings"],
        "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    if heads:
        settings["num_global_key_value_heads"] = heads
        settings["attention_k_eq_v"] = True  # without it the number of global heads is not read
    unified = "unified" in target["model_type"]
    cls = transformers.Gemma4UnifiedAssistantConfig if unified else transformers.Gemma4AssistantConfig
    inner = transformers.Gemma4UnifiedTextConfig if unified else transformers.Gemma4TextConfig
    if unified:
        for name in ("vocab_size_per_layer_input", "hidden_size_per_layer_input"):
            settings.pop(name)
    centroids = {
        "use_ordered_embeddings": True,
        "num_centroids": clusters,
        "centroid_intermediate_top_k": clusters // 4,
    }
    return cls(
        text_config=inner(**settings), backbone_hidden_size=text["hidden_size"], **(centroids if clusters else {})
    )


def build_drafter(target: dict[str, Any], *, seed: int = 0, **settings: Any) -> Any:
    """Return a drafter in float32 with random weights that don't saturate."""
    import transformers

    torch.manual_seed(seed)
    config = drafter_config(target, **settings)
    unified = "unified" in target["model_type"]
    cls = transformers.Gemma4UnifiedAssistantForCausalLM if unified else transformers.Gemma4AssistantForCausalLM
    drafter = cls._from_config(config, attn_implementation="sdpa")
    for name, parameter in drafter.named_parameters():
        if parameter.ndim >= 2:
            parameter.data.normal_(0.0, parameter.shape[-1] ** -0.5)
        elif "q_norm" in name:
            parameter.data.fill_(parameter.numel() ** -0.5)
    if drafter.masked_embedding is not None:
        order = torch.randperm(drafter.vocab_size)
        drafter.masked_embedding.token_ordering.copy_(order)
    return drafter.float().eval()


def save_tiny_drafter(target: Path, folder: Path, **settings: Any) -> Path:
    """Write a drafter for the checkpoint in `target` and return its folder."""
    from gemma_ops.modeling.drafter_files import save_drafter

    return save_drafter(build_drafter(json.loads((target / "config.json").read_text()), **settings), folder)
