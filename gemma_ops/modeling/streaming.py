"""Streaming of a checkpoint into memory, tensor by tensor, each in its final form at once.

The model is built without memory (torch's meta device); what the files hold is compared with what it needs before a
byte of weights is read; then each tensor is read, converted or quantized where it will live, and put in place. So
memory never holds more than the finished model and the tensor being read, and a 4-bit model never exists in bf16.
Towers that the configuration leaves out are neither built nor read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gemma_ops.errors import ModelError
from gemma_ops.modeling import experts, nf4
from gemma_ops.modeling.audit import wants_4bit
from gemma_ops.modeling.checkpoint_source import check_shards
from gemma_ops.modeling.host_ple import HostEmbedding
from gemma_ops.modeling.packed_weights import PackedEntry, PackedStack, packed_entries
from gemma_ops.modeling.shards import DTYPES, TensorEntry, mapped, read_headers, read_tensors, shard_pieces

_PIECE = 1 << 25
"""Numbers read and converted at a time."""
_TOWERS = re.compile(r"(^|\.)(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder|audio_embedder)\.")
_SHARED = re.compile(r"\.layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.")
"""Keys of layers that take keys and values from an earlier layer: official files still carry them."""
_UNIFIED = (
    (re.compile(r"\bvision_embedder\."), "embed_vision."),
    (re.compile(r"\bembed_vision\.embedding_projection\b"), "embed_vision.multimodal_embedder.embedding_projection"),
)
"""Published tensor names of the 12B, and those of its class (transformers 5.23, conversion_mapping.py)."""
_TABLE = "embed_tokens_per_layer.weight"


def build_streamed(cls: Any, config: Any, dtype: torch.dtype) -> Any:
    """Build the model without memory for its parameters, in evaluation mode."""
    with torch.device("meta"):
        return cls._from_config(config, dtype=dtype).eval()


def quantizable(model: Any, storage: torch.dtype = torch.uint8) -> None:
    """Replace, in a model without memory, the modules that will be 4-bit: attention and MLP of the language model, and
    experts.

    `storage` is the type that the packed bytes pass for.
    """
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("TextExperts"):
            _put(model, name, experts.Experts4bit(module, storage))
        elif isinstance(module, torch.nn.Linear) and wants_4bit(name):
            weight = nf4.placeholder(module.weight.shape, storage)
            _put(model, name, nf4.linear(module.in_features, module.out_features, weight))


def table_on_host(model: Any, files: dict[str, TensorEntry], dtype: torch.dtype) -> None:
    """Replace the per-layer embedding, where the model has one, by one whose table stays in main memory."""
    for name, module in list(model.named_modules()):
        if f"{name}.weight".endswith(_TABLE):
            ids = (getattr(model.config, f"{part}_token_id", None) for part in ("image", "video", "audio"))
            host = HostEmbedding(
                _host(files[f"{name}.weight"]),
                scale=module.scalar_embed_scale,
                dtype=dtype,
                padding=model.config.get_text_config().pad_token_id or 0,
                placeholders=tuple(number for number in ids if number is not None),
            )
            _put(model, name, host.train(module.training))


def _host(entry: TensorEntry) -> torch.Tensor:
    table = mapped(entry)
    return read_tensors(entry) if table is None else table


_MISMATCH = (
    "the weights and config.json do not belong together: fetch the checkpoint again, or export it with `gemma-ops "
    "quantize`"
)


def streamed_entries(folder: Path, kind: str, *, packed: bool = False) -> dict[str, TensorEntry]:
    """Return every tensor of the folder under the name that the class of that `model_type` gives it, `packed` matrices
    as what they mean. Raises ModelError for incomplete files."""
    found = {}
    entries = read_headers(check_shards(folder))
    for name, entry in (packed_entries(entries) if packed else entries).items():
        for pattern, new in _UNIFIED if "unified" in kind else ():
            name = pattern.sub(new, name)  # noqa: PLW2901
        found[name] = entry
    return found


def check_streamed(folder: Path, model: Any, files: dict[str, TensorEntry]) -> None:
    """Compare names and shapes of the files with those the model needs. Raises ModelError naming the first
    difference."""
    needed = {name: shape for name, shape, _ in _slots(model)}
    missing = sorted(set(needed) - set(files))
    unexpected = sorted(
        name
        for name in set(files) - set(needed)
        if not (_TOWERS.search(name) or _SHARED.search(name) or _tied(name, model))
    )
    mismatched = sorted(name for name in set(needed) & set(files) if files[name].shape != needed[name])
    odd = sorted(name for name in needed if name in files and files[name].dtype not in DTYPES)
    for what, names in (
        ("has no value for", missing),
        ("holds, without a place in the model,", unexpected),
        ("has another shape for", mismatched),
        ("is already quantized: it holds as integers", odd),
    ):
        if names:
            raise ModelError(f"{folder} {what} {len(names)} parameters, the first: {names[0]}", _MISMATCH)


def fill_streamed(model: Any, files: dict[str, TensorEntry], device: str, dtype: torch.dtype) -> None:
    """Read every tensor the model needs, in the order of the files, and compute what no file holds."""
    _compute_buffers(model, device)  # while parameters have no memory: transformers initialises whole modules
    slots = {name: slot for name, _, slot in _slots(model)}
    for name, entry in files.items():
        if name not in slots:
            continue
        module, leaf = slots[name]
        old = getattr(module, leaf)
        if nf4.is_4bit(old):
            weight = nf4.quantize_nf4(entry, device, dtype, old.dtype)
            if isinstance(module, torch.nn.Linear):
                nf4.install_nf4(module, weight)
            else:
                module.install(leaf, weight)
        else:
            value = _read(entry, device, old.dtype)
            setattr(module, leaf, torch.nn.Parameter(value) if leaf in module._parameters else value)
    model.tie_weights()
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise ModelError(f"{len(left)} tensors were left without a value, the first: {left[0]}", _MISMATCH)


def _read(entry: TensorEntry, device: str, dtype: torch.dtype) -> torch.Tensor:
    """Read a tensor to the device, in pieces where it is large, so that the host never holds all of it too."""
    if isinstance(entry, (PackedEntry, PackedStack)):
        return entry.decode().to(device, dtype)
    value = torch.empty(entry.shape, dtype=dtype, device=device)
    flat = value.view(-1)
    for first, numbers in shard_pieces(entry, _PIECE):
        flat[first : first + numbers.numel()] = numbers.to(device)
    return value


def _slots(model: Any) -> Iterator[tuple[str, tuple[int, ...], tuple[Any, str]]]:
    """Yield what a model without memory must get from files: (name, shape, (module, attribute)); a tied head is left
    out."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        lasting = {
            leaf: buffer for leaf, buffer in module._buffers.items() if leaf not in module._non_persistent_buffers_set
        }
        for leaf, tensor in (*module._parameters.items(), *lasting.items()):
            if tensor is None or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            shape = tensor.quant_state.shape if nf4.is_4bit(tensor) else tensor.shape
            yield f"{prefix}.{leaf}" if prefix else leaf, tuple(shape), (module, leaf)


def _tied(name: str, model: Any) -> bool:
    return name == "lm_head.weight" and bool(model.config.get_text_config().tie_word_embeddings)


def _compute_buffers(model: Any, device: str) -> None:
    """Give buffers that no file holds (rotary frequencies, embedding scales) the values their classes compute.

    They are filled with NaN first: one that transformers forgot would be found, and not be random.
    """
    for name, module in model.named_modules():
        waiting = [leaf for leaf in module._buffers if leaf in module._non_persistent_buffers_set]
        if not waiting:
            continue
        for leaf in waiting:
            buffer = module._buffers[leaf]
            module._buffers[leaf] = torch.full(buffer.shape, float("nan"), dtype=buffer.dtype)
        with torch.no_grad():
            model._init_weights(module)
        for leaf in waiting:
            if torch.isnan(module._buffers[leaf]).any():
                raise ModelError(
                    f"transformers computes no value for {name}.{leaf}", "see `gemma-ops doctor` for the versions"
                )
            module._buffers[leaf] = module._buffers[leaf].to(device)


def _put(model: Any, name: str, module: Any) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
