"""The tensors of an mmproj file: which tensor of a checkpoint's vision and audio towers becomes which in llama.cpp.

Four kinds of tower, named as llama.cpp names its projectors (tools/mtmd, b11549): `gemma4v`, the vision encoder of E2B,
E4B, 26B-A4B and 31B; `gemma4a`, the conformer of E2B and E4B; `gemma4uv` and `gemma4ua`, the 12B's patches and waveform
without an encoder. Names of the first two are those of gguf-py 0.19 (`tensor_mapping.py`), which doesn't know the
others.

Matrices are stored in the type that is asked for, and the rest in F32: norms, bounds of clipped linears, tables of
positions, and the kernels of convolutions, which llama.cpp computes in no 16-bit type of ours.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import TOWERS, PlannedTensor
from gemma_ops.family.formats import PROJECTOR_TYPES, ProjectorType

Change = Literal["none", "softplus", "channels first", "columns channels first", "axes first", "flat"]
"""Change of the numbers, or of their order, on the way into the file."""

_BOUNDS = ("input_min", "input_max", "output_min", "output_max")
_VISION = {
    "input_layernorm": "ln1", "post_attention_layernorm": "attn_post_norm", "pre_feedforward_layernorm": "ln2",
    "post_feedforward_layernorm": "ffn_post_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_out", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
# The two norms of a convolution module have each other's names in llama.cpp, and it reads them so.
_AUDIO = {
    "feed_forward1.pre_layer_norm": "ffn_norm", "feed_forward1.ffw_layer_1": "ffn_up",
    "feed_forward1.ffw_layer_2": "ffn_down", "feed_forward1.post_layer_norm": "ffn_post_norm",
    "feed_forward2.pre_layer_norm": "ffn_norm_1", "feed_forward2.ffw_layer_1": "ffn_up_1",
    "feed_forward2.ffw_layer_2": "ffn_down_1", "feed_forward2.post_layer_norm": "ffn_post_norm_1",
    "lconv1d.pre_layer_norm": "conv_norm", "lconv1d.linear_start": "conv_pw1", "lconv1d.depthwise_conv1d": "conv_dw",
    "lconv1d.conv_norm": "norm_conv", "lconv1d.linear_end": "conv_pw2", "norm_pre_attn": "attn_pre_norm",
    "norm_post_attn": "attn_post_norm", "norm_out": "ln2", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.post": "attn_out", "self_attn.relative_k_proj": "attn_k_rel",
    "self_attn.per_dim_scale": "per_dim_scale",
}  # fmt: skip
_WHOLE = {
    "vision_tower.patch_embedder.input_proj": "v.patch_embd",
    "vision_tower.patch_embedder.position_embedding_table": "v.position_embd.weight",
    "vision_tower.std_bias": "v.std_bias", "vision_tower.std_scale": "v.std_scale",
    "embed_vision.embedding_projection": "mm.input_projection",
    "audio_tower.subsample_conv_projection.layer0.conv": "a.conv1d.0",
    "audio_tower.subsample_conv_projection.layer0.norm": "a.conv1d.0.norm",
    "audio_tower.subsample_conv_projection.layer1.conv": "a.conv1d.1",
    "audio_tower.subsample_conv_projection.layer1.norm": "a.conv1d.1.norm",
    "audio_tower.subsample_conv_projection.input_proj_linear": "a.input_projection",
    "audio_tower.output_proj": "a.pre_encode.out", "embed_audio.embedding_projection": "mm.a.input_projection",
    "embed_vision.patch_ln1": "v.patch_norm.1", "embed_vision.patch_dense": "v.patch_embd",
    "embed_vision.patch_ln2": "v.patch_norm.2", "embed_vision.pos_norm": "v.patch_norm.3",
    "embed_vision.pos_embedding": "v.position_embd.weight",
    "embed_vision.multimodal_embedder.embedding_projection": "mm.input_projection",
}  # fmt: skip
_CHANGES: dict[str, Change] = {
    "vision_tower.patch_embedder.input_proj.weight": "channels first",
    "embed_vision.patch_dense.weight": "columns channels first",
    "embed_vision.patch_ln1.weight": "columns channels first",
    "embed_vision.patch_ln1.bias": "columns channels first",
    "embed_vision.pos_embedding": "axes first",
}
_EXACT = re.compile(r"(v\.position_embd|v\.patch_norm|a\.conv1d|a\.blk\.\d+\.(conv_dw|per_dim_scale))")
"""Tensors that stay in F32 whatever their shape."""


@dataclass(frozen=True)
class ProjectorTensor(PlannedTensor):
    """One tensor of the file to be written, with the change that its numbers go through."""

    change: Change = "none"


@dataclass(frozen=True)
class ProjectorPlan:
    """The plan of an mmproj file: its tensors in the order they are written."""

    type: ProjectorType
    tensors: list[ProjectorTensor]


def has_towers(source: MergedCheckpoint) -> bool:
    """True for a checkpoint with tensors of a vision or an audio tower."""
    return any(TOWERS.match(name) for name in source.entries)


def plan_projector(source: MergedCheckpoint, kind: ProjectorType) -> ProjectorPlan:
    """Return what a checkpoint's towers become, matrices in the type `kind`. Raises ModelError for a tensor that has no
    place in llama.cpp's projectors."""
    stored, _ = PROJECTOR_TYPES[kind]
    tensors = []
    for name, entry in source.entries.items():
        if not TOWERS.match(name):
            continue
        inner = name.removeprefix("model.")
        target, change = _placed(inner), _change(inner)
        shape = _shape(entry.shape or (1,), change)
        exact = len(shape) < 2 or _EXACT.match(target) or change == "channels first"
        tensors.append(ProjectorTensor(target, entry, shape, "F32" if exact else stored, change))
    return ProjectorPlan(kind, tensors)


