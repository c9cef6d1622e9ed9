"""The configuration: the frozen `RunConfig` tree of what a person may ask for.

Two kinds of settings live in different types. Everything but `MachineConfig` decides the bytes of a result and is part
of a step's fingerprint; `MachineConfig` says where and how fast it runs, what may leave the machine and what it may
cost, and never is. How a tree is read from YAML files and `--set` stands in `loading.py`.
"""

from gemma_ops.config.data import DataConfig, ModelConfig
from gemma_ops.config.draft import DraftConfig
from gemma_ops.config.evaluation import (
    EvaluateConfig,
    GateConfig,
    JudgeConfig,
    ProbeConfig,
    PromotionAsks,
    RegisterConfig,
)
from gemma_ops.config.gemini import GeminiConfig
from gemma_ops.config.machine import EndpointConfig, LaunchConfig, Machine, MachineConfig, ReleaseConfig
from gemma_ops.config.methods import PreferenceConfig, ReinforceConfig, RewardConfig
from gemma_ops.config.run import RunConfig
from gemma_ops.config.section import LOCATION, ConfigSection, Name, Privacy, Share
from gemma_ops.config.serve import ServeConfig
from gemma_ops.config.synth import SynthConfig
from gemma_ops.config.training import MergeConfig, QuantizeConfig, TrainConfig
from gemma_ops.config.training_sections import KernelsConfig, LoraConfig

__all__ = [
    "LOCATION",
    "ConfigSection",
    "DataConfig",
    "DraftConfig",
    "EndpointConfig",
    "EvaluateConfig",
    "GateConfig",
    "GeminiConfig",
    "JudgeConfig",
    "KernelsConfig",
    "LaunchConfig",
    "LoraConfig",
    "Machine",
    "MachineConfig",
    "MergeConfig",
    "ModelConfig",
    "Name",
    "PreferenceConfig",
    "Privacy",
    "ProbeConfig",
    "PromotionAsks",
    "QuantizeConfig",
    "RegisterConfig",
    "ReinforceConfig",
    "ReleaseConfig",
    "RewardConfig",
    "RunConfig",
    "ServeConfig",
    "Share",
    "SynthConfig",
    "TrainConfig",
]
