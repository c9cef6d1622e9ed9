"""A Gemma 4 of any shape with random weights, made in memory and straight on the device: for measuring, not for
answering.

Random weights as the library draws them make a bad subject: Gemma 4 normalises queries and keys and does not divide
scores by the root of the head size, so attention saturates, and gradients in bfloat16 are chaos (two exact ways to
compute them agree to a cosine of 0.1). Queries sixteen times smaller and branches that add 0.3 instead of 1 to the
stream bring every way to 0.999 and more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_ops.modeling import nf4
from gemma_ops.modeling.audit import wants_4bit
from gemma_ops.modeling.experts import STACKS, Experts4bit
from gemma_ops.modeling.host_ple import HostEmbedding
from gemma_ops.modeling.load import Place, Weights

_STD = 0.02
_QUERY, _BRANCH = 1 / 16, 0.3
_CLASSES = {"gemma4_text": "Gemma4ForCausalLM", "gemma4_unified_text": "Gemma4UnifiedForCausalLM"}


def build_made_up(
    text: dict[str, Any],
    *,
    weights: Weights = "bf16",
    device: str = "cpu",
    seed: int = 0,
    experts: Weights = "bf16",
    ple: Place = "device",
) -> Any:
    """Build a text-only causal model of the shape that `text`, a text configuration with its `model_type`, describes.

    The same shape, device and seed give the same weights. With `nf4`, attention and MLP are 4-bit, and the experts
    where `experts` says so too, each quantized as it is drawn, so that the bf16 model is never whole in memory. `ple:
    host` keeps the per-layer table in main memory. In evaluation mode, as a loader hands it out.
    """
    import torch

    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    with torch.device("meta"):
        model = skeleton(text, dtype)
    random = torch.Generator(device=device).manual_seed(seed)
    made: dict[int, Any] = {}
    for path, module in list(model.named_modules()):
        for name, value in list(module._parameters.items()):
            if value is not None:  # the head is the embedding: drawn once
                if id(value) not in made:
                    made[id(value)] = torch.nn.Parameter(_drawn(f"{path}.{name}", value, random))
                module._parameters[name] = made[id(value)]
        _fill_buffers(module, device)
        if weights == "nf4":
            _quantize(model, path, module, experts)
        if ple == "host" and path.endswith("embed_tokens_per_layer"):
            table, scale = module.weight.data.cpu(), module.scalar_embed_scale
            _put(model, path, HostEmbedding(table, scale=scale, dtype=dtype, padding=0))
            del made[id(value)]
    if weights == "nf4":
        _say_quantized(model)
    model.accepts_loss_kwargs = True
    return model.eval()


def skeleton(text: dict[str, Any], dtype: Any) -> Any:
    """Build the model's modules, on whatever device is the default: `torch.device("meta")` makes them without
    memory."""
    import torch
    import transformers

    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    settings = tokens | {key: value for key, value in text.items() if key != "model_type"}
    cls = getattr(transformers, _CLASSES[text["model_type"]])
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return cls(cls.config_class(**settings))
    finally:
        torch.set_default_dtype(before)


def save_made_up(model: Any, folder: Path) -> Path:
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
    """Draw the values of one parameter."""
    import torch

    value = torch.empty(like.shape, dtype=like.dtype, device=random.device)
    if value.ndim >= 2:
        return value.normal_(0.0, _STD, generator=random)
    if "q_norm" in name:
        return value.fill_(_QUERY)
    return value.fill_(_BRANCH if ".post_" in name else 1.0)


def _fill_buffers(module: Any, device: str) -> None:
    """Fill the buffers, which have no values on the meta device: rotary frequencies, embedding scales, layer
    scalars."""
    import torch

    here = dict(module.named_buffers(recurse=False))
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


def _quantize(model: Any, path: str, module: Any, experts: Weights) -> None:
    """Replace a bf16 module by a 4-bit one, where it should be one."""
    import torch

    if isinstance(module, torch.nn.Linear) and wants_4bit(path):
        _put(model, path, nf4.linear(module.in_features, module.out_features, _four(module.weight)))
    elif type(module).__name__.endswith("TextExperts") and experts == "nf4":
        packed = Experts4bit(module)
        for name in STACKS:
            setattr(packed, name, _four(getattr(module, name)))
        _put(model, path, packed)


def _four(value: Any) -> Any:
    import bitsandbytes as bnb

    plain = bnb.nn.Params4bit(value.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
    return plain.to(value.device)  # which quantizes it


def _put(model: Any, path: str, module: Any) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def _say_quantized(model: Any) -> None:
    """Set the attributes that `from_pretrained` leaves on a quantized model, and trainers ask for."""
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
    from transformers.utils.quantization_config import QuantizationMethod

    model.is_quantized = model.is_loaded_in_4bit = True
    model.quantization_method = QuantizationMethod.BITS_AND_BYTES
    model.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model.hf_quantizer = Bnb4BitHfQuantizer(model.config.quantization_config)