def _placed(inner: str) -> str:
    """Return the name in the file of a tower's tensor."""
    stem, end = inner, ""
    for suffix in (".linear.weight", ".weight", ".bias", *(f".{bound}" for bound in _BOUNDS)):
        if inner.endswith(suffix):
            stem, end = inner.removesuffix(suffix), "." + suffix.rsplit(".", 1)[1]
            break
    if stem in _WHOLE:
        return _WHOLE[stem] + end
    for tower, letter, parts in (("vision_tower.encoder", "v", _VISION), ("audio_tower", "a", _AUDIO)):
        match = re.fullmatch(rf"{tower}\.layers\.(\d+)\.(.+)", stem)
        if match and match[2] in parts:
            return f"{letter}.blk.{match[1]}.{parts[match[2]]}{end or '.weight'}"
    raise ModelError(
        f"no place for {inner} in llama.cpp's projectors for Gemma 4",
        "convert the checkpoint as `merge` wrote it, or leave the towers out: quantize.mmproj=none",
    )


def _change(inner: str) -> Change:
    if inner.endswith(("per_dim_scale", "per_dim_key_scale")):
        return "softplus"
    if inner.endswith("depthwise_conv1d.weight"):
        return "flat"
    return _CHANGES.get(inner, "none")


def _shape(shape: tuple[int, ...], change: Change) -> tuple[int, ...]:
    """Return a tensor's shape in the file: kernels of patches as (outputs, 3, side, side), tables of positions as
    (axes, positions, width), kernels of depthwise convolutions as (channels, kernel)."""
    if change == "channels first":
        side = patch_side(shape[-1])
        return shape[0], 3, side, side
    if change == "axes first":
        return shape[1], shape[0], shape[2]
    return (shape[0], shape[2]) if change == "flat" else shape


def patch_side(numbers: int) -> int:
    """Return the pixels along one side of a patch of so many numbers."""
    return math.isqrt(numbers // 3)
