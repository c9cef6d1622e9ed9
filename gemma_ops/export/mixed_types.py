"""The file `mixed`: a type for each tensor, by what it would change of what the model says, within a number of bytes.

What the types change is measured on the training rows (`fitting.sensitivity`) and a knapsack chooses
(`fitting.type_choice`). Embedding tables and per-layer projections keep 8 bits, or `quantize.tables`, unless fewer are
harmless: alone, at most a fiftieth of the file's divergence, at the upper end of the interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.config import QuantizeConfig
from gemma_ops.errors import ConfigError
from gemma_ops.export.gguf_tensors import GgufPlan, PlannedTensor
from gemma_ops.export.tensor_bytes import rounded_rows
from gemma_ops.family.formats import BITS, BLOCKS, GGUF, QUANTIZED_TYPES, TABLE_TYPE, TensorType
from gemma_ops.fitting.fit_rows import FitRow
from gemma_ops.fitting.sensitivity import Candidate, Sensitivity, measure_sensitivity
from gemma_ops.fitting.type_choice import TypeMix, TypeOption, choose_types, type_frontier
from gemma_ops.runs.durable import write_json

MIXED = "mixed"
_ROWS = 64
"""Training rows on which the types are measured, at most."""
_SEED = 1
_HARMLESS = 0.02
"""Share of the file's divergence that a guarded tensor in fewer bits may make."""
_POINTS = 24
"""Points of the frontier that are kept."""


@dataclass(frozen=True)
class MixedTypes:
    """The types of a mixed file, and what they were chosen from."""

    types: dict[str, TensorType]
    room: int
    """Bytes that the file was given."""
    predicted: float
    """Divergence on every token of the rows, in nats."""
    frontier: list[tuple[int, float]]
    """Bytes and divergence of files from the smallest to the most exact."""

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {"room": self.room, "predicted_kl": self.predicted, "frontier": self.frontier, "types": self.types}


def mixed_types(
    plan: GgufPlan,
    settings: QuantizeConfig,
    rows: Sequence[FitRow],
    load: Callable[[], Any],
    overhead: int,
    keep: Path,
) -> MixedTypes:
    """Return the types of a file within `quantize.budget` or `quantize.bits`, those in the file `keep` where a step
    that was killed had chosen already. `plan` is of the format `mixed`, `overhead` the bytes of a file that no type
    changes, `load` gives the model. Raises ConfigError where the bytes don't suffice."""
    if keep.exists():
        kept = json.loads(keep.read_text(encoding="utf-8"))
        return MixedTypes(**kept | {"frontier": [tuple(point) for point in kept["frontier"]]})
    tensors = {each.name: each for each in plan.tensors if _is_choice(each)}
    fixed = sum(_bytes(each, each.type) for each in plan.tensors if each.name not in tensors) + overhead
    parameters = sum(_parameters(each) for each in plan.tensors)
    room = int(settings.budget or (settings.bits or 0) * parameters / 8)
    smallest = sum(min(_bytes(each, kind) for kind in _types(each)) for each in tensors.values())
    if room < fixed + smallest:
        raise _too_small(fixed + smallest - room, parameters, "raise it")
    candidates = [
        Candidate(each.source.name, each.name, _types(each)) for each in tensors.values() if each.source is not None
    ]
    found = measure_sensitivity(load(), candidates, rows[:_ROWS], rounded_rows, _SEED)
    mix, options = _choose(tensors, found, GGUF[settings.tables].tensor, room - fixed, parameters)
    frontier = [(step.bytes + fixed, found.divergence(step.types)) for step in _thinned(type_frontier(options))]
    made = MixedTypes(mix.types, room, found.divergence(mix.types), frontier)
    keep.parent.mkdir(parents=True, exist_ok=True)
    write_json(keep, asdict(made))
    return made


def _choose(
    tensors: Mapping[str, PlannedTensor], found: Sensitivity, tables: TensorType, room: int, parameters: int
) -> tuple[TypeMix, dict[str, list[TypeOption]]]:
    """Return the choice for so many bytes and the options it was made from: first from all types, then without those
    of guarded tensors that are not harmless in such a file."""
    free = {name: _options(each, found, tables, float("inf")) for name, each in tensors.items()}
    first = choose_types(free, room)
    limit = _HARMLESS * found.divergence(first.types) if first else 0.0
    guarded = {name: _options(each, found, tables, limit) for name, each in tensors.items()}
    mix = choose_types(guarded, room)
    if mix is None:
        lacking = sum(min(option.bytes for option in each) for each in guarded.values()) - room
        raise _too_small(lacking, parameters, "raise it, or allow smaller tables by quantize.tables")
    return mix, guarded


def _too_small(lacking: int, parameters: int, fix: str) -> ConfigError:
    return ConfigError(
        f"quantize.budget or quantize.bits is {lacking:,} bytes ({8 * lacking / parameters:.2f} bits a weight) less "
        f"than the smallest mixed file of this model takes",
        fix,
    )


def _options(each: PlannedTensor, found: Sensitivity, tables: TensorType, limit: float) -> list[TypeOption]:
    """Return the types of a tensor. Of a guarded one those below 8 bits, or below what was allowed, must be harmless:
    at most `limit`, in nats."""
    options = []
    floor = BITS[TABLE_TYPE] if each.is_projection else min(BITS[TABLE_TYPE], BITS[tables])
    for kind in _types(each):
        harm, at_most = found.alone(each.name, kind)
        if BITS[kind] >= floor or at_most <= limit or not (each.is_table or each.is_projection):
            options.append(TypeOption(kind, _bytes(each, kind), harm))
    return options


def _types(each: PlannedTensor) -> tuple[TensorType, ...]:
    """Return the types whose blocks a tensor's rows are made of."""
    return tuple(kind for kind in QUANTIZED_TYPES if each.shape[-1] % BLOCKS[kind] == 0)


def _is_choice(each: PlannedTensor) -> bool:
    """True for a tensor that can have more than one type."""
    return each.source is not None and each.type in QUANTIZED_TYPES


def _parameters(each: PlannedTensor) -> int:
    return int(np.prod(each.shape))


def _bytes(each: PlannedTensor, kind: TensorType) -> int:
    """Return the bytes of a tensor in a file, which pads each to a multiple of 32."""
    return -(-int(_parameters(each) * BITS[kind] / 8) // 32) * 32


def _thinned(steps: Sequence[TypeMix]) -> list[TypeMix]:
    """Return some of the steps, spread evenly over their bytes."""
    if len(steps) <= _POINTS:
        return list(steps)
    first, last = steps[0].bytes, steps[-1].bytes
    found = [steps[0]]
    for step in steps[1:]:
        if step.bytes >= first + len(found) * (last - first) / (_POINTS - 1) or step is steps[-1]:
            found.append(step)
    return found
