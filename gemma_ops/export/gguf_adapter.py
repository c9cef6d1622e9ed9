"""A LoRA adapter as a GGUF file, which llama.cpp puts on any GGUF file of its base (`--lora`), without merging.

llama.cpp computes `alpha / rank * B (A x)` beside the matrices that it multiplies through `build_lora_mm`
(src/llama-graph.cpp), and beside no others: an adapter on another one loads without a word and does nothing there
(`per_layer_model_projection`: src/models/gemma4.cpp). So what it would not compute is refused by name. The scale of
each pair, with rsLoRA and patterns of ranks, goes into B, and so does the scale of each expert, which
llama.cpp applies before it adds the update (`build_lora_mm_id`). Keys: gguf-py 0.19, `constants.py`, class `Adapter`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gemma_ops.config import Privacy
from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import TOWERS, PlannedTensor, place_tensor, tensor_kind
from gemma_ops.export.gguf_writer import stream_gguf
from gemma_ops.export.merge_lora import Update, read_updates
from gemma_ops.modeling.shards import read_range
from gemma_ops.privacy.classes import GGUF_KEY

COMPUTED = frozenset({
    "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_gate.weight", "ffn_up.weight",
    "ffn_down.weight", "ffn_gate_up_exps.weight", "ffn_down_exps.weight", "ffn_gate_inp.weight",
    "inp_gate.weight", "proj.weight",
})  # fmt: skip
"""Matrices, without their layer, on which llama.cpp computes an adapter."""
_ALPHA = 1.0


@dataclass(frozen=True)
class _Factor(PlannedTensor):
    """One factor of an update: `a` as (rank, inputs), `b` as (outputs, rank), for each expert where there are
    several."""

    update: Update
    factor: str


def write_adapter(adapter: Path, base: MergedCheckpoint, out: Path, *, learned: Privacy = "any") -> Path:
    """Write an adapter's folder as the file `out`, for GGUF files of `base`, and return it; `learned`, the class of the
    rows that it learned from, goes into its header.

    Raises ModelError for an adapter that is no plain LoRA, doesn't fit the base, or changes what llama.cpp would not
    compute.
    """
    tensors = _planned(read_updates(adapter, base), base)

    def describe(writer: Any) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", _ALPHA)
        writer.add_string(GGUF_KEY, learned)

    stream_gguf(out, "gemma4", "adapter", tensors, describe, partial(_data, base))
    return out


def _planned(updates: dict[str, Update], base: MergedCheckpoint) -> list[_Factor]:
    tensors, idle = [], []
    for name, update in updates.items():
        target = None if TOWERS.match(name) else place_tensor(name, base)
        if target is None or update.magnitude is not None or tensor_kind(target) not in COMPUTED:
            idle.append(name)
            continue
        rank = update.a.shape[0] // update.experts
        shapes = {"a": (rank, update.a.shape[1]), "b": (update.b.shape[0], rank)}
        for factor, shape in shapes.items():
            whole = (update.experts, *shape) if update.experts > 1 else shape
            tensors.append(_Factor(f"{target}.lora_{factor}", None, whole, "F32", update, factor))
    if idle:
        raise ModelError(
            f"llama.cpp would ignore {len(idle)} of the adapter's {len(updates)} updates, first that of {idle[0]}",
            "merge the adapter, and quantize the merged checkpoint; or train with the targets of train.lora's default, "
            "without DoRA",
        )
    return tensors


def _data(base: MergedCheckpoint, tensor: _Factor) -> Iterator[bytes]:
    """Yield a factor's numbers; B has the scale in it, since llama.cpp multiplies by alpha / rank."""
    update, experts = tensor.update, tensor.update.experts
    entry = update.a if tensor.factor == "a" else update.b
    values = read_range(entry, entry.start, entry.stop).reshape(entry.shape).float()
    if tensor.factor == "b":
        rank = update.a.shape[0] // experts
        values = values.reshape(entry.shape[0], -1, experts).permute(2, 0, 1) * (update.scale * rank / _ALPHA)
        if update.target.endswith("experts.down_proj"):
            scales = update.target.removesuffix("experts.down_proj") + "router.per_expert_scale"
            values = values * base.read(scales).float()[:, None, None]
    yield bytes(values.contiguous().numpy().tobytes())
