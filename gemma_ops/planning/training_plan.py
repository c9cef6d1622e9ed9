"""The plan of a training: bytes, whether they fit, and how long and how much it takes.

Arithmetic only: no torch, no network, nothing downloaded. A Hub id of the family is known from the family table; a
local folder is read through its `config.json`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gemma_ops
from gemma_ops import family
from gemma_ops.config import RunConfig
from gemma_ops.errors import ModelError
from gemma_ops.family import Shape, Size
from gemma_ops.planning import devices, passes, row_lengths, speed, training_memory
from gemma_ops.planning.devices import Device
from gemma_ops.planning.drafter_bytes import recorded_bytes
from gemma_ops.planning.passes import Choice
from gemma_ops.planning.row_lengths import RowLengths
from gemma_ops.planning.speed import Speed, TokenWork
from gemma_ops.planning.training_step import GIB, MemoryPart, PassShape

_PACKED = 1.0
"""Slots per token of packed passes, which end where the last document ends."""

Fits = Literal["yes", "tight", "no"]


@dataclass(frozen=True)
class Change:
    """One way to make a run fit, or faster."""

    what: str
    cost: str
    sets: tuple[str, ...]
    """Values for `--set`."""
    device: str | None
    """Value for `--device`, when the way out is another machine."""
    after: TrainingPlan
    """Plan with the change made."""


@dataclass(frozen=True)
class TrainingPlan:
    """What a configuration needs of a device."""

    name: str
    model: str
    size: str | None
    device: Device
    choice: Choice
    """Settings that the plan decided where the configuration leaves them open."""
    parts: tuple[MemoryPart, ...]
    host: float
    """Bytes of main memory for the per-layer table, where it is not on the device."""
    rows: RowLengths
    speed: Speed | None
    work: TokenWork
    tokens: float
    """Tokens trained on in all, or a million where neither steps nor data say."""
    per_million: bool
    download: int
    """Bytes to download: the bf16 checkpoint, towers included; 0 where it is here already."""
    notes: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    """Changes that would make it fit, the cheapest first; empty when it does."""
    faster: Change | None = None
    """Change that keeps the result, still fits and saves a sixth of the time or more."""

    @property
    def total(self) -> float:
        """Return the bytes on the device at the peak of a step."""
        return sum(part.bytes for part in self.parts)

    @property
    def spread(self) -> float:
        """Half-width of the uncertainty of `total`, in bytes."""
        return training_memory.memory_spread(list(self.parts))

    @property
    def fits(self) -> Fits:
        """Return `yes` when it fits at the upper end of the uncertainty, `tight` when only the estimate itself does."""
        room = self.device.memory * GIB
        return "yes" if self.total + self.spread <= room else "tight" if self.total <= room else "no"

    @property
    def seconds(self) -> float | None:
        return self.tokens / self.speed.tokens_per_second if self.speed else None

    @property
    def dollars(self) -> float | None:
        return self.seconds / 3600 * self.device.dollars if self.seconds is not None and self.device.dollars else None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON, with bytes as integers and numbers unrounded in their units."""
        return {
            "name": self.name,
            "model": self.model,
            "size": self.size,
            "device": {"key": self.device.key, "name": self.device.name, "memory_bytes": int(self.device.memory * GIB)},
            "fits": self.fits,
            "pass": {
                "tokens": self.choice.tokens,
                "checkpointing": self.choice.checkpointing,
                "per_layer_table": self.choice.ple,
                "recorded": self.choice.step.replayed,
            },
            "host_bytes": int(self.host),
            "total_bytes": int(self.total),
            "uncertainty_bytes": int(self.spread),
            "parts": [asdict(part) | {"bytes": int(part.bytes)} for part in self.parts],
            "download_bytes": self.download,
            "data": {
                "rows": self.rows.count,
                "tokens_per_row": self.rows.mean,
                "longest_row": self.rows.longest,
                "loss_share": self.rows.scored,
                "source": self.rows.source,
            },
            "flops_per_token": asdict(self.work),
            "tokens": self.tokens,
            "per_million": self.per_million,
            "speed": asdict(self.speed) if self.speed else None,
            "seconds": self.seconds,
            "dollars": self.dollars,
            "price_source": self.device.priced if self.dollars is not None else None,
            "notes": list(self.notes),
            "changes": [_change(change) for change in self.changes],
            "faster": _change(self.faster) if self.faster else None,
        }


