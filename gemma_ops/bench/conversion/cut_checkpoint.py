"""A checkpoint with the widths of a size, cut to its first layers, with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from gemma_ops.bench.training.bench_shapes import text_config
from gemma_ops.modeling.made_up import skeleton
from gemma_ops.nano import WEIGHTS, nano_shape

_STD = 0.02
_DRAWN = 1 << 22
"""Numbers that are drawn; tensors repeat them, each from another place."""


def write_cut(size: str, layers: int, folder: Path) -> Path:
    """Write the checkpoint in bf16, a shard for each tensor, with nano's tokenizer. The seed is fixed. Raises
    ConfigError as `text_config`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    text = text_config(size, layers)
    for name in ("vocab_size", "vocab_size_per_layer_input"):  # which must hold nano's tokens
        if name in text:
            text[name] = max(text[name], nano_shape.VOCABULARY)
    with torch.device("meta"):
        model = skeleton(text, torch.bfloat16)
    drawn = (torch.randn(_DRAWN, generator=torch.Generator().manual_seed(0)) * _STD).to(torch.bfloat16)
    index = {}
    for number, (name, value) in enumerate(model.named_parameters(remove_duplicate=True)):
        copies = -(-value.numel() // _DRAWN)
        tensor = drawn.roll(977 * number).repeat(copies)[: value.numel()].view(value.shape)
        save_file({name: tensor}, folder / f"{number:03}.safetensors")
        index[name] = f"{number:03}.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(WEIGHTS / name, folder)
    return folder
