"""The audit of a GGUF file: read back from disk, by type, in parameters and bytes, and compared with the plan.

"q4_0" in a file name proves nothing: converters leave whole experts in 16 bits without a word. The audit refuses a file
whose tensors are not those planned, or whose bulk is not of the type that was asked for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.errors import GateError
from gemma_ops.export.gguf_tensors import GgufPlan, PlannedTensor
from gemma_ops.family.formats import GGUF, QUANTIZED_TYPES

BULK_SHARE = 0.95
"""Smallest share of the parameters in attention, MLP and experts that must be of the format's types."""
_OUTSIDE_BULK = ("token_embd.weight", "per_layer_token_embd.weight", "per_layer_model_proj.weight", "inp_gate.weight",
                 "proj.weight", "ffn_gate_inp.weight", "rope_freqs.weight")  # fmt: skip


@dataclass(frozen=True)
class FileAudit:
    """Contents of one file. Shares are of the parameters counted in it."""

    parameters: dict[str, int]
    """Parameters by the type that holds them."""
    quantized_share: float
    bulk_share: float
    """Share of attention, MLP and experts that is of the format's types."""
    file_bytes: int

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {
            "file_bytes": self.file_bytes,
            "bits_per_parameter": round(8 * self.file_bytes / sum(self.parameters.values()), 3),
            "quantized_share": round(self.quantized_share, 4),
            "bulk_share": round(self.bulk_share, 4),
            "parameters": self.parameters,
        }


@dataclass(frozen=True)
class Audit(FileAudit):
    """Contents of one GGUF file."""

    bytes: dict[str, int]
    by_kind: dict[str, dict[str, int]]

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {**super().report(), "bytes": self.bytes, "by_kind": self.by_kind}


def audit_gguf(file: Path, plan: GgufPlan) -> Audit:
    """Read a file's tensor table and compare it with the plan.

    Raises GateError when a tensor is missing, surplus, of another shape or type, when the file is cut short, or when
    less than 95 % of attention, MLP and experts is of the format's types.
    """
    found = _tensors(file, plan)
    parameters: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    kinds: dict[str, Counter[str]] = {}
    for tensor in plan.tensors:
        _, kind_of_type, count, size = found[tensor.name]
        parameters[kind_of_type] += count
        stored[kind_of_type] += size
        kinds.setdefault(tensor.kind, Counter())[kind_of_type] += count
    total = sum(parameters.values())
    bulk = [tensor for tensor in plan.tensors if _is_bulk(tensor)]
    types = GGUF[plan.format].types
    of_type = sum(found[tensor.name][2] for tensor in bulk if found[tensor.name][1] in types)
    result = Audit(
        dict(sorted(parameters.items())),
        sum(parameters[kind] for kind in QUANTIZED_TYPES) / total,
        of_type / max(1, sum(found[tensor.name][2] for tensor in bulk)),
        file.stat().st_size,
        dict(sorted(stored.items())),
        {kind: dict(sorted(types.items())) for kind, types in sorted(kinds.items())},
    )
    if result.bulk_share < BULK_SHARE:
        rows = sorted({tensor.shape[-1] for tensor in bulk if found[tensor.name][1] not in types})
        raise GateError(
            f"only {result.bulk_share:.0%} of attention, MLP and experts would be {plan.format} "
            f"(row lengths {rows} do not divide into blocks of 32)",
            "leave this format out of quantize.formats for this model",
        )
    return result


def _is_bulk(tensor: PlannedTensor) -> bool:
    return len(tensor.shape) >= 2 and tensor.kind not in _OUTSIDE_BULK


def _tensors(file: Path, plan: GgufPlan) -> dict[str, tuple[tuple[int, ...], str, int, int]]:
    """Return name to (shape, type, parameters, bytes) of each tensor in the file, checked against the plan."""
    import gguf

    fix = "run the step again with --redo quantize; if it repeats, check the disk"
    try:
        reader = gguf.GGUFReader(file)
        found = {
            tensor.name: (
                tuple(int(side) for side in reversed(tensor.shape)),
                str(tensor.tensor_type.name),
                int(tensor.n_elements),
                int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
    except (ValueError, IndexError, KeyError) as error:
        raise GateError(f"{file} is cut short or not a GGUF file: {error}", fix) from error
    planned = {tensor.name: (tensor.shape, tensor.type) for tensor in plan.tensors}
    actual = {name: (shape, kind) for name, (shape, kind, _, _) in found.items()}
    if planned != actual:
        odd = sorted(name for name in planned.keys() | actual.keys() if planned.get(name) != actual.get(name))
        name = odd[0]
        raise GateError(
            f"{file} differs from what was asked in {len(odd)} tensors, first {name}: "
            f"{actual.get(name, 'absent')} instead of {planned.get(name, 'nothing')}",
            fix,
        )
    return found
