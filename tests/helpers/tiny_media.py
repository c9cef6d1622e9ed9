"""Tiny random checkpoints that see and hear: `tiny_models` with the towers, tokens and processor file of each size.

- `edge`: as E2B: `e2b` with vision and audio towers of clipped linears.
- `large`: as 31B: `dense31` with a vision tower whose output is standardized, image tokens seeing each other in sliding
  layers.
- `mixture`: as 26B-A4B: `moe` likewise.
- `unified`: as the 12B: patches and waveform projected straight into the language model.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch

from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_projector import write_projector
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.export.projector_tensors import plan_projector
from gemma_ops.nano import nano_towers
from tests.helpers import tiny_models

Kind = Literal["edge", "large", "mixture", "unified"]
KINDS: tuple[Kind, ...] = ("edge", "large", "mixture", "unified")
TEXT: dict[Kind, tiny_models.Kind] = {"edge": "e2b", "large": "dense31", "mixture": "moe", "unified": "unified"}
BINS = 16
"""Mel bins of the tiny audio tower: as many as its first convolution has channels."""


def save(kind: Kind, folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a bf16 checkpoint with tokenizer and processor settings to `folder` and return it. `overrides` are keys of
    the text config: llama.cpp tells E2B from other models by `hidden_size=1536`."""
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny_models.NANO / name).read_bytes())
    tokenizer = nano_towers.tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    model = build(kind, tokenizer.get_vocab(), seed, **overrides)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_torch_state_dict(state, folder, max_shard_size="5GB", safe_serialization=True, metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    tiny_models._write(
        folder / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, 106, 50], "pad_token_id": 0}
    )
    tiny_models._write(folder / "processor_config.json", processor(kind))
    return folder


def build(kind: Kind, vocabulary: dict[str, int], seed: int = 0, **overrides: Any) -> Any:
    """The model of a kind in bf16 and eval mode."""
    import transformers

    text = tiny_models._text_settings(TEXT[kind], len(vocabulary)) | overrides
    if kind != "edge":
        text["use_bidirectional_attention"] = "vision"
    ids = {
        "boi_token_id": vocabulary["<|image>"], "image_token_id": vocabulary["<|image|>"],
        "eoi_token_id": vocabulary["<image|>"], "boa_token_id": vocabulary["<|audio>"],
        "audio_token_id": vocabulary["<|audio|>"], "eoa_token_index": vocabulary["<audio|>"],
        "video_token_id": vocabulary["<|video|>"],
    }  # fmt: skip
    if kind == "unified":
        config = transformers.Gemma4UnifiedConfig(
            text_config=transformers.Gemma4UnifiedTextConfig(**text),
            vision_config=transformers.Gemma4UnifiedVisionConfig(
                mm_embed_dim=64, output_proj_dims=64, mm_posemb_size=80, patch_size=4
            ),
            audio_config=transformers.Gemma4UnifiedAudioConfig(audio_embed_dim=640),
            **ids,
        )
        model = transformers.Gemma4UnifiedForConditionalGeneration(config)
    else:
        config = transformers.Gemma4Config(
            text_config=transformers.Gemma4TextConfig(**text),
            vision_config=transformers.Gemma4VisionConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                head_dim=16, patch_size=4, pooling_kernel_size=3, position_embedding_size=256,
                use_clipped_linears=kind == "edge", standardize=kind != "edge",
            ),
            audio_config=transformers.Gemma4AudioConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, output_proj_dims=32,
                subsampling_conv_channels=[BINS, 4],
            )
            if kind == "edge"
            else None,
            **ids,
        )  # fmt: skip
        model = transformers.Gemma4ForConditionalGeneration(config)
    tiny_models._initialise(model, seed)
    with torch.no_grad():  # or a wide model's tied head only repeats the token that it was given
        model.model.language_model.embed_tokens.weight.mul_((64 / text["hidden_size"]) ** 0.25)
    model = model.to(torch.bfloat16).eval()
    model.config.dtype = torch.bfloat16
    model.config.architectures = [type(model).__name__]
    return model


def roughen(folder: Path, seed: int = 0) -> Path:
    """Give the towers of a checkpoint norms, biases, scales and bounds that matter, so that one which is forgotten or
    swapped shows, and return the folder."""
    from safetensors.torch import load_file, save_file

    random = torch.Generator().manual_seed(seed)
    state = load_file(folder / "model.safetensors")
    for name, tensor in state.items():
        if "language_model" in name:
            continue
        drawn = torch.randn(tensor.shape, generator=random)
        if name.endswith(("_min", "_max")):
            drawn = torch.tensor(1.5 if name.endswith("_max") else -1.5)
        elif tensor.ndim == 1 and name.endswith((".weight", "std_scale")):
            drawn = 1 + 0.2 * drawn
        elif tensor.ndim == 1 and name.endswith("bias"):
            drawn *= 0.2
        elif not name.endswith("per_dim_scale"):
            continue
        state[name] = drawn.to(tensor.dtype)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def gguf_files(base: Path, folder: Path) -> Path:
    """Write the bf16 file of a checkpoint and its towers as the step `quantize` lays them out, and return the file."""
    source = MergedCheckpoint(base)
    write_gguf(source, plan_tensors(source, "bf16"), folder / "bf16" / "model.gguf", threads=1)
    write_projector(source, plan_projector(source, "f16"), folder / "mmproj")
    return folder / "bf16" / "model.gguf"


def processor(kind: Kind) -> dict[str, Any]:
    """`processor_config.json` of a kind."""
    body = copy.deepcopy(nano_towers.PROCESSOR)
    body["image_processor"] |= {"patch_size": 4, "pooling_kernel_size": 3}
    body["feature_extractor"]["feature_size"] = BINS
    if kind == "unified":
        body["feature_extractor"] = {"feature_size": 640, "sampling_rate": 16_000, "audio_samples_per_token": 640}
    if kind in ("large", "mixture"):
        del body["feature_extractor"]
    return body
