"""The course of preference and reinforcement methods: rows that were compared, judged or asked for, and TRL's
trainers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_ops import kernels
from gemma_ops.config import TrainConfig
from gemma_ops.config.methods import REINFORCE
from gemma_ops.data import answer_tables
from gemma_ops.data.answer_tables import Encoding
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError
from gemma_ops.modeling import adapters, reward_head
from gemma_ops.modeling.load import load_model
from gemma_ops.training.arguments import common
from gemma_ops.training.course import TrainingRows, TrainingSite, early_stopping
from gemma_ops.training.settle import recompute

RATE = 0.1
"""Peak learning rate as a share of the supervised one, for methods that move a model which answers already."""
_TABLES = {"kto": answer_tables.judged_rows, **dict.fromkeys(REINFORCE, answer_tables.prompt_rows)}


class PreferenceCourse:
    """Training on answers that were compared or judged, or on rewards that are computed. What learns is an adapter."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.answers = method != "reward"

    def rate_share(self, settings: TrainConfig) -> float:
        """Return the share of the supervised learning rate; see `Course.rate_share`."""
        return 1.0 if self.method == "reward" else RATE

    def rows(self, data: Path, settings: TrainConfig, site: TrainingSite) -> TrainingRows:
        """Write the tables of a prepared folder; see `Course.rows`. Raises DataError when the method can't learn from
        them."""
        manner = Manner(template=site.template, thinking=settings.thinking)
        make = _TABLES.get(self.method, answer_tables.pairs)
        encoding = Encoding(site.tokenizer, settings.max_length, manner)
        train_rows, cut = make(data / "train.jsonl", site.work / "rows", encoding, self.method)
        valid_rows, _ = make(data / "valid.jsonl", site.work / "rows", encoding, self.method)
        if len(train_rows) == 0:
            raise DataError(
                "no training row leaves room for an answer within train.max_length",
                "raise train.max_length; `gemma-ops data check` shows the rows",
            )
        return TrainingRows(train_rows, valid_rows, cut, manner)

    def model(self, settings: TrainConfig, site: TrainingSite) -> Any:
        """Load the model that learns, one that scores for `reward`; see `Course.model`."""
        model = load_model(site.folder, weights=settings.weights, device=site.device, ple=site.machine.ple)
        if self.method == "reward":
            model = reward_head.as_reward(model)
        model = adapters.attach(model, settings.lora, settings.seed)
        if self.method == "reward":
            model.get_base_model().score.requires_grad_(requires_grad=True)
        kernels.install_kernels(model, settings.kernels, recompute=recompute(settings))
        return model

    def trainer(
        self,
        model: Any,
        settings: TrainConfig,
        rows: TrainingRows,
        site: TrainingSite,
        *,
        rate: float,
        follow: Callable[[], Any],
    ) -> Any:
        """Make the trainer of `train.method`; see `Course.trainer`. Raises ConfigError as
        `arguments.training_arguments` does."""
        import transformers

        given = {
            "settings": settings,
            "model": model,
            "train_dataset": rows.train,
            "eval_dataset": rows.valid if len(rows.valid) else None,
            "processing_class": transformers.PreTrainedTokenizerFast.from_pretrained(site.folder),
            "callbacks": [follow(), *early_stopping(settings)],
        }
        best = "eval_reward" if self.method in REINFORCE else "eval_loss"
        has_valid = len(rows.valid) > 0
        keys = common(settings, site.work, has_valid=has_valid, rate=rate, device=site.device, best=best)
        trainer = _maker(self.method)(rows, keys, given)
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def save(self, model: Any, out: Path, site: TrainingSite, described: dict[str, Any]) -> Path:
        """Write the adapter, and the head of a reward model; see `Course.save`."""
        adapters.save_adapter(model, out / "adapter", described["id"], described["revision"])
        if self.method == "reward":
            reward_head.save_score(model, out / "adapter")
        return out / "adapter"


def _maker(method: str) -> Callable[[TrainingRows, dict[str, Any], dict[str, Any]], Any]:
    """Return the function that makes a method's trainer from its rows, the keys of its TRL configuration, and what
    every trainer is given.

    Only the method's own file is imported, and with it its part of TRL.
    """
    match method:
        case "dpo":
            from gemma_ops.training.methods.dpo import make_trainer
        case "orpo":
            from gemma_ops.training.methods.orpo import make_trainer
        case "kto":
            from gemma_ops.training.methods.kto import make_trainer
        case "reward":
            from gemma_ops.training.methods.reward_model import make_trainer
        case "grpo":
            from gemma_ops.training.methods.grpo import make_trainer
        case "rloo":
            from gemma_ops.training.methods.rloo import make_trainer
        case _:
            raise ValueError(f"train.method {method} has no trainer")
    return make_trainer
