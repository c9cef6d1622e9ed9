"""Supervised fine-tuning, read from top to bottom: rows, model, adapter, trainer, what is kept.

Rows become token ids and labels here, with our own template, so the trainer only batches and steps. What TRL and PEFT
would otherwise decide silently (loss averaging, checkpointing, number types) is decided in `modeling.load`,
`arguments` and below, each with a test that fails when the decision is taken out.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gemma_ops import family, journal
from gemma_ops.config import LaunchConfig, Machine, MachineConfig, TrainConfig
from gemma_ops.data import chat
from gemma_ops.errors import DataError
from gemma_ops.modeling import adapters
from gemma_ops.modeling.load import load_model, load_tokenizer, pick_device
from gemma_ops.modeling.source import checkpoint
from gemma_ops.training.arguments import sft_arguments
from gemma_ops.training.follow import Follow, last_checkpoint, write_record
from gemma_ops.training.launch import strategy
from gemma_ops.training.launch.sharded import check_saved, full_state
from gemma_ops.training.launch.world import barrier, local_device, on_main


def train(out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path) -> dict[str, float]:
    """Write `adapter/`, `record.jsonl` and `samples.jsonl` below `out`; go on from the last whole checkpoint there.

    Raises DataError when no row carries loss.
    """
    import torch

    folder = checkpoint(base)
    described = json.loads((base / "model.json").read_text(encoding="utf-8"))
    size = family.SIZES.get(described["size"] or "")
    device = pick_device(machine.device)
    if machine.workers:
        torch.set_num_threads(machine.workers)
    tokenizer = load_tokenizer(folder)
    empty_thought = chat.prefills(folder)
    rows, cut = _rows(data / "train.jsonl", tokenizer, settings, empty_thought)
    valid, _ = _rows(data / "valid.jsonl", tokenizer, settings, empty_thought)
    if len(rows) == 0:
        raise DataError(
            "no training row carries loss within train.max_length",
            "raise train.max_length; `gemma-ops data check` shows the rows",
        )
    launch = machine.launch if isinstance(machine, Machine) else LaunchConfig()
    rate = settings.learning_rate or (size.learning_rate if size else family.DEFAULT_LEARNING_RATE)

    loaded = load_model(
        folder, weights=settings.weights, device=local_device(device), sharded=launch.strategy == "fsdp"
    )
    model = adapters.attach(loaded, settings.lora, settings.seed)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    work = out / "checkpoints"
    shared = strategy.arguments(launch, settings, model, device)
    arguments = sft_arguments(settings, work, has_valid=len(valid) > 0, rate=rate, device=device, shared=shared)
    follow = Follow(
        out / "samples.jsonl", tokenizer, _prompts(data / "valid.jsonl", tokenizer, settings.samples, empty_thought)
    )
    trainer = make_trainer(model, arguments, rows, valid, folder, follow, settings)
    strategy.check(trainer, launch)
    journal.record(rows=len(rows), cut=cut, trainable=trainable, learning_rate=rate, device=device)

    if on_main():
        last_checkpoint(work)  # half-written ones go before anybody looks
    barrier()
    start = last_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    final = _validated(trainer, settings) or trainer.evaluate() if len(valid) else {}
    state = full_state(model)
    if on_main():
        adapters.save(model, out / "adapter", described["id"], described["revision"], state)
        check_saved(out / "adapter" / "adapter_model.safetensors", shapes)
        write_record(trainer.state, out / "record.jsonl")
        (out / "samples.jsonl").touch()
        shutil.rmtree(work, ignore_errors=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    metrics = {
        "steps": float(trainer.state.global_step),
        "loss": sum(losses) / len(losses),
        "rows": float(len(rows)),
        "cut_rows": float(cut),
        "trainable_parameters": float(trainable),
        "learning_rate": float(rate),
    }
    if final:
        metrics["eval_loss"] = float(final["eval_loss"])
    return metrics


def make_trainer(
    model: Any, arguments: Any, rows: Any, valid: Any, folder: Path, follow: Any, settings: TrainConfig
) -> Any:
    """TRL's trainer on rows that are tokenized already, with adapters kept in float32."""
    import torch
    import transformers
    import trl

    from gemma_ops.training.launch.portable import Portable, SeedSteps

    class Trainer(Portable, trl.SFTTrainer):  # type: ignore[misc]
        pass

    callbacks = [follow, SeedSteps()]
    if settings.early_stop:
        callbacks.append(transformers.EarlyStoppingCallback(early_stopping_patience=settings.early_stop))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=valid if len(valid) else None,
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


def _validated(trainer: Any, settings: TrainConfig) -> dict[str, Any] | None:
    """The validation of the last step, where there was one and no earlier adapter was taken instead."""
    if settings.early_stop:
        return None
    state = trainer.state
    return next(
        (entry for entry in reversed(state.log_history) if "eval_loss" in entry and entry["step"] == state.global_step),
        None,
    )


def _rows(path: Path, tokenizer: Any, settings: TrainConfig, empty_thought: bool) -> tuple[Any, int]:
    """Token ids and labels of a file of examples as an Arrow table on disk, and how many rows were cut."""
    from gemma_ops.data.arrow import table

    return table(path, tokenizer, max_length=settings.max_length, empty_thought=empty_thought)


def _prompts(path: Path, tokenizer: Any, count: int, empty_thought: bool) -> list[dict[str, Any]]:
    """The first validation rows as prompts up to their last answer."""
    prompts: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            if len(prompts) >= count:
                break
            row = json.loads(line)
            last = max(index for index, message in enumerate(row["messages"]) if message["role"] == "assistant")
            before = row["messages"][:last]
            prompts.append(
                {
                    "id": row["id"],
                    "ids": chat.prompt_ids(tokenizer, before, row.get("tools"), empty_thought=empty_thought),
                    "prompt": before[-1]["content"] if before else "",
                    "reference": row["messages"][last].get("content") or "",
                }
            )
    return prompts
