"""Training: the step `train`, supervised fine-tuning with LoRA or QLoRA through TRL."""

from __future__ import annotations

from pathlib import Path

from gemma_ops.config import MachineConfig, TrainConfig


def train(out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path) -> dict[str, float]:
    """Train an adapter for `base` on the rows of `data`, by `settings.method`. See `sft.train`."""
    from gemma_ops.training import sft

    run = {"sft": sft.train}[settings.method]
    return run(out, settings, machine, base=base, data=data)
