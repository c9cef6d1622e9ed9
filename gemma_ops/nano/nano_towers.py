"""nano with small vision and audio towers next to its own weights, saved as a real multimodal checkpoint.

The towers are of Gemma 4's classes and random, but conditioned: colours and pitches reach the language model as
distinct vectors of the size of its own embeddings, and a LoRA on it learns to name them in a minute. What images and
sounds mean is not trained; this shows and tests the way, not the ability. Their tokens take seven of nano's unused ids.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gemma_ops.nano import WEIGHTS, nano_shape

TOKENS = {
    5: "<|image>", 6: "<|image|>", 7: "<image|>", 8: "<|audio>", 9: "<|audio|>", 10: "<audio|>", 11: "<|video|>",
}  # fmt: skip
PROCESSOR = {
    "processor_class": "Gemma4Processor",
    "image_seq_length": 70,
    "audio_seq_length": 750,
    "audio_ms_per_token": 40,
    "image_processor": {
        "image_processor_type": "Gemma4ImageProcessor", "image_seq_length": 70, "do_convert_rgb": True,
        "do_normalize": False,
        "do_rescale": True, "do_resize": True, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0],
        "resample": 3,
        "rescale_factor": 1 / 255, "max_soft_tokens": 70, "patch_size": 8, "pooling_kernel_size": 2,
    },
    "feature_extractor": {
        "feature_extractor_type": "Gemma4AudioFeatureExtractor", "feature_size": 32, "sampling_rate": 16_000,
        "frame_length_ms": 20.0, "hop_length_ms": 10.0, "padding_value": 0.0, "return_attention_mask": True,
    },
}  # fmt: skip
"""Content of `processor_config.json`: an image takes about 64 soft tokens of 16 x 16 pixels."""


def towers_config(*, bidirectional: bool = False) -> Any:
    """Return nano's configuration with both towers. `bidirectional` lets the tokens of an image see each other, as
    those of 26B-A4B and 31B do: llama.cpp then reads images as transformers does, else only from models of E2B's and
    E4B's widths."""
    from transformers import Gemma4AudioConfig, Gemma4Config, Gemma4TextConfig, Gemma4VisionConfig

    ids = {token: number for number, token in TOKENS.items()}
    return Gemma4Config(
        text_config=Gemma4TextConfig(
            **nano_shape.text_config(), use_bidirectional_attention="vision" if bidirectional else None
        ),
        vision_config=Gemma4VisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            head_dim=32, patch_size=8, pooling_kernel_size=2, position_embedding_size=512, use_clipped_linears=True,
        ),
        audio_config=Gemma4AudioConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=2, output_proj_dims=64,
            subsampling_conv_channels=[32, 16],
        ),
        tie_word_embeddings=True,
        boi_token_id=ids["<|image>"], image_token_id=ids["<|image|>"], eoi_token_id=ids["<image|>"],
        boa_token_id=ids["<|audio>"], audio_token_id=ids["<|audio|>"], eoa_token_index=ids["<audio|>"],
        video_token_id=ids["<|video|>"],
    )  # fmt: skip


def build_towers(seed: int = 0, *, bidirectional: bool = False) -> Any:
    """Build nano with towers, in float32; `bidirectional` as in `towers_config`."""
    import torch
    from safetensors.torch import load_file
    from transformers import Gemma4ForConditionalGeneration

    model = Gemma4ForConditionalGeneration(towers_config(bidirectional=bidirectional))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model" in name or name == "lm_head.weight":
                continue
            if parameter.ndim > 1:
                parameter.normal_(0.0, _scale(name, parameter), generator=random)
    found = model.load_state_dict(load_file(str(WEIGHTS / "model.safetensors")), strict=False)
    assert not found.unexpected_keys
    model.tie_weights()
    return model


def _scale(name: str, parameter: Any) -> float:
    """Return the scale of a parameter's random values, by fan-in; positions matter little next to the content, and
    branches add little to the residual stream."""
    if "position_embedding_table" in name:
        return 0.05
    inputs = parameter[0].numel()
    return float((0.3 if ".layers." in name else 1.0) / math.sqrt(inputs))


def tokenizer() -> Any:
    """Return nano's `tokenizers.Tokenizer` with the tokens of images and sounds."""
    from tokenizers import AddedToken, Tokenizer

    body = json.loads((WEIGHTS / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = body["model"]["vocab"]
    by_id = {number: token for token, number in vocabulary.items()}
    for number, token in TOKENS.items():
        del vocabulary[by_id[number]]
        vocabulary[token] = number
    found: Any = Tokenizer.from_str(json.dumps(body))
    found.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TOKENS.values()])
    return found


def save_towers(folder: Path, seed: int = 0, *, bidirectional: bool = False) -> Path:
    """Write the checkpoint to `folder` and return it: weights, configuration, tokenizer, template, processor.
    `bidirectional` as in `towers_config`."""
    nano_shape.save_nano(build_towers(seed, bidirectional=bidirectional), folder, tokenizer())
    (folder / "processor_config.json").write_text(json.dumps(PROCESSOR, indent=2) + "\n", encoding="utf-8")
    return folder
