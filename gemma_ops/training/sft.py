"""Supervised fine-tuning, read from top to bottom: rows, model, adapter, trainer, what is kept.

Four methods share it, which differ in the loss alone: answers (`sft`), answers weighted by their own probability
(`dft`), a larger model's probabilities (`distill`), and every token (`pretrain`). What TRL and PEFT would otherwise
decide silently (loss averaging, checkpointing, number types) is decided in `modeling.load`, `arguments`, `trainer` and
below, each with a test that fails when the decision is taken out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops import family
from gemma_ops.config import LaunchConfig, Machine, MachineConfig, TrainConfig
from gemma_ops.data import published
from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError
from gemma_ops.modeling import adapters, full
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.modeling.load import load_model, load_tokenizer, pick_device
from gemma_ops.modeling.threads import settle_threads
from gemma_ops.planning import passes
from gemma_ops.runs import journal
from gemma_ops.training import head, media_sft
from gemma_ops.training import teacher as teaching
from gemma_ops.training.arguments import sft_arguments
from gemma_ops.training.follow import Follow, last_checkpoint, prompts, validated, write_record
from gemma_ops.training.launch import strategy
from gemma_ops.training.launch.sharded import full_state
from gemma_ops.training.launch.world import barrier, local_device, main_first, on_main, world
from gemma_ops.training.media_sft import Media
from gemma_ops.training.settle import layout, recompute, refuse_warm_up_alone, settle, shape_of


def train_sft(
    out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path, teacher: Path | None = None
) -> dict[str, float]:
    """Write `adapter/` (`tuned/` with `tune: full`), `record.jsonl` and `samples.jsonl` below `out`; go on from the last whole checkpoint there.

    Raises DataError when no row carries loss.
    """
    folder = checkpoint(base)
    described = json.loads((base / "model.json").read_text(encoding="utf-8"))
    size = family.SIZES.get(described["size"] or "")
    device = pick_device(machine.device)
    settle_threads(folder, machine.workers)
    tokenizer = load_tokenizer(folder)
    launch = machine.launch if isinstance(machine, Machine) else LaunchConfig()
    work = out / "checkpoints"
    taught_by = teaching.check_teacher(teacher, folder) if settings.method == "distill" else None
    media = media_sft.find_media(folder, data, settings, sharded=launch.strategy == "fsdp")
    rows = main_first(lambda: tokenized(data, work / "rows", tokenizer, settings, published.template_of(folder), media))
    refuse_warm_up_alone(settings, rows.train)
    usual = size.learning_rate if size else family.DEFAULT_LEARNING_RATE  # an adapter's
    rate = settings.learning_rate or usual * (full.RATE if settings.tune == "full" else 1.0)
    tables = [rows.train, rows.valid]
    settings = settle(settings, shape_of(folder), tables, device, ple=machine.ple, towers=media is not None)

    model = load_for_training(folder, settings, machine, local_device(device), media, sharded=launch.strategy == "fsdp")
    larger = teaching.load_teacher(taught_by, settings, local_device(device)) if taught_by else None
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shared = strategy.arguments(launch, settings, model, device)
    arguments = sft_arguments(settings, work, has_valid=len(rows.valid) > 0, rate=rate, device=device, shared=shared)
    follow = Follow(
        out / "samples.jsonl", tokenizer, prompts(data / "valid.jsonl", tokenizer, settings.samples, rows.manner, media)
    )
    trainer = make_sft_trainer(model, arguments, rows, folder, [follow], settings, teacher=larger, media=media)
    strategy.check_strategy(trainer, launch)
    journal.record(rows=len(rows.train), cut=rows.cut, trainable=trainable, learning_rate=rate, device=device)

    if on_main():
        last_checkpoint(work)  # half-written ones go before anybody looks
    barrier()
    start = last_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    final = validated(trainer.state, settings) or trainer.evaluate() if len(rows.valid) else {}
    if settings.tune == "full":
        full.save_full(model, out / full.FOLDER, folder, described, write=on_main())
    else:
        state = full_state(model)
        if on_main():
            adapters.save_adapter(model, out / "adapter", described["id"], described["revision"], state=state)
    if on_main():
        asked = Prompting.of(settings.thinking, published.template_of(folder))
        write_prompting(out / (full.FOLDER if settings.tune == "full" else "adapter"), asked)
        write_record(trainer.state, out / "record.jsonl")
        (out / "samples.jsonl").touch()
        shutil.rmtree(work, ignore_errors=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = {
        "steps": float(trainer.state.global_step),
        "loss": sum(losses) / len(losses),
        "rows": float(len(rows.train)),
        "cut_rows": float(rows.cut),
        "trainable_parameters": float(trainable),
        "learning_rate": float(rate),
    }
    if final:
        metrics["eval_loss"] = float(final["eval_loss"])
    return metrics


def load_for_training(
    folder: Path,
    settings: TrainConfig,
    machine: MachineConfig,
    device: str,
    media: Media | None = None,
    *,
    sharded: bool = False,
) -> Any:
    """The model that learns: loaded, with its adapter, its kernels and its head; frozen but for what is tuned. It has its
    towers where rows show something."""
    towers = media is not None
    loaded = load_model(
        folder, weights=settings.weights, device=device, towers=towers, ple=machine.ple, sharded=sharded
    )
    return prepare_rows(loaded, settings, media.kinds if media else ())


def prepare_rows(model: Any, settings: TrainConfig, shown: Sequence[str] = ()) -> Any:
    """A loaded model with its adapter, its kernels and its head; `shown` is what rows show besides text."""
    if settings.tune == "full":
        full.unfreeze(model, settings)
        return equip(model, settings)
    return equip(adapters.attach(model, settings.lora, settings.seed, shown=shown), settings)


def equip(model: Any, settings: TrainConfig) -> Any:
    """A model with the kernels and the head that training runs on."""
    from gemma_ops import kernels

    replay = settings.tune == "lora" and settings.method in passes.REPLAYED and world().size == 1
    kernels.install_kernels(model, settings.kernels, recompute=recompute(settings), replay=replay)
    head.install_head(model, settings)
    return model


@dataclass
class Tokenized:
    """Training and validation rows as tables, and how they became tokens."""

    train: Any
    valid: Any
    cut: int
    """Training rows that were longer than `train.max_length`."""
    manner: Manner


def tokenized(
    data: Path, folder: Path, tokenizer: Any, settings: TrainConfig, template: str, media: Media | None = None
) -> Tokenized:
    """Rows of a prepared folder as tables below `folder`. Raises DataError when no training row carries loss."""
    from gemma_ops.data.arrow import token_table

    senses = media.perceiver.senses if media else None
    manner = Manner(
        template=template,
        thinking=settings.thinking,
        loss_on=settings.loss_on,
        texts=settings.method == "pretrain",
        senses=senses,
    )
    train_rows, cut = token_table(data / "train.jsonl", folder, tokenizer, manner, max_length=settings.max_length)
    valid_rows, _ = token_table(data / "valid.jsonl", folder, tokenizer, manner, max_length=settings.max_length)
    if len(train_rows) == 0:
        raise DataError(
            "no training row carries loss within train.max_length",
            "raise train.max_length; `gemma-ops data check` shows the rows",
        )
    return Tokenized(train_rows, valid_rows, cut, manner)


def make_sft_trainer(
    model: Any,
    arguments: Any,
    rows: Tokenized,
    folder: Path,
    callbacks: list[Any],
    settings: TrainConfig,
    teacher: Any = None,
    media: Media | None = None,
) -> Any:
    """The trainer on rows that are tokenized already, with adapters kept in float32."""
    import torch
    import transformers

    from gemma_ops.training.launch.portable import SeedSteps
    from gemma_ops.training.trainer import StepTrainer

    callbacks = [*callbacks, SeedSteps()]
    if settings.early_stop:
        callbacks.append(transformers.EarlyStoppingCallback(early_stopping_patience=settings.early_stop))
    trainer = StepTrainer(
        settings=settings,
        layout=layout(
            settings,
            rows,
            arguments.device.type,
            rank=arguments.process_index,
            world=arguments.world_size,
            packs=media is None or media.packs,
        ),
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
