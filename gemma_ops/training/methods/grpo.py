"""Group-relative policy optimization (Shao et al., arXiv 2402.03300) with rewards that are computed.

To each prompt several answers are drawn; an answer's advantage is how far its reward lies above the others' mean.
"""

from __future__ import annotations

from typing import Any

import trl

from gemma_ops.config import TrainConfig
from gemma_ops.training.arguments import training_arguments
from gemma_ops.training.course import TrainingRows
from gemma_ops.training.methods import rollouts
from gemma_ops.training.methods.rewards import Rewards

CONFIG = trl.GRPOConfig


def owned(settings: TrainConfig, *, world: int) -> dict[str, Any]:
    """Return the keys of `GRPOConfig` that follow from our settings."""
    reinforce = settings.reinforce
    return rollouts.owned(settings, world=world) | {"loss_type": reinforce.loss, "scale_rewards": reinforce.scale}


class GRPO(rollouts.Answering, trl.GRPOTrainer):  # type: ignore[misc]
    """Trainer of `train.method: grpo`."""

    def __init__(self, *, settings: TrainConfig, rewards: Rewards, model: Any, **kwargs: Any) -> None:
        self.prepare(super().__init__, settings, rewards, model, kwargs)


def make_trainer(rows: TrainingRows, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    """Make the trainer; see `preference_course`."""
    settings = given["settings"]
    args = training_arguments(CONFIG, settings, keys | owned(settings, world=rollouts.processes()))
    return GRPO(args=args, rewards=rollouts.rewards_for(rows, given), **given)
