"""Tiny random Gemma 4 checkpoints on disk, laid out as Google's are: one factory for all tests that need a model
folder.

The real transformers classes, small dimensions, and an initialisation that is not degenerate: weights are scaled by
their fan-in, norms, layer scalars, router scales and expert scales differ from one, and logits have a standard
deviation of about 2.5, so that a forgotten or swapped tensor shows in the output and greedy decoding does not sit on
ties.

Kinds:
- `e2b`: per-layer embeddings (PLE), KV-shared layers, double-wide MLP in them; config in Google's spelling.
- `moe`: as 26B-A4B: experts beside a dense MLP, keys reused as values and fewer KV heads in global layers.
- `dense31`: as 31B: no PLE, keys reused as values, global KV heads.
- `multimodal`: `e2b` with small vision and audio towers, several shards, and the redundant KV keys of the shared layers
  that Google's files carry.
- `unified`: as the 12B, the encoder-free class with its patch embedder.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

Kind = Literal["e2b", "moe", "dense31", "multimodal", "unified"]
KINDS: tuple[Kind, ...] = ("e2b", "moe", "dense31", "multimodal", "unified")
NANO = Path(__file__).parents[2] / "gemma_ops" / "nano" / "weights"
LAYERS = ["sliding_attention", "sliding_attention", "full_attention"] * 2


def save(kind: Kind, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a bf16 checkpoint with tokenizer and generation config to `folder` and return it.

    `overrides` are keys of the text config (for example `moe_intermediate_size=48`). Same arguments, same bytes.
    """
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    tokens = _save_tokenizer(folder)
    model = build(kind, tokens, seed, **overrides)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if kind == "multimodal":
        state |= _redundant_keys(model, seed)
    shard = "400KB" if kind == "multimodal" else "5GB"
    save_torch_state_dict(state, folder, max_shard_size=shard, safe_serialization=True, metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    if kind in ("e2b", "multimodal"):
        _googles_spelling(folder / "config.json")
    stops = [tokens["<eos>"], tokens["<turn|>"], tokens["<|tool_response>"]]
    _write(
        folder / "generation_config.json",
        {
            "bos_token_id": 2,
            "do_sample": True,
            "eos_token_id": stops,
            "pad_token_id": 0,
            "temperature": 1.0,
            "top_k": 64,
        },
    )
    return folder


def build(kind: Kind, tokens: dict[str, int], seed: int = 0, **overrides: Any) -> Any:
    """The model of a kind in bf16 and eval mode; `tokens` is the vocabulary (token to id)."""
    import transformers

    text = _text_settings(kind, len(tokens)) | overrides
    if kind == "unified":
        vision = transformers.Gemma4UnifiedVisionConfig(
            mm_embed_dim=64, output_proj_dims=64, mm_posemb_size=32, patch_size=4
        )
        config = transformers.Gemma4UnifiedConfig(
            text_config=transformers.Gemma4UnifiedTextConfig(**text), vision_config=vision
        )
        model = transformers.Gemma4UnifiedForConditionalGeneration(config)
    else:
        towers = _towers(tokens) if kind == "multimodal" else {}
        config = transformers.Gemma4Config(text_config=transformers.Gemma4TextConfig(**text), **towers)
        model = transformers.Gemma4ForConditionalGeneration(config)
    _initialise(model, seed)
    model = model.to(torch.bfloat16).eval()
    model.config.dtype = torch.bfloat16
    model.config.architectures = [type(model).__name__]
    return model


def _towers(tokens: dict[str, int]) -> dict[str, Any]:
    """Small vision and audio towers, and the tokens that stand for images and sounds."""
    from transformers import Gemma4AudioConfig, Gemma4VisionConfig

    return {
        "vision_config": Gemma4VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            position_embedding_size=64,
            use_clipped_linears=True,
        ),
        "audio_config": Gemma4AudioConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            output_proj_dims=32,
            subsampling_conv_channels=[8, 4],
        ),
        "boi_token_id": tokens.get("<|image>", 5),
        "eoi_token_id": tokens.get("<image|>", 6),
        "image_token_id": tokens.get("<|image|>", 7),
        "video_token_id": tokens.get("<|video|>", 8),
        "boa_token_id": tokens.get("<|audio>", 9),
        "eoa_token_index": tokens.get("<audio|>", 10),
        "audio_token_id": tokens.get("<|audio|>", 11),
    }


