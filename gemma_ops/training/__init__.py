"""Training: the step `train`, supervised fine-tuning with LoRA or QLoRA through TRL, in this process or in several."""

from __future__ import annotations

import os
from pathlib import Path

from gemma_ops.config import Machine, MachineConfig, TrainConfig
from gemma_ops.errors import ConfigError


def train(out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path) -> dict[str, float]:
    """Train an adapter for `base` on the rows of `data`, by `settings.method`, where `launch` says. See `sft.train`."""
    from gemma_ops.training import launch

    here = machine if isinstance(machine, Machine) else Machine(**dict(machine))
    if here.launch.engine != "local":
        return launch.start(out, settings, here, base=base, data=data)
    launch.checks.refuse(settings, here)
    if int(os.environ.get("WORLD_SIZE") or "1") > 1:
        raise ConfigError(
            "somebody else's launcher started this process as one of several: each would train by itself, into one folder",
            "start it once, with --set launch.engine=torchrun --set launch.processes=…",
        )
    return train_here(out, settings, machine, base=base, data=data)


def train_here(out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path) -> dict[str, float]:
    """Train in this process, alone or as one of a process group."""
    from gemma_ops.training import sft

    run = {"sft": sft.train}[settings.method]
    return run(out, settings, machine, base=base, data=data)
