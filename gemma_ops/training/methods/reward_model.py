"""A reward model: trained on pairs to score the chosen answer above the rejected one (Bradley and Terry).

Loss and figures are TRL's. What is kept is an adapter and the head that reads the score; `reward_head` loads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trl

from gemma_ops.config import TrainConfig
from gemma_ops.modeling import reward_head
from gemma_ops.training.arguments import training_arguments
from gemma_ops.training.course import TrainingRows
from gemma_ops.training.methods.batches import Pairs
from gemma_ops.training.methods.reference import untouched
from gemma_ops.training.methods.whole import WholeSteps
from gemma_ops.training.settle import layout_of
from gemma_ops.training.steps import Layout

CONFIG = trl.RewardConfig


def owned(settings: TrainConfig) -> dict[str, Any]:
    """Return the keys of `RewardConfig` that follow from our settings."""
    return {"max_length": None, "disable_dropout": settings.lora.dropout == 0, "remove_unused_columns": False}


class _Whole(Pairs):
    """Collator of pairs without their masks: a score is given to the whole row."""

    def tensors(self, rows: list[Any]) -> dict[str, Any]:
        found = super().tensors(rows)
        return {key: found[key] for key in ("input_ids", "attention_mask")}


class Reward(WholeSteps, trl.RewardTrainer):  # type: ignore[misc]
    """Trainer of `train.method: reward`."""

    def __init__(self, *, settings: TrainConfig, layout: Layout, model: Any, args: Any, **kwargs: Any) -> None:
        self.settings, self.layout = settings, layout
        self.seen = 0
        self.collate = _Whole()
        with untouched(model):
            super().__init__(model=model, args=args, data_collator=self.collate, **kwargs)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        reward_head.save_score(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        reward_head.load_score(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        reward_head.load_score(self.model, Path(self.state.best_model_checkpoint))


def make_trainer(rows: TrainingRows, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    """Make the trainer; see `preference_course`."""
    settings = given["settings"]
    args = training_arguments(CONFIG, settings, keys | owned(settings))
    return Reward(args=args, layout=layout_of(settings, rows, args), **given)
