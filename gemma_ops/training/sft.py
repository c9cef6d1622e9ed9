"""Supervised fine-tuning: four methods that differ in the loss alone.

Answers (`sft`), answers weighted by their own probability (`dft`), a larger model's probabilities (`distill`), and
every token (`pretrain`). What TRL and PEFT would otherwise decide silently (loss averaging, checkpointing, number
types) is decided in `modeling.load`, `arguments`, `trainer` and below, each with a test that fails when the decision is
taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from gemma_ops.config import TrainConfig
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError
from gemma_ops.modeling import adapters, full
from gemma_ops.modeling.load import load_model
from gemma_ops.planning import passes
from gemma_ops.training import head
from gemma_ops.training import teacher as teaching
from gemma_ops.training.arguments import sft_arguments
from gemma_ops.training.course import TrainingRows, TrainingSite, early_stopping
from gemma_ops.training.launch import strategy
from gemma_ops.training.launch.sharded import full_state
from gemma_ops.training.launch.world import local_device, on_main, world
from gemma_ops.training.media_sft import Media
from gemma_ops.training.settle import layout_of, recompute


class SupervisedCourse:
    """Training on answers that are given, with an adapter (`lora`) or all parameters (`full`)."""

    answers = True

    def __init__(self, tune: Literal["lora", "full"]) -> None:
        self.tune = tune

    def rate_share(self, settings: TrainConfig) -> float:
        """Return the share of the size's own learning rate; see `Course.rate_share`."""
        return full.RATE if self.tune == "full" else 1.0

    def rows(self, data: Path, settings: TrainConfig, site: TrainingSite) -> TrainingRows:
        """Write the tables of a prepared folder; see `Course.rows`. Raises DataError when no training row carries
        loss."""
        from gemma_ops.data.arrow import token_table

        manner = Manner(
            template=site.template,
            thinking=settings.thinking,
            loss_on=settings.loss_on,
            texts=settings.method == "pretrain",
            senses=site.media.perceiver.senses if site.media else None,
        )
        folder, tokenizer, longest = site.work / "rows", site.tokenizer, settings.max_length
        train_rows, cut = token_table(data / "train.jsonl", folder, tokenizer, manner, max_length=longest)
        valid_rows, _ = token_table(data / "valid.jsonl", folder, tokenizer, manner, max_length=longest)
        if len(train_rows) == 0:
            raise DataError(
                "no training row carries loss within train.max_length",
                "raise train.max_length; `gemma-ops data check` shows the rows",
            )
        return TrainingRows(train_rows, valid_rows, cut, manner)

    def model(self, settings: TrainConfig, site: TrainingSite) -> Any:
        """Load the model that learns; see `Course.model`. It has its towers where rows show something."""
        loaded = load_model(
            site.folder, weights=settings.weights, device=local_device(site.device), towers=site.media is not None,
            ple=site.machine.ple, sharded=site.launch.strategy == "fsdp",
        )  # fmt: skip
        return prepare_model(loaded, settings, site.media.kinds if site.media else ())

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
        """Make the trainer on rows that are tokenized already; see `Course.trainer`. A teacher is loaded next to the
        model."""
        larger = teaching.load_teacher(site.teacher, settings, local_device(site.device)) if site.teacher else None
        shared = strategy.arguments(site.launch, settings, model, site.device)
        has_valid = len(rows.valid) > 0
        arguments = sft_arguments(
            settings, site.work, has_valid=has_valid, rate=rate, device=site.device, shared=shared
        )
        callbacks, media = [follow()], site.media
        return make_sft_trainer(model, arguments, rows, site.folder, callbacks, settings, teacher=larger, media=media)

    def save(self, model: Any, out: Path, site: TrainingSite, described: dict[str, Any]) -> Path:
        """Write the adapter, or the tensors that changed; see `Course.save`."""
        if self.tune == "full":
            full.save_full(model, out / full.FOLDER, site.folder, described, write=on_main())
            return out / full.FOLDER
        state = full_state(model)
        if on_main():
            adapters.save_adapter(model, out / "adapter", described["id"], described["revision"], state=state)
        return out / "adapter"


def prepare_model(model: Any, settings: TrainConfig, shown: Sequence[str] = ()) -> Any:
    """Return a loaded model with its adapter, its kernels and its head; `shown` is what rows show besides text."""
    if settings.tune == "full":
        full.unfreeze(model, settings)
        return equip(model, settings)
    return equip(adapters.attach(model, settings.lora, settings.seed, shown=shown), settings)


def equip(model: Any, settings: TrainConfig) -> Any:
    """Return a model with the kernels and the head that training runs on."""
    from gemma_ops import kernels

    replay = settings.tune == "lora" and settings.method in passes.REPLAYED and world().size == 1
    kernels.install_kernels(model, settings.kernels, recompute=recompute(settings), replay=replay)
    head.install_head(model, settings)
    return model


def make_sft_trainer(
    model: Any,
    arguments: Any,
    rows: TrainingRows,
    folder: Path,
    callbacks: list[Any],
    settings: TrainConfig,
    teacher: Any = None,
    media: Media | None = None,
) -> Any:
    """Make the trainer on rows that are tokenized already, with adapters kept in float32."""
    import torch
    import transformers

    from gemma_ops.training.launch.portable import SeedSteps
    from gemma_ops.training.trainer import StepTrainer

    callbacks = [*callbacks, SeedSteps(), *early_stopping(settings)]
    trainer = StepTrainer(
        settings=settings,
        layout=layout_of(settings, rows, arguments, packs=media is None or media.packs),
        teacher=teacher,
        **({"collate": media.collate} if media else {}),
        model=model,
        args=arguments,
        train_dataset=rows.train,
        eval_dataset=rows.valid if len(rows.valid) else None,
        processing_class=transformers.PreTrainedTokenizerFast.from_pretrained(folder),
        callbacks=callbacks,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    # TRL turns the adapters of a 4-bit base into bfloat16, whose 8 bits of mantissa lose most updates of a small
    # learning rate.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return trainer
