"""What serving a configuration's model would take, before anything is downloaded or loaded: one line for each format.

Tokens are written one after another, and each reads all weights that it multiplies with: the memory's bandwidth bounds
their speed, whatever the engine. That bound is reported, no promise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gemma_ops.config import QuantizeConfig, RunConfig
from gemma_ops.errors import MachineError
from gemma_ops.family import Shape
from gemma_ops.family.formats import BITS, FORMATS, GGUF, Gguf
from gemma_ops.planning.devices import GIB, Device
from gemma_ops.planning.serving_bytes import (
    ServingBytes,
    bytes_per_token,
    checkpoint_bytes,
    checkpoint_serving_bytes,
    gguf_bytes,
    serving_bytes,
)
from gemma_ops.planning.training_plan import pick_device, resolve_base


@dataclass(frozen=True)
class ServedFormat:
    """What serving one format of the model takes."""

    format: str
    memory: ServingBytes
    fits: bool
    tokens_per_second: float
    """Upper bound of one reply's speed, with half of the context behind it."""


@dataclass(frozen=True)
class ServePlan:
    """A model's formats on a device."""

    model: str
    device: Device
    replicas: int
    slots: int
    """Slots of each replica."""
    context: int
    formats: tuple[ServedFormat, ...]

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        head = f"{'format':8}{'weights':>10}{'cache':>10}{'workspace':>11}{'total':>10}   fits   tokens/s, at most"
        rows = [
            f"{one.format:8}{_gib(one.memory.weights):>10}{_gib(one.memory.cache):>10}{_gib(one.memory.workspace):>11}"
            f"{_gib(one.memory.total):>10}   {'yes' if one.fits else 'no':6} {one.tokens_per_second:.3g}"
            for one in self.formats
        ]
        slots = f"{self.slots} slots of {self.context:,} tokens"
        if self.replicas > 1:
            slots = f"{self.replicas} replicas of {slots}"
        first = self.formats[0].memory
        kept = "keys and values of sliding layers are kept whole by llama.cpp, to read a prompt's beginning once; "
        kept += f"with serve.window_cache=true they take {_gib(first.window_cache)}"
        return [
            f"serving {self.model} on {self.device.name}, {self.device.memory:.1f} GiB: {slots}",
            head,
            *rows,
            *([kept] if first.cache > first.window_cache else []),
            f"merged, the checkpoint with what sees and hears, is for {' and '.join(FORMATS['merged'].engines)}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON, in bytes."""
        formats = [
            {"format": one.format, "engines": FORMATS[one.format].engines, **asdict(one.memory),
             "total": one.memory.total, "fits": one.fits, "tokens_per_second": one.tokens_per_second}
            for one in self.formats
        ]  # fmt: skip
        return {
            "model": self.model, "device": self.device.key, "memory": self.device.memory * GIB,
            "replicas": self.replicas, "slots": self.slots, "context": self.context, "formats": formats,
        }  # fmt: skip


def plan_serving(config: RunConfig, device: str | None = None) -> ServePlan:
    """Plan the formats of `model.base` by `serve.replicas`, `serve.slots` and `serve.context`. Raises ConfigError for
    an unknown device, and ModelError for a folder that holds no Gemma 4."""
    target, (shape, _) = pick_device(config, device), resolve_base(config.model.base)
    replicas, slots, context = config.serve.replicas, config.serve.slots, config.serve.context
    found = []
    for form in GGUF.values():
        if form.mixed and form.name not in config.quantize.formats:
            continue  # of which nobody said how large it is
        windowed = config.serve.window_cache
        weights = _file_bytes(shape, form, config.quantize)
        memory = serving_bytes(
            shape, weights, slots=slots, context=context, windowed=windowed, cache=config.serve.kv_cache
        )
        per_token = bytes_per_token(shape, form.bits, context // 2)
        found.append(_served(form.name, memory.times(replicas), target, per_token))
    memory = checkpoint_serving_bytes(shape, checkpoint_bytes(shape, towers=True), slots=slots, context=context)
    per_token = bytes_per_token(shape, BITS["BF16"], context // 2)
    found.append(_served("merged", memory.times(replicas), target, per_token))
    return ServePlan(config.model.base, target, replicas, slots, context, tuple(found))


def _file_bytes(shape: Shape, form: Gguf, quantize: QuantizeConfig) -> float:
    if form.mixed:
        return float(quantize.budget or (quantize.bits or form.bits) * shape.counts().text / 8)
    return gguf_bytes(shape, form, GGUF[quantize.tables].tensor)


def _served(form: str, memory: ServingBytes, target: Device, per_token: float) -> ServedFormat:
    """Return what a format takes on a device when each token reads so many bytes."""
    return ServedFormat(form, memory, memory.total < target.memory * GIB, target.bandwidth * 1e9 / per_token)


def check_memory(memory: ServingBytes, free: float, asked: str) -> None:
    """Raise MachineError where a model and its cache don't fit into `free` bytes."""
    if memory.total >= free:
        raise MachineError(
            f"{asked} needs {_gib(memory.total)} (weights {_gib(memory.weights)}, keys and values "
            f"{_gib(memory.cache)}), and {_gib(free)} of memory are free",
            "lower serve.slots or serve.context, serve a smaller format or fewer replicas, or free some memory",
        )


def _gib(value: float) -> str:
    return f"{value / GIB:.2f} GiB"