def _text_settings(kind: Kind, vocab: int) -> dict[str, Any]:
    """Keyword arguments of the text config."""
    base: dict[str, Any] = {
        "vocab_size": vocab,
        "vocab_size_per_layer_input": vocab,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": len(LAYERS),
        "layer_types": list(LAYERS),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "global_head_dim": 64,
        "max_position_embeddings": 1024,
        "sliding_window": 16,
        "final_logit_softcapping": 30.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }
    if kind in ("e2b", "multimodal"):
        base |= {
            "hidden_size_per_layer_input": 32,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "num_key_value_heads": 1,
        }
    else:
        base |= {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
        if kind != "unified":  # which has no per-layer embeddings to switch off
            base["hidden_size_per_layer_input"] = 0
    if kind == "moe":
        base |= {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64}
    return base


@torch.no_grad()
def _initialise(model: Any, seed: int) -> None:
    """Random but well-conditioned values: rounding a weight must not send the output somewhere else altogether.

    Attention scores get a standard deviation of one (Gemma 4 normalises queries and keys and does not divide by the
    root of the head size), layers add little to the stream, and the router prefers its experts clearly.
    """
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.normal_(
                0.0,
                1 / math.sqrt(parameter[0].numel() if parameter.ndim == 4 else parameter.shape[-1]),
                generator=random,
            )
        elif name.startswith("model.language_model."):
            parameter.normal_(1.0, 0.15, generator=random)
        if "embed_tokens" in name:
            parameter.mul_(2.5)
        elif "router.proj" in name:
            parameter.mul_(4 * math.sqrt(parameter.shape[-1]))
        elif "language_model" in name and name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.mul_(parameter.numel() ** -0.25)
        elif name.endswith(
            ("post_attention_layernorm.weight", "post_feedforward_layernorm.weight", "post_per_layer_input_norm.weight")
        ):
            parameter.mul_(0.8)
    for layer in model.model.language_model.layers:
        # The stream is scaled down after each layer, or the tied head would only repeat the token it was given.
        layer.layer_scalar.uniform_(0.6, 0.8, generator=random)


def _redundant_keys(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """Keys, values and key norms of the KV-shared layers: never used, yet present in the published files."""
    random = torch.Generator().manual_seed(seed + 1)
    text = model.config.text_config
    found = {}
    for layer in range(text.num_hidden_layers - text.num_kv_shared_layers, text.num_hidden_layers):
        facts = text.per_layer_config[layer]
        prefix = f"model.language_model.layers.{layer}.self_attn"
        for part in ("k_proj", "v_proj"):
            rows = facts.num_key_value_heads * facts.head_dim
            found[f"{prefix}.{part}.weight"] = torch.randn(rows, text.hidden_size, generator=random).to(torch.bfloat16)
        found[f"{prefix}.k_norm.weight"] = torch.ones(facts.head_dim, dtype=torch.bfloat16)
    return found


def _googles_spelling(path: Path) -> None:
    """Head dimensions of global layers as `global_head_dim`, which is what the published configs say."""
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config["text_config"]
    facts = next(iter(text.pop("per_layer_config").values()))
    text["global_head_dim"] = facts["head_dim"]
    text["num_global_key_value_heads"] = facts.get("num_key_value_heads")
    _write(path, config)


def _save_tokenizer(folder: Path) -> dict[str, int]:
    """nano's tokenizer, its settings and template; returns the vocabulary."""
    from tokenizers import Tokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(NANO / name, folder / name)
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()


def _write(path: Path, body: Any) -> None:
    path.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
