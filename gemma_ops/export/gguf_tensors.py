"""The tensors of a GGUF file: which tensor of a Gemma 4 checkpoint becomes which, and in which type it is stored.

Names follow llama.cpp's architecture `gemma4` (gguf-py 0.19, `constants.py` and `tensor_mapping.py`).

Policy, for files whose bulk is 8 or 4 bits:
- vectors (norms, scales) and the router stay F32: small, and the router's rounding changes which experts answer;
- the token embedding (which is also the head) and the per-layer embedding table never go below 8 bits: a 4-bit PLE
  table turns answers into garbage (Rapid-MLX issue 1114);
- per-layer projections stay at 8 bits or more: 4 bits there double the KL divergence for one percent of the size
  (exllamav3 pull request 253); the shared `per_layer_model_proj` stays BF16, where llama.cpp 0.3.36's own converter
  writes Q8_0 into a q8_0 file: it is small, and every layer reads it;
- rows that are no whole blocks of the type get the next type whose blocks fit (`INSTEAD`), as in llama.cpp's quantizer;
- in the formats named `_m`, values and the MLP's last matrix get more bits in the first and last eighth of the layers
  and in every third between (llama.cpp, `use_more_bits`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.family import Layer, Shape
from gemma_ops.family.formats import BITS, BLOCKS, GGUF, INSTEAD, QUANTIZED_TYPES, TABLE_TYPE, GgufName, TensorType
from gemma_ops.modeling.shards import TensorEntry

_MODEL = {
    "embed_tokens.weight": "token_embd.weight",
    "embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
    "norm.weight": "output_norm.weight",
}
_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
    "layer_scalar": "layer_output_scale.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}
TOWERS = re.compile(r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio|vision_embedder|audio_embedder)\.")
"""Names of a checkpoint's tensors that belong to its towers."""
_TABLES = ("token_embd.weight", "per_layer_token_embd.weight")
_PLE_LINEARS = ("inp_gate.weight", "proj.weight")
_CAREFUL = ("attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight")


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file to be written. `source` is None for tensors computed from the config."""

    name: str
    source: TensorEntry | None
    shape: tuple[int, ...]
    type: TensorType

    @property
    def kind(self) -> str:
        """Return its name without the layer, by which the audit groups tensors."""
        return tensor_kind(self.name)

    @property
    def is_table(self) -> bool:
        """True for the token embedding and the per-layer table."""
        return self.kind in _TABLES

    @property
    def is_projection(self) -> bool:
        """True for a per-layer projection."""
        return self.kind in _PLE_LINEARS


@dataclass(frozen=True)
class GgufPlan:
    """The plan of a file: its tensors in the order they are written, and the checkpoint's tensors left out, by
    reason."""

    format: GgufName
    tensors: list[PlannedTensor]
    left_out: dict[str, list[str]]

    def with_types(self, types: Mapping[str, TensorType]) -> GgufPlan:
        """Return the plan with other types of some tensors, by name."""
        tensors = [replace(each, type=types.get(each.name, each.type)) for each in self.tensors]
        return replace(self, tensors=tensors)

    @property
    def file_type(self) -> str:
        """Return the name of the file type in llama.cpp: of a mixed file, that of the type which most weights have."""
        if not GGUF[self.format].mixed:
            return GGUF[self.format].file_type
        weights: Counter[TensorType] = Counter()
        for each in self.tensors:
            if each.type in QUANTIZED_TYPES and not each.is_table:
                weights[each.type] += math.prod(each.shape)
        most = weights.most_common(1)[0][0]
        return next(form.file_type for form in GGUF.values() if form.tensor == most and not form.careful)


def plan_tensors(source: MergedCheckpoint, form: GgufName, tables: TensorType = TABLE_TYPE) -> GgufPlan:
    """Return what a checkpoint becomes in a format, its embedding tables in the type `tables`.

    Raises ModelError on a tensor that has no place in llama.cpp's Gemma 4.
    """
    shape = Shape.from_config(source.config)
    _check_sharing(shape)
    full = next(layer for layer in shape.layers if layer.window is None)
    # Proportional RoPE of the full-attention layers: llama.cpp divides frequencies by these factors.
    tensors = [PlannedTensor("rope_freqs.weight", None, (full.head_dim // 2,), "F32")]
    left_out: dict[str, list[str]] = {"towers": [], "unused keys and values": [], "tied head": []}
    for name, entry in source.entries.items():
        if TOWERS.match(name):
            left_out["towers"].append(name)
            continue
        if name == "lm_head.weight" and source.config.get("tie_word_embeddings", True):
            left_out["tied head"].append(name)
            continue
        target, layer = _place(name, shape)
        if layer is not None and _unused(target, layer):
            left_out["unused keys and values"].append(name)
            continue
        extent = entry.shape or (1,)
        tensors.append(
            PlannedTensor(target, entry, extent, tensor_type(target, extent, form, len(shape.layers), tables))
        )
    return GgufPlan(form, tensors, {reason: sorted(names) for reason, names in left_out.items() if names})


def tensor_type(
    name: str, shape: tuple[int, ...], form: GgufName, layers: int = 0, tables: TensorType = TABLE_TYPE
) -> TensorType:
    """Return the type a tensor is stored in (see the policy above), in a model of so many layers."""
    kind = tensor_kind(name)
    if len(shape) < 2 or kind == "ffn_gate_inp.weight":
        return "F32"
    found = GGUF[form].tensor
    if found not in QUANTIZED_TYPES or kind == "per_layer_model_proj.weight":
        return "BF16"
    if kind in _TABLES and BITS[found] < BITS[TABLE_TYPE]:
        found = tables
    elif kind in _TABLES or kind in _PLE_LINEARS:
        found = TABLE_TYPE
    elif (careful := GGUF[form].careful) and kind in _CAREFUL and _careful_layer(int(name.split(".")[1]), layers):
        found = careful
    return fitting_type(found, shape[-1])


def fitting_type(kind: TensorType, width: int) -> TensorType:
    """Return the type of a tensor with rows of `width` numbers: the one asked for, or the next whose blocks fit."""
    while width % BLOCKS[kind]:
        kind = INSTEAD[kind]
    return kind


def tensor_kind(name: str) -> str:
    """Return a tensor's name without its layer."""
    return re.sub(r"^blk\.\d+\.", "", name)


