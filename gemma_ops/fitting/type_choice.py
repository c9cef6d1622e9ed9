"""The choice of a type for each tensor: least divergence within a number of bytes.

A knapsack with one type a tensor. Every tensor begins with its smallest type and climbs the lower convex hull of its
(bytes, divergence) points; of all tensors the step that saves most divergence a byte comes next. What that leaves of
the bytes is less than one step, which bounds how far the choice is from the best (Sinha and Zoltners 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gemma_ops.family.formats import TensorType


@dataclass(frozen=True)
class TypeOption:
    """A type that a tensor may have."""

    type: TensorType
    bytes: int
    harm: float
    """Divergence that it alone would make, in nats."""


@dataclass(frozen=True)
class TypeMix:
    """A type for each tensor, by name."""

    types: dict[str, TensorType]
    bytes: int


def type_frontier(options: Mapping[str, Sequence[TypeOption]]) -> list[TypeMix]:
    """Return the choices from the smallest to the most exact, each with one tensor changed."""
    types, total, steps = _start(options)
    found = [TypeMix(dict(types), total)]
    for name, before, after in steps:
        types[name] = after.type
        total += after.bytes - before.bytes
        found.append(TypeMix(dict(types), total))
    return found


def choose_types(options: Mapping[str, Sequence[TypeOption]], room: int) -> TypeMix | None:
    """Return the choice for at most `room` bytes; None where the smallest types take more."""
    types, total, steps = _start(options)
    if total > room:
        return None
    stopped = set()
    for name, before, after in steps:
        if name in stopped:
            continue
        if total + after.bytes - before.bytes > room:
            stopped.add(name)
            continue
        types[name] = after.type
        total += after.bytes - before.bytes
    return TypeMix(types, total)


_Step = tuple[str, TypeOption, TypeOption]


def _start(options: Mapping[str, Sequence[TypeOption]]) -> tuple[dict[str, TensorType], int, list[_Step]]:
    """Return the smallest types, their bytes, and all steps up from them, the one that saves most a byte first."""
    hulls = {name: _hull(each) for name, each in options.items()}
    steps = [(name, *pair) for name, hull in hulls.items() for pair in pairwise(hull)]
    steps.sort(key=lambda step: (-_saving(step[1], step[2]), step[0], step[2].bytes))
    return {name: hull[0].type for name, hull in hulls.items()}, sum(hull[0].bytes for hull in hulls.values()), steps


def _saving(before: TypeOption, after: TypeOption) -> float:
    return (before.harm - after.harm) / (after.bytes - before.bytes)


def _hull(options: Sequence[TypeOption]) -> list[TypeOption]:
    """Return the options on the lower convex hull, the smallest first: each step up saves less a byte than the one
    before."""
    hull: list[TypeOption] = []
    for each in sorted(options, key=lambda option: (option.bytes, option.harm)):
        if hull and (each.bytes == hull[-1].bytes or each.harm >= hull[-1].harm):
            continue
        while len(hull) > 1 and _saving(hull[-2], hull[-1]) <= _saving(hull[-1], each):
            hull.pop()
        hull.append(each)
    return hull
