"""Direct preference optimization and its relatives: pairs of answers, compared with what the reference says of them.

The losses are TRL's (`train.preference.loss`); rows, passes, averages and the reference are ours.
"""

from __future__ import annotations

from typing import Any

import torch
import trl

from gemma_ops.config import TrainConfig
from gemma_ops.training.arguments import training_arguments
from gemma_ops.training.course import TrainingRows
from gemma_ops.training.methods import scoring
from gemma_ops.training.methods.batches import BatchRows, Pairs
from gemma_ops.training.methods.reference import starts_at_base, untouched
from gemma_ops.training.methods.whole import WholeSteps
from gemma_ops.training.settle import layout_of
from gemma_ops.training.steps import Layout, pack

CONFIG = trl.DPOConfig


def owned(settings: TrainConfig, *, tabled: bool) -> dict[str, Any]:
    """Return the keys of `DPOConfig` that follow from our settings; with `tabled` the reference is computed before the
    first step."""
    preference = settings.preference
    return {
        "loss_type": [preference.loss or "sigmoid"],
        "loss_weights": None,
        "beta": preference.beta,
        "label_smoothing": preference.label_smoothing,
        "max_length": None,  # the table is cut already
        "disable_dropout": settings.lora.dropout == 0,
        "precompute_ref_log_probs": tabled,
        "remove_unused_columns": False,
    }


class PairTrainer(WholeSteps, trl.DPOTrainer):  # type: ignore[misc]
    """Trainer on pairs that are tokenized already."""

    OUTPUTS: tuple[str, ...] = ("log_probs", "entropy", "mean_logits", "is_top1")

    def __init__(self, *, settings: TrainConfig, layout: Layout, model: Any, args: Any, **kwargs: Any) -> None:
        self.settings, self.layout = settings, layout
        self.seen = 0
        self.collate = Pairs()
        self._scoring: Any = None
        with untouched(model):
            super().__init__(model=model, args=args, data_collator=self.collate, **kwargs)
        self._score()
        self.precompute_ref_logps = True  # `complete` gives what the reference says along with the rows

    def _score(self) -> Any:
        if self._scoring is None:
            outputs = (*self.OUTPUTS, *(("log_sum_sq_probs",) if self.args.use_weighting else ()))
            self._scoring = scoring.install_scoring(self.model, self.settings, outputs=outputs)
        return self._scoring

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def complete(self, model: Any, passes: list[dict[str, Any]], counts: list[int]) -> None:
        """Add the log-probabilities of the model without its adapter, unless the table has them."""
        for inputs in passes:
            if "ref_chosen_logps" not in inputs:
                chosen, rejected = self.compute_ref_log_probs(self.model, inputs)
                inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = chosen, rejected

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Return the table with what the model says now, adapter and all."""
        self._score()
        rows = BatchRows(dataset)
        found: dict[int, tuple[float, float]] = {}
        self.ref_model, before = self.model, self.model.training  # asked as it is, not with its adapter off
        self.model.eval()
        for one in pack(range(len(rows)), rows.lengths, self.layout.micro_tokens):
            inputs = self._prepare_inputs(self.collate.tensors([rows.table[number] for number in one]))
            chosen, rejected = self.compute_ref_log_probs(self.model, inputs)
            found |= dict(zip(one, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True))
        self.ref_model = None
        self.model.train(before)
        for side, column in enumerate(("ref_chosen_logps", "ref_rejected_logps")):
            dataset = dataset.add_column(column, [found[number][side] for number in range(len(rows))])
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        loss = super()._compute_loss(model, inputs, return_outputs)
        weight = self.settings.preference.sft_weight
        if weight:
            scored = self._scoring.last
            chosen, labelled = (value.chunk(2)[0] for value in (scored.log_probs, scored.label_mask))
            own = -(chosen.sum(1) / labelled.sum(1).clamp(min=1)).mean()
            self._metrics["train" if self.model.training else "eval"]["sft_loss"].append(own.item())
            loss = loss + weight * own
        return loss


class DPO(PairTrainer):
    """Trainer of `train.method: dpo`."""


def mean_logps(scored: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities of chosen and rejected answers [rows], averaged over their labelled tokens."""
    means = scored.log_probs.sum(1) / scored.label_mask.sum(1).clamp(min=1)
    chosen, rejected = means.chunk(2)
    return chosen, rejected


def make_trainer(rows: TrainingRows, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    """Make the trainer; see `preference_course`."""
    settings = given["settings"]
    args = training_arguments(CONFIG, settings, keys | owned(settings, tabled=not starts_at_base(given["model"])))
    return DPO(args=args, layout=layout_of(settings, rows, args), **given)