def _careful_layer(index: int, layers: int) -> bool:
    """True for the layers that get more bits in the formats named `_m` (llama.cpp, llama-quant.cpp,
    `use_more_bits`)."""
    eighth = layers // 8
    return index < eighth or index >= 7 * layers // 8 or (index - eighth) % 3 == 2


def _check_sharing(shape: Shape) -> None:
    """Check which layers KV-shared layers read from, as llama.cpp hard-wires it: full-attention ones from the last
    layer before them, sliding ones from the last but one. That is right for E2B and E4B; for another order it aborts
    the process.
    """
    first = next((layer.index for layer in shape.layers if layer.shares_kv), None)
    if first is None:
        return
    before = [shape.layers[index].window is None for index in (first - 2, first - 1) if index >= 0]
    if before != [False, True]:
        raise ModelError(
            f"llama.cpp can't run this model: layers {first} and up share keys and values, and the two layers before "
            f"them are not a sliding and then a full-attention one",
            "choose num_kv_shared_layers so that a full-attention layer is the last before them, as in E2B and E4B",
        )


def _place(name: str, shape: Shape) -> tuple[str, Layer | None]:
    inner = re.sub(r"^(model\.)?(language_model\.)?", "", name)
    if inner in _MODEL:
        return _MODEL[inner], None
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", inner)
    if match and match[2] in _LAYER and int(match[1]) < len(shape.layers):
        return f"blk.{match[1]}.{_LAYER[match[2]]}", shape.layers[int(match[1])]
    raise ModelError(
        f"no place for {name} in llama.cpp's Gemma 4",
        "export the bf16 checkpoint as it was published, or as `merge` wrote it",
    )


def layer_tensor_name(name: str) -> str | None:
    """Return the name in a GGUF file of a layer's tensor, by the checkpoint's name; None for one that is no layer's."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    return f"blk.{match[1]}.{_LAYER[match[2]]}" if match and match[2] in _LAYER else None


def place_tensor(name: str, source: MergedCheckpoint) -> str | None:
    """Return the name in a GGUF file of a tensor of the language model; None where the file leaves it out. Raises
    ModelError as `plan_tensors`."""
    target, layer = _place(name, Shape.from_config(source.config))
    return None if layer is not None and _unused(target, layer) else target


def _unused(target: str, layer: Layer) -> bool:
    """True for keys and values of layers that take them from an earlier layer, and values where keys serve as values.

    Google's files carry them and no engine reads them. llama.cpp (b9672 and later) loads a file that has them, as its
    converter writes it; left out, the file is smaller and loads everywhere.
    """
    part = target.split(".", 2)[2]
    return (layer.shares_kv and part in ("attn_k.weight", "attn_v.weight", "attn_k_norm.weight")) or (
        layer.k_eq_v and part == "attn_v.weight"
    )
