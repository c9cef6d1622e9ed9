"""nano's stock drafter: the drafter architecture of Gemma 4 (`*-it-assistant`) for nano's shape.

Its parts are those of E2B's: four layers, all of which read keys and values that the target has computed, a head over
clusters of the vocabulary (centroids), projections from and to the width of the target.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.nano import WEIGHTS
from gemma_ops.nano.nano_shape import VOCABULARY, text_config

CENTROIDS, ACTIVE = 64, 8
"""Clusters of the vocabulary, and those whose tokens get a logit (E2B: 2,048 and 32)."""


def nano_drafter_config() -> Any:
    """Return a `Gemma4AssistantConfig` of nano's drafter."""
    from transformers import Gemma4AssistantConfig, Gemma4TextConfig

    target = text_config()
    text = Gemma4TextConfig(
        vocab_size=VOCABULARY, vocab_size_per_layer_input=0, hidden_size=64, intermediate_size=192,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=target["num_key_value_heads"],
        head_dim=target["head_dim"], global_head_dim=target["global_head_dim"], hidden_size_per_layer_input=0,
        num_kv_shared_layers=4, sliding_window=target["sliding_window"],
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        max_position_embeddings=target["max_position_embeddings"], tie_word_embeddings=True,
        pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    return Gemma4AssistantConfig(
        text_config=text, backbone_hidden_size=target["hidden_size"], use_ordered_embeddings=True,
        num_centroids=CENTROIDS, centroid_intermediate_top_k=ACTIVE, tie_word_embeddings=True,
    )  # fmt: skip


def build_nano_drafter(seed: int = 0) -> Any:
    """Build a `Gemma4AssistantForCausalLM` of nano's shape with random float32 weights, whose clusters hold tokens that
    nano's embeddings put near each other."""
    import torch
    from transformers import Gemma4AssistantForCausalLM

    torch.manual_seed(seed)
    drafter = Gemma4AssistantForCausalLM(nano_drafter_config())
    # As in `build_nano`: queries by the size of their heads, and branches that don't drown the stream.
    for layer in drafter.model.layers:
        layer.self_attn.q_norm.weight.data.fill_(layer.self_attn.head_dim**-0.5)
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
            norm.weight.data.fill_(0.2)
    drafter.masked_embedding.token_ordering.copy_(order_tokens(_embeddings(), CENTROIDS))
    return drafter


def order_tokens(table: Any, clusters: int) -> Any:
    """Return the rows of an embedding table, (tokens, width), in an order in which equal stretches are clusters: halved
    again and again at the median of the direction in which a half varies most. `clusters` is a power of two."""
    import torch

    groups = [torch.arange(len(table))]
    while len(groups) < clusters:
        halves = []
        for group in groups:
            values = table[group] - table[group].mean(0)
            direction = torch.linalg.eigh(values.T @ values)[1][:, -1]
            order = group[torch.argsort(values @ direction, stable=True)]
            halves += [order[: len(order) // 2], order[len(order) // 2 :]]
        groups = halves
    return torch.cat(groups)


def _embeddings() -> Any:
    from safetensors import safe_open

    with safe_open(WEIGHTS / "model.safetensors", framework="pt") as file:
        name = next(key for key in file.keys() if key.endswith("embed_tokens.weight"))  # noqa: SIM118
        return file.get_tensor(name).float()
