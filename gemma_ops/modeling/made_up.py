"""A Gemma 4 of any shape with random weights, made in memory and straight on the device: for measuring, not for answering.

Random weights as the library draws them make a bad subject: Gemma 4 normalises queries and keys and does not divide
scores by the root of the head size, so attention saturates, and gradients in bfloat16 are chaos (two exact ways to
compute them agree to a cosine of 0.1). Queries sixteen times smaller and branches that add 0.3 instead of 1 to the
stream bring every way to 0.999 and more.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gemma_ops import family
from gemma_ops.modeling.load import Weights

_STD = 0.02
_QUERY, _BRANCH = 1 / 16, 0.3
_CLASSES = {"gemma4_text": "Gemma4ForCausalLM", "gemma4_unified_text": "Gemma4UnifiedForCausalLM"}


def build(text: dict[str, Any], *, weights: Weights = "bf16", device: str = "cpu", seed: int = 0) -> Any:
    """A text-only causal model of the shape that `text`, a text configuration with its `model_type`, describes.

    The same shape, device and seed give the same weights; with `nf4`, exactly attention and MLP are 4-bit
    (`family.LORA_TARGETS`), each quantized as it is drawn, so that the bf16 model is never whole in memory. In
    evaluation mode, as a loader hands it out.
    """
    import torch

    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    with torch.device("meta"):
        model = skeleton(text, dtype)
    random = torch.Generator(device=device).manual_seed(seed)
    four = re.compile(family.LORA_TARGETS) if weights == "nf4" else None
    made: dict[int, Any] = {}
    for path, module in list(model.named_modules()):
        for name, value in list(module._parameters.items()):
            if value is not None:  # the head is the embedding: drawn once
                if id(value) not in made:
                    made[id(value)] = torch.nn.Parameter(_drawn(f"{path}.{name}", value, random), requires_grad=False)
                module._parameters[name] = made[id(value)]
        _fill_buffers(model, module, device)
        if four and isinstance(module, torch.nn.Linear) and four.fullmatch(path):
            _quantize(model, path, module)
    for parameter in model.parameters():
        parameter.requires_grad_(weights != "nf4" and parameter.is_floating_point())
    if weights == "nf4":
        _say_quantized(model)
    return model.eval()


def skeleton(text: dict[str, Any], dtype: Any) -> Any:
    """The model's modules, on whatever device is the default: `torch.device("meta")` makes them without memory."""
    import torch
    import transformers

    settings = {key: value for key, value in text.items() if key != "model_type"}
    cls = getattr(transformers, _CLASSES[text["model_type"]])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return cls(cls.config_class(**settings, pad_token_id=0, eos_token_id=1, bos_token_id=2))
    finally:
        torch.set_default_dtype(before)


def save(model: Any, folder: Path) -> Path:
    """Write a checkpoint, tokenizer included."""
    model.save_pretrained(folder)
    return save_tokenizer(folder)


def save_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of control tokens only: rows for these models come as token ids."""
    import transformers
    from tokenizers import Tokenizer, models

    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        **{f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk")},
    ).save_pretrained(folder)
    return folder


def _drawn(name: str, like: Any, random: Any) -> Any:
    """Values for one parameter."""
    import torch

    value = torch.empty(like.shape, dtype=like.dtype, device=random.device)
    if value.ndim >= 2:
        return value.normal_(0.0, _STD, generator=random)
    if "q_norm" in name:
        return value.fill_(_QUERY)
    return value.fill_(_BRANCH if ".post_" in name else 1.0)


def _fill_buffers(model: Any, module: Any, device: str) -> None:
    """Buffers have no values on the meta device: rotary frequencies, embedding scales, layer scalars."""
    import torch

    here = dict(module.named_buffers(recurse=False))
    if not here:
        return
    fresh: dict[str, Any] = {}
    if hasattr(module, "rope_init_fns"):
        fresh = dict(type(module)(module.config).named_buffers(recurse=False))
    elif "embed_scale" in here:
        fresh = {"embed_scale": torch.tensor(module.scalar_embed_scale)}
    elif "layer_scalar" in here:
        fresh = {"layer_scalar": torch.ones(1)}
    for name, value in here.items():
        dtype = torch.float32 if name.endswith("inv_freq") else value.dtype
        module._buffers[name] = fresh[name].to(device=device, dtype=dtype)


def _quantize(model: Any, path: str, module: Any) -> None:
    """Put a 4-bit linear in the place of a bf16 one."""
    import bitsandbytes as bnb
    import torch

    with torch.device("meta"):
        four = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            compress_statistics=True,
            quant_type="nf4",
        )
    value = bnb.nn.Params4bit(
        module.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=four
    )
    four.weight = value.to(module.weight.device)  # which quantizes it
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, four)


def _say_quantized(model: Any) -> None:
    """What `from_pretrained` leaves on a model it quantized, and trainers ask for."""
    from transformers import BitsAndBytesConfig
    from transformers.utils.quantization_config import QuantizationMethod

    model.is_quantized = model.is_loaded_in_4bit = True
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
