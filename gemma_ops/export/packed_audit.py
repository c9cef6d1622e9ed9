"""The audit of a checkpoint of compressed-tensors: which of the language model's matrices are really stored as asked.

Converters leave whole experts in 16 bits without a word, or quantize a router. Every matrix of attention, MLP and
experts must be in the file, in the format's types, and what must stay as it is must be there unchanged in type."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

from gemma_ops.errors import GateError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_audit import BULK_SHARE, FileAudit
from gemma_ops.family import Shape
from gemma_ops.family.formats import PACKED_FILE, Packed
from gemma_ops.modeling.packed_weights import CODES, PACKED
from gemma_ops.modeling.shards import TensorEntry, read_header

_SCALES = ("_scale", "_shape", "_global_scale", "_zero_point")
_PLAIN = ("BF16", "F16", "F32")
_IN_BULK = re.compile(r"\.(self_attn|mlp|experts)\.")


def audit_packed(folder: Path, source: MergedCheckpoint, form: Packed) -> FileAudit:
    """Count what a checkpoint holds, compared with the one it was made from.

    Raises GateError where less than 95 % of attention, MLP and experts is of the format's types, where a matrix of them
    is missing, and where a router, an embedding or a per-layer matrix was quantized.
    """
    file = folder / PACKED_FILE
    weights = {_stem(entry.name): entry for entry in read_header(file) if not entry.name.endswith(_SCALES)}
    wanted = _bulk(source)
    held: Counter[str] = Counter()
    missing = []
    for name, count in wanted.items():
        entry = weights.get(name)
        if entry is None or _weights(entry) != count:
            missing.append(name)
        else:
            held[entry.dtype] += count
    fix = "make it again with --redo quantize; if it repeats, leave the format out of quantize.formats"
    if missing:
        raise GateError(f"{file} lacks {len(missing)} of {len(wanted)} matrices, the first: {missing[0]}", fix)
    total = sum(wanted.values())
    share = sum(held[kind] for kind in form.kinds) / total
    if share < BULK_SHARE:
        others = ", ".join(f"{kind} {count / total:.0%}" for kind, count in held.items() if kind not in form.kinds)
        raise GateError(
            f"only {share:.0%} of attention, MLP and experts is {form.name} in {file}; the rest: {others}", fix
        )
    if odd := [name for name, entry in weights.items() if name not in wanted and entry.dtype not in _PLAIN]:
        raise GateError(f"{file} holds {odd[0]} as {weights[odd[0]].dtype}, which must stay as it was", fix)
    rest: Counter[str] = Counter()
    for name, entry in weights.items():
        if name not in wanted:
            rest[entry.dtype] += _weights(entry)
    every = held + rest
    quantized = sum(every[kind] for kind in form.kinds)
    return FileAudit(dict(sorted(every.items())), quantized / every.total(), share, file.stat().st_size)


def _stem(name: str) -> str:
    return name.removesuffix(f".{PACKED}").removesuffix(".weight")


def _weights(entry: TensorEntry) -> int:
    """Return the weights in a tensor: eight of four bits in an int32, two in a byte."""
    packed = entry.name.endswith(PACKED)
    return math.prod(entry.shape) * ({"I32": CODES, "U8": 2}.get(entry.dtype, 1) if packed else 1)


def _bulk(source: MergedCheckpoint) -> dict[str, int]:
    """Return the parameters of each matrix of attention, MLP and experts that the model reads, by name."""
    text = next((name for name in source.entries if "language_model." in name), None)
    prefix = "model.language_model." if text else "model."
    shape = Shape.from_config(source.config)
    found = {each.name: each.parameters for each in shape.linears(prefix) if _IN_BULK.search(each.name)}
    for layer in shape.layers if shape.experts else ():
        for expert in range(shape.experts):
            at = f"{prefix}layers.{layer.index}.experts.{expert}."
            found |= {at + part: shape.hidden * shape.expert_ffn for part in ("gate_proj", "up_proj", "down_proj")}
    return found
