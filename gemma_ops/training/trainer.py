"""TRL's trainer with steps, batches and loss of our own.

What stays TRL's and transformers': optimizer, schedule, clipping, checkpoints, callbacks, devices. What is ours: which
rows a step takes and how they are laid into passes (`steps`, `forward_inputs`), the loss and what it is divided by
(`head`), and validation, whose loss is the mean over scored tokens whatever the passes. One batch of the loader is one
whole optimizer step, so nothing depends on how it is accumulated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from functools import cached_property
from itertools import islice
from typing import Any

import torch
import trl
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput

from gemma_ops import kernels
from gemma_ops.config import TrainConfig
from gemma_ops.modeling import host_ple
from gemma_ops.training.forward_inputs import Batch, Collate, TokenRows
from gemma_ops.training.launch.portable import Portable
from gemma_ops.training.plus import lora_plus_groups
from gemma_ops.training.steps import Layout, Steps


class _Loader(DataLoader):  # type: ignore[type-arg, misc]
    """Loader of torch that passes the epoch on to its sampler: the trainer only asks loaders."""

    def set_epoch(self, epoch: int) -> None:
        """Order the rows as they come in this epoch."""
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class StepTrainer(Portable, trl.SFTTrainer):  # type: ignore[misc]
    """Trainer on rows that are tokenized already; a step of the loader is a step of the optimizer."""

    def __init__(
        self, *, settings: TrainConfig, layout: Layout, teacher: Any = None, collate: Any = Collate, **kwargs: Any
    ) -> None:
        self.settings = settings
        self.collate = collate
        self.layout = layout
        self.teacher = teacher
        self.seen = 0
        self._awake = False
        """Whether every module was put in training mode: a fresh adapter's root is, and the base below it is not. After
        that modes change from a root down, of the model or of what wraps it."""
        self._steps: Iterator[Batch] = iter(())
        self._next: list[Batch] = []
        super().__init__(data_collator=_untouched, **kwargs)

    def get_train_dataloader(self) -> Any:
        """Return a loader of whole optimizer steps, this process's share of each."""
        return self._loader(TokenRows(self.train_dataset), self.layout)

    def _loader(self, rows: TokenRows, layout: Layout) -> Any:
        kernels = self.settings.kernels
        packing = layout.micro_batch is None
        collate = self.collate(
            packing=packing,
            bounds=kernels.attention == "documents",
            pad=self.processing_class.pad_token_id or 0,
        )
        cuda = self.args.device.type == "cuda"
        workers = self.args.dataloader_num_workers or (1 if cuda else 0)
        return _Loader(
            rows,  # type: ignore[arg-type]
            batch_sampler=Steps(rows.lengths, layout),  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=cuda,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """Return the next step, and with it the divisor of its loss."""
        taken = self._next if self._steps is epoch_iterator else []
        if self._next and not taken:  # of an epoch that was left early
            self._table.forget()
        self._steps, self._next = epoch_iterator, []
        return taken or list(islice(epoch_iterator, num_batches)), None

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> Any:
        """Run forward and backward of every pass of the step; gradients are exchanged with the last one.

        Returns the loss of the whole step times this process's share, so that the mean over processes is the step's.
        """
        if not (self._awake and model.training and self.model.training):  # asking all modules takes a large one 20 ms
            model.train()
            self._awake = True
        world = self.accelerator.num_processes
        total = torch.zeros((), device=self.args.device)
        if self._casts:
            self._casts.refresh()
        for number, arguments in enumerate(inputs.passes):
            last = number == len(inputs.passes) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                # Gradients are averaged over the processes, and the divisor counts the tokens of all.
                loss = self._score(model, arguments, inputs.divisor).loss * world
                self.accelerator.backward(loss)
            total += loss.detach()
            del loss  # its graph would bind the adapters' gradients to this stream while the next pass is captured
            if self._table:  # a GPU is at work on this pass while the rows of the next are gathered
                following = self._ahead() if last else inputs.passes[number + 1]
                if following:
                    self._table.prefetch(following["input_ids"], self.args.device)
        self.seen += inputs.tokens
        self._metrics["train"]["num_tokens"] = [self.seen]
        return total

    @cached_property
    def _table(self) -> Any:
        """Return the model's per-layer table in main memory, of which a GPU is sent rows."""
        return host_ple.find_ple(self.model) if self.args.device.type == "cuda" else None

    @cached_property
    def _casts(self) -> Any:
        """Return the adapters in the type of their products, where that is not their own and they stay where they
        are."""
        fits = self.settings.kernels.lora == "fused" and self.settings.weights != "fp32" and not self.is_fsdp_enabled
        return kernels.Copies(self.model) if fits else None

    def _ahead(self) -> dict[str, Any] | None:
        """Return the first pass of the step after this one, which is taken from the loader early."""
        self._next = self._next or list(islice(self._steps, 1))
        return self._next[0].passes[0] if self._next else None

    def _score(self, model: Any, arguments: dict[str, Any], divisor: float) -> Any:
        moved = self._prepare_inputs(arguments)
        with self.compute_loss_context_manager():
            return model(**moved, divisor=divisor, **({"teacher": self.teacher} if self.teacher else {}))

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **kwargs: Any) -> Any:
        """Measure the mean loss over the scored tokens of all validation rows."""
        model = self._wrap_model(self.model, training=False)
        if not self.accelerator._models and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for batch in dataloader:
                for arguments in batch.passes:
                    sums[0] += self._score(model, arguments, 1.0).loss.detach().double().cpu()
                sums[1] += batch.divisor / self.accelerator.num_processes
        sums = self.accelerator.reduce(sums.to(self.args.device, torch.float32), reduction="sum")
        metrics = {f"{kwargs.get('metric_key_prefix', 'eval')}_loss": float(sums[0] / sums[1])}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return a loader of validation rows in the passes a training step would have."""
        rows = TokenRows(self.eval_dataset if eval_dataset is None else eval_dataset)
        return self._loader(rows, self.layout)

    def floating_point_ops(self, inputs: Any) -> float:
        """Return 0: transformers' formula knows neither shared layers nor windows."""
        return 0.0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured since the last record."""
        super().log(logs, start_time)
        self._metrics: dict[str, Any] = {"train": defaultdict(list), "eval": defaultdict(list)}

    def create_optimizer(self, model: Any = None) -> Any:
        """Create the optimizer of `train.optimizer`; with LoRA+ LoRA B learns faster."""
        return lora_plus_groups(super().create_optimizer(model), model or self.model, self.settings.lora.plus)


def _untouched(rows: Any) -> Any:
    return rows
