"""Batches of whole optimizer steps, for TRL trainers whose loss is a mean over rows.

However a step's rows are laid into forward passes (packed by tokens, padded by rows, dealt out to processes), each pass
counts by its rows, so loss and gradient are those of the whole step at once. Figures for the record are weighted alike.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from transformers.trainer_utils import EvalLoopOutput

from gemma_ops.config import TrainConfig
from gemma_ops.training.methods.batches import BatchRows, Whole
from gemma_ops.training.methods.scoring import DROPPED
from gemma_ops.training.plus import lora_plus_groups
from gemma_ops.training.steps import Layout, Steps
from gemma_ops.training.trainer import _Loader


class WholeSteps:
    """Mixin before a TRL trainer; `collate` and `partners` are the subclass's."""

    collate: Any
    partners = False
    settings: TrainConfig
    layout: Layout

    def get_train_dataloader(self: Any) -> Any:
        """Return a loader of whole optimizer steps, this process's share of each."""
        return self._loader(self.train_dataset)

    def get_eval_dataloader(self: Any, eval_dataset: Any = None) -> Any:
        """Return a loader of validation rows in the passes a training step would have."""
        return self._loader(self.eval_dataset if eval_dataset is None else eval_dataset)

    def _loader(self: Any, table: Any) -> Any:
        rows = BatchRows(table, partners=self.partners)
        cuda = self.args.device.type == "cuda"
        return _Loader(
            rows,  # type: ignore[arg-type]
            batch_sampler=Steps(rows.lengths, self.layout),  # type: ignore[arg-type]
            collate_fn=self.collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=cuda,
        )

    def get_batch_samples(self: Any, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """Return the next step, without a count of items: its passes carry their own."""
        return list(islice(epoch_iterator, num_batches)), None

    def complete(self: Any, model: Any, passes: list[dict[str, Any]], counts: list[int]) -> None:
        """Add what the loss needs besides the rows, such as what the reference says."""

    def weight(self: Any, key: str, inputs: dict[str, Any], count: int) -> float:
        """Return the weight of a pass's figure `key`: its number of rows."""
        return count

    def training_step(self: Any, model: Any, inputs: Whole, num_items_in_batch: Any = None) -> Any:
        """Run forward and backward of every pass of the step; gradients are exchanged with the last one.

        Returns the loss of the whole step times this process's share, so that the mean over processes is the step's.
        """
        model.train()
        total = torch.zeros((), device=self.args.device)
        figures = _Figures()
        for number, (moved, count) in enumerate(self._prepared(model, inputs)):
            last = number == len(inputs.passes) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                # Gradients are averaged over the processes.
                share = count / inputs.rows * self.accelerator.num_processes
                loss = self._pass(model, moved, count, "train", figures) * share
                self.accelerator.backward(loss)
            total += loss.detach()
        self.seen += inputs.tokens
        self._metrics["train"] = figures.means(self.accelerator)
        self._metrics["train"]["num_tokens"] = [self.seen]
        return total

    def evaluation_loop(self: Any, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """Measure the mean loss over all validation rows."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        figures, lost = _Figures(), _Figures()
        with torch.no_grad():
            for batch in dataloader:
                for moved, count in self._prepared(model, batch):
                    loss = self._pass(model, moved, count, "eval", figures)
                    lost.add("loss", loss.item(), count)
        self._metrics["eval"] = figures.means(self.accelerator)
        prefix = kwargs.get("metric_key_prefix", "eval")
        metrics = {f"{prefix}_loss": lost.means(self.accelerator)["loss"][0]}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def _prepared(self: Any, model: Any, inputs: Whole) -> list[tuple[dict[str, Any], int]]:
        moved = [self._prepare_inputs(one) for one in inputs.passes]
        with self.compute_loss_context_manager():
            self.complete(model, moved, inputs.counts)
        return list(zip(moved, inputs.counts, strict=True))

    def _pass(self: Any, model: Any, inputs: dict[str, Any], count: int, mode: str, figures: _Figures) -> Any:
        """Return the loss of one pass, a mean over its rows, and collect TRL's figures of it, weighted."""
        self._metrics[mode].clear()
        with self.compute_loss_context_manager(), alone(self.accelerator):
            loss = self.compute_loss(model, dict(inputs))
        for key, values in self._metrics[mode].items():
            if key in DROPPED and math.isnan(values[-1]):
                continue
            figures.add(key, values[-1], self.weight(key, inputs, count))
        self._metrics[mode].clear()
        return loss

    def floating_point_ops(self, inputs: Any) -> float:
        """Return 0: transformers' formula knows neither shared layers nor windows."""
        return 0.0

    def create_optimizer(self: Any, model: Any = None) -> Any:
        """Create the optimizer of `train.optimizer`; with LoRA+ LoRA B learns faster."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        return lora_plus_groups(optimizer, model or self.model, self.settings.lora.plus)


class _Figures:
    """Weighted means of figures, over passes and processes."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)

    def add(self, key: str, value: float, weight: float) -> None:
        if weight:
            self.sums[key] += value * weight
            self.weights[key] += weight

    def means(self, accelerator: Any) -> Any:
        """Return the means in the form TRL keeps its figures in: a list of one mean by name."""
        sums, weights = [self.sums], [self.weights]
        if accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            sums, weights = gather_object(sums), gather_object(weights)
        found = defaultdict(list)
        for key in sorted({key for each in sums for key in each}):
            total = sum(each.get(key, 0.0) for each in weights)
            found[key] = [sum(each.get(key, 0.0) for each in sums) / total]
        return found


@contextmanager
def alone(accelerator: Any) -> Iterator[None]:
    """Let TRL's losses see this process's rows only: passes differ in size, and gathering them would never end."""
    if accelerator.num_processes == 1:
        yield
        return
    accelerator.gather = accelerator.gather_for_metrics = lambda value, *_: value
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