def measure_plan(config: RunConfig, target: Device, counted: row_lengths.Counted | None = None) -> TrainingPlan:
    """Return the plan without advice."""
    shape, size = resolve_base(config.model.base)
    found = row_lengths.find_lengths(config, shape.vocab, counted)
    train = config.train
    choice = passes.decide_passes(
        shape,
        train,
        target,
        longest=found.longest,
        ple=config.machine.ple,
        towers=row_lengths.rows_show(config),
        processes=config.launch.processes * config.launch.nodes,
    )
    step = choice.step
    if train.packing:
        padded, slots = _PACKED, float(step.tokens)
    else:
        padded = found.padding(train.micro_batch)
        slots = min(float(step.tokens), found.mean * padded * train.micro_batch)
    return TrainingPlan(
        name=config.name,
        model=config.model.base,
        size=size.key if size else None,
        device=target,
        choice=choice,
        parts=tuple(training_memory.memory_parts(shape, step)),
        host=training_memory.host_bytes(shape, step),
        rows=found,
        speed=speed.step_speed(
            shape, step, target, slots=slots, context=_context(step, found), scored=found.scored, padded=padded
        ),
        work=speed.token_work(shape, step, context=_context(step, found), scored=found.scored),
        tokens=_tokens(config, found) or 1e6,
        per_million=_tokens(config, found) is None,
        download=2 * shape.counts().total if family.find_size(config.model.base) else 0,
        notes=_notes(config, shape, target, choice, found.mean),
    )


def _context(step: PassShape, found: RowLengths) -> float:
    """Return the length of the row that a token attends within: its own, or with a mask the whole packed or padded
    one."""
    return found.context if step.kernels.attention == "documents" else float(max(step.length, found.context))


def pick_device(config: RunConfig, device: str | None) -> Device:
    """Return the device asked for, else the largest GPU present, else the CPU."""
    if device:
        return devices.get_device(device)
    found = devices.present_devices() if config.machine.device != "cpu" else []
    return found[0] if found else devices.processor()


def resolve_base(base: str) -> tuple[Shape, Size | None]:
    """Return the dimensions of `model.base` (nano, a folder, or a Hub id of the family) and their size, if one of the
    five."""
    folder = base_folder(base)
    if base != "nano" and not folder.is_dir():
        size = family.by_repo(base)
        return size.shape, size
    try:
        body = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} holds no readable config.json", "point model.base at a Hugging Face checkpoint folder"
        ) from error
    return Shape.from_config(body), family.SIZES.get(family.identify(body) or "")


def base_folder(base: str) -> Path:
    """Return where `model.base` lies: nano's weights, or the folder it names."""
    return Path(gemma_ops.__file__).parent / "nano" / "weights" if base == "nano" else Path(base).expanduser()


def _tokens(config: RunConfig, found: RowLengths) -> float | None:
    """Return the tokens a run passes over: optimizer steps times rows, or epochs times the data; None where nothing
    says."""
    train = config.train
    if train.max_steps:
        return train.max_steps * (train.batch_tokens or train.batch * found.mean)
    return found.tokens * train.epochs if found.tokens else None


def _notes(config: RunConfig, shape: Shape, target: Device, choice: Choice, row_tokens: float) -> tuple[str, ...]:
    """Return what a reader must know about these numbers; `row_tokens` are those of a row on average."""
    notes = []
    c = shape.counts()
    if choice.ple == "host":
        notes.append(
            f"the per-layer table ({2 * c.per_layer_table / GIB:.1f} GiB) is looked up, not multiplied: it stays "
            "in main memory, and its rows are fetched ahead of each pass"
        )
    if choice.graphs != config.train.kernels.graphs:
        notes.append(
            "passes are not captured as CUDA graphs, whose own memory would not fit: a small model takes longer"
        )
    if config.train.method not in passes.REPLAYED:
        notes.append(f"{config.train.method} holds more than this: a second forward pass, or answers being generated")
    if not target.bf16:
        notes.append(
            f"{target.name} has no bfloat16: it is emulated at float32 speed without a fused attention kernel; "
            "float16 doesn't help: Gemma 4 overflows in it"
        )
    if choice.step.towers:
        notes.append("rows show images or audio: towers are loaded; what adapters on them keep is not counted")
    elif c.vision + c.audio:
        notes.append(f"loaded for text: vision and audio ({2 * (c.vision + c.audio) / GIB:.1f} GiB) are left out")
    if config.train.max_length > shape.context:
        notes.append(f"train.max_length exceeds the model's context of {shape.context:,} tokens")
    if config.draft.base != "none":
        room = recorded_bytes(shape, config.draft, row_tokens) / 1e9
        notes.append(f"the step draft records up to {room:,.1f} GB in machine.runs while it tunes the drafter")
    return tuple(notes)


def _change(change: Change) -> dict[str, Any]:
    after = change.after
    return {
        "what": change.what,
        "cost": change.cost,
        "set": list(change.sets),
        "device": change.device,
        "total_bytes": int(after.total),
        "tokens_per_second": after.speed.tokens_per_second if after.speed else None,
        "seconds": after.seconds,
        "dollars": after.dollars,
    }
