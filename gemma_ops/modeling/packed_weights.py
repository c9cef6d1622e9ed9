"""Checkpoints whose weights alone are rounded to 4 bits (compressed-tensors, `pack-quantized`), read as what they mean.

Engines that take them multiply with the decoded weights, so a model that holds those says what they say. A matrix lies
in the file as `weight_packed` (outputs, inputs / 8) int32, eight codes each, the first in the lowest bits and lifted by
8; `weight_scale` (outputs, groups); `weight_shape`. The experts of a layer lie there one by one, each with its three
matrices, and are stacks of three dimensions in the model (compressed-tensors 0.19, `pack_quantized/base.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gemma_ops.errors import ModelError
from gemma_ops.modeling.shards import TensorEntry, read_tensors

LAYOUT = "pack-quantized"
"""Name of the layout in `quantization_config`."""
PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
CODES = 8
"""Codes in an int32."""
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


@dataclass(frozen=True)
class PackedEntry(TensorEntry):
    """A matrix of which `weight_packed` lies at the entry's place; its shape is that of the matrix."""

    scale: TensorEntry | None = None

    def decode(self) -> torch.Tensor:
        """Return the matrix, (outputs, inputs), in bf16 as engines multiply with it."""
        assert self.scale is not None
        codes = unpack_codes(_read_int32(self), self.shape[1])
        scale = read_tensors(self.scale).float()
        values = codes.view(self.shape[0], scale.shape[1], -1).float() * scale.unsqueeze(-1)
        return values.view(self.shape).to(torch.bfloat16)


@dataclass(frozen=True)
class PackedStack(TensorEntry):
    """The matrices of a layer's experts, of each expert one or two that lie above each other."""

    parts: tuple[tuple[PackedEntry, ...], ...] = ()

    def decode(self) -> torch.Tensor:
        """Return the stack, (experts, outputs, inputs), in bf16."""
        return torch.stack([torch.cat([part.decode() for part in expert]) for expert in self.parts])


def pack_codes(codes: torch.Tensor) -> torch.Tensor:
    """Return codes from -8 to 7, (rows, width), as int32, (rows, width / 8)."""
    lifted = (codes.to(torch.int64) + 8).view(len(codes), -1, CODES)
    words = (lifted << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_codes(words: torch.Tensor, width: int) -> torch.Tensor:
    """Return the codes in int32 words, (rows, width / 8), as int8, (rows, width)."""
    codes = (words.unsqueeze(-1) >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    return (codes - 8).to(torch.int8).reshape(len(words), -1)[:, :width]


def weights_alone(config: Mapping[str, Any]) -> bool:
    """True for the configuration of a checkpoint that `packed_entries` understands: 4-bit symmetric codes in groups,
    activations as they are."""
    found = config.get("quantization_config") or {}
    groups = list((found.get("config_groups") or {}).values())
    return found.get("format") == LAYOUT and len(groups) == 1 and all(_readable(group) for group in groups)


def packed_entries(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return a checkpoint's tensors with each packed matrix in the place of its parts, under the name of the parameter.
    Raises ModelError where a part is missing."""
    found: dict[str, TensorEntry] = {}
    stacks: dict[str, dict[tuple[int, str], PackedEntry]] = {}
    for name, entry in entries.items():
        stem, _, part = name.rpartition(".")
        if part in (SCALE, SHAPE) and f"{stem}.{PACKED}" in entries:
            continue
        if part != PACKED:
            found[name] = entry
            continue
        matrix = _matrix(stem, entry, entries.get(f"{stem}.{SCALE}"))
        if expert := _EXPERT.fullmatch(matrix.name):
            stacks.setdefault(expert[1], {})[int(expert[2]), expert[3]] = matrix
        else:
            found[matrix.name] = matrix
    for stem, matrices in stacks.items():
        found[f"{stem}.gate_up_proj"] = _stack(f"{stem}.gate_up_proj", matrices, ("gate_proj", "up_proj"))
        found[f"{stem}.down_proj"] = _stack(f"{stem}.down_proj", matrices, ("down_proj",))
    return found


def _readable(group: Mapping[str, Any]) -> bool:
    weights = group.get("weights") or {}
    plain = weights.get("num_bits") == 4 and weights.get("type") == "int" and weights.get("symmetric") is True
    return plain and weights.get("strategy") in ("group", "channel") and not group.get("input_activations")


def _matrix(stem: str, entry: TensorEntry, scale: TensorEntry | None) -> PackedEntry:
    if scale is None or entry.dtype != "I32":
        raise ModelError(f"{entry.file} holds {entry.name} without what scales it", "quantize the checkpoint again")
    shape = (entry.shape[0], entry.shape[1] * CODES)
    return PackedEntry(f"{stem}.weight", entry.file, "BF16", shape, entry.start, entry.stop, scale)


def _stack(name: str, matrices: Mapping[tuple[int, str], PackedEntry], parts: Sequence[str]) -> PackedStack:
    count = len({expert for expert, _ in matrices})
    try:
        rows = tuple(tuple(matrices[expert, part] for part in parts) for expert in range(count))
    except KeyError as error:
        raise ModelError(f"{name} lacks the matrix of an expert: {error}", "quantize the checkpoint again") from None
    shape = (count, sum(part.shape[0] for part in rows[0]), rows[0][0].shape[1])
    first = rows[0][0]
    return PackedStack(name, first.file, "BF16", shape, first.start, first.stop, rows)


def _read_int32(entry: TensorEntry) -> torch.Tensor:
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        data = bytearray(stream.read(entry.stop - entry.start))
    return torch.frombuffer(data, dtype=torch.int32).view(entry.shape[0], -1)
