"""Training: the step `train`, by any `train.method`, in this process or in several."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ops.config import Machine, MachineConfig, ModelConfig, TrainConfig
from gemma_ops.errors import ConfigError
from gemma_ops.privacy.classes import learned_class, record_learned, rows_class, strictest
from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.training.train_step import train_here
else:
    train_here = later("gemma_ops.training.train_step", "train_here")

__all__ = ["larger_model", "train", "train_here"]


def train(
    out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path, teacher: Path | None = None
) -> dict[str, float]:
    """Train an adapter for `base`, or `base` itself (`tune: full`), on the rows of `data`, by `settings.method`, where
    `launch` says. What it learned from is recorded in `learned.json`."""
    metrics = _trained(out, settings, machine, base=base, data=data, teacher=teacher)
    _record(out, base, data, teacher)
    return metrics


def _trained(
    out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path, teacher: Path | None
) -> dict[str, float]:
    """Train in this process or in several, as `launch` says."""
    from gemma_ops.training import launch

    here = machine if isinstance(machine, Machine) else Machine(**dict(machine))
    if here.launch.engine != "local":
        return launch.start_launch(out, settings, here, base=base, data=data, teacher=teacher)
    launch.launch_checks.refuse_launch(settings, here)
    if int(os.environ.get("WORLD_SIZE") or "1") > 1:
        raise ConfigError(
            "somebody else's launcher started this process as one of several: each would train by itself, into "
            "one folder",
            "start it once, with --set launch.engine=torchrun --set launch.processes=…",
        )
    return train_here(out, settings, machine, base=base, data=data, teacher=teacher)


def _record(out: Path, base: Path, data: Path, teacher: Path | None) -> None:
    """Write the class of what was learned next to what was trained: in the artifact, and in each folder people copy."""
    models = {"base": base, "teacher": teacher}
    found = {name: learned_class(path) for name, path in models.items() if path is not None}
    found["rows"] = rows_class([data / "train.jsonl", data / "valid.jsonl"])
    for folder in (out, out / "adapter", out / "tuned"):
        if folder.is_dir():
            record_learned(folder, strictest(found.values()), [f"{name}: {kind}" for name, kind in found.items()])


def larger_model(settings: TrainConfig) -> ModelConfig | None:
    """Return the teacher of a distillation, to be fetched; None for every other method."""
    return ModelConfig(base=settings.distill.teacher or "") if settings.method == "distill" else None
