"""REINFORCE leave-one-out (Ahmadian et al., arXiv 2402.14740) with rewards that are computed.

To each prompt several answers are drawn; an answer's advantage is how far its reward lies above the mean of the others.
"""

from __future__ import annotations

from typing import Any

import trl

from gemma_ops.config import TrainConfig
from gemma_ops.training.arguments import training_arguments
from gemma_ops.training.course import TrainingRows
from gemma_ops.training.methods import rollouts
from gemma_ops.training.methods.rewards import Rewards

CONFIG = trl.RLOOConfig
owned = rollouts.owned


class RLOO(rollouts.Answering, trl.RLOOTrainer):  # type: ignore[misc]
    """Trainer of `train.method: rloo`."""

    def __init__(self, *, settings: TrainConfig, rewards: Rewards, model: Any, **kwargs: Any) -> None:
        self.prepare(super().__init__, settings, rewards, model, kwargs)


def make_trainer(rows: TrainingRows, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    """Make the trainer; see `preference_course`."""
    settings = given["settings"]
    args = training_arguments(CONFIG, settings, keys | owned(settings, world=rollouts.processes()))
    return RLOO(args=args, rewards=rollouts.rewards_for(rows, given), **given)
