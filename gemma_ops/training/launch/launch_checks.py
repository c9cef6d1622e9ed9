"""Checks of what a launch needs of this machine and of the training, made before anything starts. Free of torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

from gemma_ops.config import LaunchConfig, Machine, MachineConfig, TrainConfig
from gemma_ops.config.methods import PREFERENCE, REINFORCE
from gemma_ops.errors import ConfigError, MachineError, OpsError
from gemma_ops.planning import devices


def refuse_launch(settings: TrainConfig, machine: Machine) -> None:
    """Raise the first problem."""
    for problem in launch_problems(settings, machine.launch, machine):
        raise problem


def launch_problems(settings: TrainConfig, launch: LaunchConfig, machine: MachineConfig) -> Iterator[OpsError]:
    """Yield everything that stands against a launch, as the errors that would be raised."""
    workers = launch.processes * launch.nodes
    if launch.engine == "local":
        if workers > 1:
            yield ConfigError(
                f"launch.engine=local is one process, and launch asks for {workers}",
                "--set launch.engine=torchrun, or ray",
            )
        if launch.strategy == "fsdp":
            yield ConfigError("launch.strategy=fsdp needs more than one process", "--set launch.engine=torchrun")
        return
    if launch.engine == "ray" and importlib.util.find_spec("ray") is None:
        yield MachineError("launch.engine is ray, and Ray is not installed", "pip install 'gemma-ops[ray]'")
    if launch.nodes > 1 and not launch.rendezvous:
        what = "host:port of the first machine" if launch.engine == "torchrun" else "the address of a Ray cluster"
        yield ConfigError(
            f"launch.nodes is {launch.nodes}, and launch.rendezvous does not say where they meet",
            f"--set launch.rendezvous=<{what}>; `gemma-ops launch render` writes the whole job",
        )
    if workers > 1 and settings.method in (*PREFERENCE, *REINFORCE):
        yield ConfigError(
            f"train.method={settings.method} trains in one process; several share sft, pretrain, dft and distill",
            "--set launch.engine=local",
        )
    if launch.strategy == "fsdp":
        if workers == 1:
            yield ConfigError("launch.strategy=fsdp needs more than one process", "raise launch.processes")
        if "8bit" in settings.optimizer:
            yield ConfigError(
                f"train.optimizer={settings.optimizer} keeps its moments in blocks that FSDP can't cut",
                "--set train.optimizer=adamw: FSDP spreads its moments over the processes",
            )
    there = gpus()
    if machine.device != "cpu" and launch.engine == "torchrun" and 0 < there < launch.processes:
        yield MachineError(
            f"launch.processes is {launch.processes}, one a GPU, and this machine has {there}",
            f"--set launch.processes={there}",
        )


def gpus() -> int:
    """Return the GPUs that a process started here sees, as the driver and CUDA_VISIBLE_DEVICES say."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return len([part for part in shown.split(",") if part.strip() and part.strip() != "-1"])
    return len(devices.present_devices())
