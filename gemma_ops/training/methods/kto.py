"""Kahneman-Tversky optimization (Ethayarajh et al., arXiv 2402.01306): single answers, wanted or not.

The loss is TRL's. It compares each answer with how far the policy has moved in general, estimated on prompts paired
with answers of other rows. TRL estimates that within each forward pass; here it is one number for the whole step, so
the result doesn't depend on how the step is laid into passes.
"""

from __future__ import annotations

from typing import Any

import torch
import trl

from gemma_ops.config import TrainConfig
from gemma_ops.errors import ConfigError
from gemma_ops.training.arguments import training_arguments
from gemma_ops.training.course import TrainingRows
from gemma_ops.training.methods import scoring
from gemma_ops.training.methods.batches import BatchRows, JudgedBatches
from gemma_ops.training.methods.reference import starts_at_base, untouched
from gemma_ops.training.methods.whole import WholeSteps
from gemma_ops.training.settle import layout_of
from gemma_ops.training.steps import Layout, pack

CONFIG = trl.KTOConfig


def owned(settings: TrainConfig, *, tabled: bool) -> dict[str, Any]:
    """Return the keys of `KTOConfig` that follow from our settings; with `tabled` the reference is computed before the
    first step."""
    preference = settings.preference
    return {
        "per_device_train_batch_size": 2,  # our loader doesn't ask; TRL refuses to estimate anything on one row
        "loss_type": preference.loss or "kto",
        "beta": preference.beta,
        "desirable_weight": preference.desirable_weight,
        "undesirable_weight": preference.undesirable_weight,
        "max_length": None,
        "disable_dropout": settings.lora.dropout == 0,
        "precompute_ref_log_probs": tabled,
        "remove_unused_columns": False,
    }


class KTO(WholeSteps, trl.KTOTrainer):  # type: ignore[misc]
    """Trainer of `train.method: kto`."""

    def __init__(self, *, settings: TrainConfig, layout: Layout, model: Any, args: Any, **kwargs: Any) -> None:
        self.settings, self.layout = settings, layout
        self.seen = 0
        self.collate = JudgedBatches()
        self.partners = args.loss_type == "kto"
        self._scoring: Any = None
        self._moved = torch.zeros(1)
        if self.partners and len(kwargs["train_dataset"]) < 2:
            raise ConfigError("kto compares each answer with another row's, and there is one row", "give more rows")
        with untouched(model):
            super().__init__(model=model, args=args, data_collator=self.collate, **kwargs)
        self._score()
        self.precompute_ref_logps = True

    def _score(self) -> None:
        if self._scoring is None:
            self._scoring = scoring.install_scoring(
                self.model, self.settings, outputs=("log_probs", "entropy", "mean_logits", "is_top1")
            )

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset

    def complete(self, model: Any, passes: list[dict[str, Any]], counts: list[int]) -> None:
        """Add what the reference says, and how far the policy has moved from it on prompts with answers of other
        rows."""
        sums = torch.zeros(2, device=self.accelerator.device)
        for inputs, count in zip(passes, counts, strict=True):
            if "ref_logps" not in inputs:
                inputs["ref_logps"], inputs["ref_KL_logps"] = self.compute_ref_log_probs(self.model, inputs)
            if self.calculate_KL and count:
                moved = super()._compute_kl_logps(model, inputs) - inputs["ref_KL_logps"]
                sums += torch.stack([moved.float().sum(), moved.new_tensor(float(count))])
            inputs["ref_KL_logps"] = torch.zeros(1, device=sums.device)
        sums = self.accelerator.reduce(sums, reduction="sum")
        self._moved = (sums[0] / sums[1].clamp(min=1)).reshape(1)

    def _compute_kl_logps(self, model: Any, batch: Any) -> Any:
        return self._moved

    def weight(self, key: str, inputs: dict[str, Any], count: int) -> float:
        """Return the weight of a figure of wanted or unwanted answers: how many of them a pass has."""
        wanted = int(inputs["label"].sum()) if count else 0
        return {"chosen": wanted, "rejected": count - wanted}.get(key.rpartition("/")[2], count)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Return the table with what the model says now, adapter and all."""
        self._score()
        rows = BatchRows(dataset, partners=self.partners)
        found: dict[int, tuple[float, float]] = {}
        self.ref_model, before = self.model, self.model.training  # asked as it is, not with its adapter off
        self.model.eval()
        for one in pack(range(len(rows)), rows.lengths, self.layout.micro_tokens):
            inputs = self._prepare_inputs(self.collate.tensors([rows._row(number) for number in one]))
            own, other = self.compute_ref_log_probs(self.model, inputs)
            others = other.tolist() if other is not None else [0.0] * len(one)
            found |= dict(zip(one, zip(own.tolist(), others, strict=True), strict=True))
        self.ref_model = None
        self.model.train(before)
        for side, column in enumerate(("ref_logps", "ref_KL_logps")):
            dataset = dataset.add_column(column, [found[number][side] for number in range(len(rows))])
        return dataset

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the margin, which follows from the rewards, which are weighted apart."""
        figures = self._metrics["train" if self.model.training else "eval"]
        if "rewards/chosen" in figures and "rewards/rejected" in figures:
            figures["rewards/margins"] = [figures["rewards/chosen"][0] - figures["rewards/rejected"][0]]
        super().log(logs, start_time)


def make_trainer(rows: TrainingRows, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    """Make the trainer; see `preference_course`."""
    settings = given["settings"]
    args = training_arguments(CONFIG, settings, keys | owned(settings, tabled=not starts_at_base(given["model"])))
    return KTO(args=args, layout=layout_of(settings, rows, args), **given)
