"""The whole configuration of a run."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gemma_ops.config.data import DataConfig, ModelConfig
from gemma_ops.config.draft import DraftConfig
from gemma_ops.config.evaluation import EvaluateConfig, RegisterConfig
from gemma_ops.config.machine import LaunchConfig, Machine, MachineConfig, ReleaseConfig
from gemma_ops.config.section import ConfigSection, Name
from gemma_ops.config.serve import ServeConfig
from gemma_ops.config.synth import SynthConfig
from gemma_ops.config.training import MergeConfig, QuantizeConfig, TrainConfig


class RunConfig(ConfigSection):
    """One run, from data to a registered version."""

    name: Name = "run"
    """The run's folder under `machine.runs`; by default the first file's stem."""
    recipe: str = "lora"
    """A recipe shipped here, or a path to one of your own."""
    offline: bool = False
    """Connect to no other machine; `GEMMA_OPS_OFFLINE=1` says the same. Where the system allows it the kernel refuses,
    in a network of the command's own, and else a guard in Python."""
    model: ModelConfig = ModelConfig()
    synth: SynthConfig = SynthConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    launch: LaunchConfig = LaunchConfig()
    merge: MergeConfig = MergeConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    draft: DraftConfig = DraftConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register_: Annotated[RegisterConfig, Field(alias="register")] = RegisterConfig()
    release: ReleaseConfig = ReleaseConfig()
    serve: ServeConfig = ServeConfig()
    machine: MachineConfig = MachineConfig()

    def here(self) -> Machine:
        """Return what steps are told about where they run and what may leave."""
        return Machine(**dict(self.machine), launch=self.launch, release=self.release)

    def registered_model(self) -> RegisterConfig:
        """Return only which model the versions belong to: what else is registered changes nothing about its
        champion."""
        settings = self.register_
        return RegisterConfig(name=settings.name or self.name, champion_of=settings.champion_of)

    def registration(self) -> RegisterConfig:
        """Return the `register` section with its name filled in."""
        return self.register_.model_copy(update={"name": self.register_.name or self.name})
