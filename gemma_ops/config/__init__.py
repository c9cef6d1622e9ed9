"""What a person may ask for: the frozen `RunConfig` tree.

Two kinds of settings live in different types. Everything but `MachineConfig` decides the bytes of a result and is part
of a step's fingerprint; `MachineConfig` says where and how fast it runs, what may leave the machine and what it may
cost, and never is. How a tree is read from YAML files and `--set` stands in `loading.py`.
"""

from gemma_ops.config.asks import ProbeConfig, PromotionAsks
from gemma_ops.config.data import DataConfig, ModelConfig
from gemma_ops.config.endpoints import EndpointConfig
from gemma_ops.config.evaluation import EvaluateConfig, GateConfig, RegisterConfig
from gemma_ops.config.gemini import GeminiConfig
from gemma_ops.config.judge import JudgeConfig
from gemma_ops.config.kernels import KernelsConfig
from gemma_ops.config.launch import LaunchConfig
from gemma_ops.config.lora import LoraConfig
from gemma_ops.config.machine import Machine, MachineConfig
from gemma_ops.config.preference import PreferenceConfig
from gemma_ops.config.reinforce import ReinforceConfig, RewardConfig
from gemma_ops.config.release import ReleaseConfig
from gemma_ops.config.run import RunConfig
from gemma_ops.config.section import LOCATION, ConfigSection, Name, Privacy, Share
from gemma_ops.config.serve import ServeConfig
from gemma_ops.config.synth import SynthConfig
from gemma_ops.config.training import MergeConfig, QuantizeConfig, TrainConfig

__all__ = [
    "LOCATION",
    "ConfigSection",
    "DataConfig",
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
