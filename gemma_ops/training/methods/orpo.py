"""Odds-ratio preference optimization (Hong et al., arXiv 2403.07691): pairs, and no reference model.

TRL keeps ORPO among its experiments, where it holds whole logits of both sides, trains on the prompt too, and averages
tokens within a forward pass, so that the result depends on how rows are laid out. Here each pair counts alike: the
chosen answer's mean log-loss plus `beta` times the odds ratio's, equations 6 and 7 of the paper.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import transformers
import trl
from torch.nn.functional import logsigmoid

from gemma_ops.config import TrainConfig
from gemma_ops.training.arguments import training_arguments
from gemma_ops.training.course import TrainingRows
from gemma_ops.training.methods.dpo import PairTrainer, mean_logps
from gemma_ops.training.settle import layout_of

CONFIG = trl.DPOConfig
KNOWN = {field.name for field in dataclasses.fields(transformers.TrainingArguments) if field.init}
"""Keys that may be passed through `train.trl`: those of every trainer; those of DPO have no effect here."""


def owned(settings: TrainConfig) -> dict[str, Any]:
    """Return the keys of TRL's configuration that follow from our settings."""
    return {
        "beta": settings.preference.beta,
        "max_length": None,
        "disable_dropout": settings.lora.dropout == 0,
        "remove_unused_columns": False,
    }


def log_odds(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Return the log odds ratio of the chosen to the rejected answer, from mean log-probabilities of the answers'
    tokens."""
    sure = -torch.finfo(torch.float32).eps  # a probability of 1 has no odds
    first, second = (value.float().clamp(max=sure) for value in (chosen, rejected))
    return (first - second) - (torch.log(-torch.expm1(first)) - torch.log(-torch.expm1(second)))


class ORPO(PairTrainer):
    """Trainer of `train.method: orpo`."""

    OUTPUTS: tuple[str, ...] = ("log_probs",)

    def complete(self, model: Any, passes: list[dict[str, Any]], counts: list[int]) -> None:
        """Do nothing: there is no reference."""

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        chosen, rejected = mean_logps(
            model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                labels=labels,
                fused_lm_head=True,
            )
        )
        odds = log_odds(chosen, rejected)
        loss = (-chosen - self.beta * logsigmoid(odds)).mean()
        figures = self._metrics["train" if self.model.training else "eval"]
        for key, value in {
            "sft_loss": -chosen,
            "log_odds": odds,
            "logps/chosen": chosen,
            "logps/rejected": rejected,
            "rewards/margins": self.beta * (chosen - rejected),
            "rewards/accuracies": (chosen > rejected).float(),
        }.items():
            figures[key].append(value.detach().mean().item())
        return loss


def make_trainer(rows: TrainingRows, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    """Make the trainer; see `preference_course`."""
    settings = given["settings"]
    args = training_arguments(CONFIG, settings, keys | owned(settings), KNOWN)
    return ORPO(args=args, layout=layout_of(settings, rows, args), **given)
