"""Training: the step `train`, in whatever way `train.method` says."""

from __future__ import annotations

from pathlib import Path

from gemma_ops.config import MachineConfig, ModelConfig, TrainConfig
from gemma_ops.config.methods import PREFERENCE, REINFORCE


def train(
    out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path, teacher: Path | None = None
) -> dict[str, float]:
    """Train an adapter for `base`, or `base` itself (`tune: full`), on the rows of `data`, by `settings.method`. See `sft.train` and `methods.run.train`."""
    if settings.method in (*PREFERENCE, *REINFORCE):
        from gemma_ops.training.methods import run

        return run.train(out, settings, machine, base=base, data=data)
    from gemma_ops.training import sft

    return sft.train(out, settings, machine, base=base, data=data, teacher=teacher)


def larger_model(settings: TrainConfig) -> ModelConfig | None:
    """The teacher of a distillation, to be fetched; None for every other method."""
    return ModelConfig(base=settings.distill.teacher or "") if settings.method == "distill" else None
