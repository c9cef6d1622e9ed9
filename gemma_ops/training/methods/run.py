"""A preference or reinforcement training, read from top to bottom: rows, model, adapter, trainer, what is kept."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops import family, kernels
from gemma_ops.config import MachineConfig, TrainConfig
from gemma_ops.config.methods import REINFORCE
from gemma_ops.data import answer_tables, published
from gemma_ops.data.answer_tables import Encoding
from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError
from gemma_ops.modeling import adapters, reward_head
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.modeling.generate import stop_ids
from gemma_ops.modeling.load import load_model, load_tokenizer, pick_device
from gemma_ops.modeling.threads import settle_threads
from gemma_ops.runs import journal
from gemma_ops.training import media_sft
from gemma_ops.training.arguments import common, training_arguments
from gemma_ops.training.follow import Follow, last_checkpoint, prompts, validated, write_record
from gemma_ops.training.settle import layout, recompute, refuse_warm_up_alone, settle, shape_of

RATE = 0.1
"""Peak learning rate as a share of the supervised one, for methods that move a model which answers already."""
_TABLES = {"kto": answer_tables.judged_rows, **dict.fromkeys(REINFORCE, answer_tables.prompt_rows)}
_SHOWN = ("rewards/margins", "rewards/accuracies", "accuracy", "margin", "reward")
"""Figures of the last step that a step's metrics carry, where the method has them."""


@dataclass
class Tables:
    """Training and validation rows."""

    train: Any
    valid: Any
    cut: int
    manner: Manner


def train_method(
    out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path
) -> dict[str, float]:
    """Write `adapter/`, `record.jsonl` and `samples.jsonl` below `out`; go on from the last whole checkpoint there.

    Raises DataError when the rows are not what the method learns from, or none is left.
    """
    folder = checkpoint(base)
    described = json.loads((base / "model.json").read_text(encoding="utf-8"))
    size = family.SIZES.get(described["size"] or "")
    device = pick_device(machine.device)
    settle_threads(folder, machine.workers)
    media_sft.find_media(folder, data, settings)  # refuses rows that show something
    tokenizer = load_tokenizer(folder)
    work = out / "checkpoints"
    rows = tabled(data, work / "rows", tokenizer, settings, published.template_of(folder))
    refuse_warm_up_alone(settings, rows.train)
    usual = size.learning_rate if size else family.DEFAULT_LEARNING_RATE
    rate = settings.learning_rate or usual * (1.0 if settings.method == "reward" else RATE)

    settings = settle(settings, shape_of(folder), [rows.train, rows.valid], device, ple=machine.ple)
    model = load_method_model(folder, settings, machine, device)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shown = (
        [] if settings.method == "reward" else prompts(data / "valid.jsonl", tokenizer, settings.samples, rows.manner)
    )
    follow = Follow(out / "samples.jsonl", tokenizer, shown)
    trainer = make_method_trainer(model, settings, rows, folder, work, rate=rate, device=device, callbacks=[follow])
    journal.record(rows=len(rows.train), cut=rows.cut, trainable=trainable, learning_rate=rate, device=device)

    start = last_checkpoint(work)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    final = validated(trainer.state, settings) or trainer.evaluate() if len(rows.valid) else {}
    adapters.save_adapter(model, out / "adapter", described["id"], described["revision"])
    if settings.method == "reward":
        reward_head.save_score(model, out / "adapter")
    write_prompting(out / "adapter", Prompting.of(settings.thinking, published.template_of(folder)))
    write_record(trainer.state, out / "record.jsonl")
    (out / "samples.jsonl").touch()
    shutil.rmtree(work, ignore_errors=True)
    return _metrics(trainer.state, final, rows, rate, trainable)


def load_method_model(folder: Path, settings: TrainConfig, machine: MachineConfig, device: str) -> Any:
    """The model that learns: loaded, with its adapter and kernels; one that scores for `reward`."""
    model = load_model(folder, weights=settings.weights, device=device, ple=machine.ple)
    if settings.method == "reward":
        model = reward_head.as_reward(model)
    model = adapters.attach(model, settings.lora, settings.seed)
    if settings.method == "reward":
        model.get_base_model().score.requires_grad_(requires_grad=True)
    kernels.install_kernels(model, settings.kernels, recompute=recompute(settings))
    return model


def tabled(data: Path, folder: Path, tokenizer: Any, settings: TrainConfig, template: str) -> Tables:
    """Rows of a prepared folder as tables below `folder`. Raises DataError when the method can't learn from them."""
    manner = Manner(template=template, thinking=settings.thinking)
    make = _TABLES.get(settings.method, answer_tables.pairs)
    encoding = Encoding(tokenizer, settings.max_length, manner)
    train_rows, cut = make(data / "train.jsonl", folder, encoding, settings.method)
    valid_rows, _ = make(data / "valid.jsonl", folder, encoding, settings.method)
    if len(train_rows) == 0:
        raise DataError(
            "no training row leaves room for an answer within train.max_length",
            "raise train.max_length; `gemma-ops data check` shows the rows",
        )
    return Tables(train_rows, valid_rows, cut, manner)


def make_method_trainer(
    model: Any,
    settings: TrainConfig,
    rows: Tables,
    folder: Path,
    work: Path,
    *,
    rate: float,
    device: str,
    callbacks: list[Any],
) -> Any:
    """The trainer of `train.method` on rows that are tokenized already. Raises ConfigError as `arguments.training_arguments` does."""
    import transformers

    if settings.early_stop:
        callbacks = [*callbacks, transformers.EarlyStoppingCallback(early_stopping_patience=settings.early_stop)]
    given = {
        "settings": settings,
        "model": model,
        "train_dataset": rows.train,
        "eval_dataset": rows.valid if len(rows.valid) else None,
        "processing_class": transformers.PreTrainedTokenizerFast.from_pretrained(folder),
        "callbacks": callbacks,
    }
    best = "eval_reward" if settings.method in REINFORCE else "eval_loss"
    keys = common(settings, work, has_valid=len(rows.valid) > 0, rate=rate, device=device, best=best)
    trainer = _MAKERS[settings.method](model, settings, rows, keys, given)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _dpo(model: Any, settings: TrainConfig, rows: Tables, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    from gemma_ops.training.methods import dpo
    from gemma_ops.training.methods.reference import starts_at_base

    args = training_arguments(dpo.CONFIG, settings, keys | dpo.owned(settings, tabled=not starts_at_base(model)))
    return dpo.DPO(args=args, layout=_layout(settings, rows, args), **given)


def _orpo(model: Any, settings: TrainConfig, rows: Tables, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    from gemma_ops.training.methods import orpo

    args = training_arguments(orpo.CONFIG, settings, keys | orpo.owned(settings), orpo.KNOWN)
    return orpo.ORPO(args=args, layout=_layout(settings, rows, args), **given)


def _kto(model: Any, settings: TrainConfig, rows: Tables, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    from gemma_ops.training.methods import kto
    from gemma_ops.training.methods.reference import starts_at_base

    args = training_arguments(kto.CONFIG, settings, keys | kto.owned(settings, tabled=not starts_at_base(model)))
    return kto.KTO(args=args, layout=_layout(settings, rows, args), **given)


def _reward(model: Any, settings: TrainConfig, rows: Tables, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    from gemma_ops.training.methods import reward_model as method

    args = training_arguments(method.CONFIG, settings, keys | method.owned(settings))
    return method.Reward(args=args, layout=_layout(settings, rows, args), **given)


def _grpo(model: Any, settings: TrainConfig, rows: Tables, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    from gemma_ops.training.methods import grpo

    args = training_arguments(grpo.CONFIG, settings, keys | grpo.owned(settings, world=_world()))
    return grpo.GRPO(args=args, rewards=_rewards(model, settings, rows, given), **given)


def _rloo(model: Any, settings: TrainConfig, rows: Tables, keys: dict[str, Any], given: dict[str, Any]) -> Any:
    from gemma_ops.training.methods import rloo

    args = training_arguments(rloo.CONFIG, settings, keys | rloo.owned(settings, world=_world()))
    return rloo.RLOO(args=args, rewards=_rewards(model, settings, rows, given), **given)


_MAKERS = {"dpo": _dpo, "orpo": _orpo, "kto": _kto, "reward": _reward, "grpo": _grpo, "rloo": _rloo}


def _rewards(model: Any, settings: TrainConfig, rows: Tables, given: dict[str, Any]) -> Any:
    from gemma_ops.training.methods.rewards import Rewards

    references = [*rows.train["reference"], *rows.valid["reference"]]
    tokenizer = given["processing_class"].backend_tokenizer
    return Rewards(settings.reinforce, references, tokenizer, set(stop_ids(model)))


def _world() -> int:
    """Processes that train together."""
    from accelerate import PartialState

    return int(PartialState().num_processes)


def _layout(settings: TrainConfig, rows: Tables, args: Any) -> Any:
    return layout(settings, rows, args.device.type, rank=args.process_index, world=args.world_size)


def _metrics(state: Any, final: dict[str, Any], rows: Tables, rate: float, trainable: int) -> dict[str, float]:
    """What the step reports: means over the training, figures of its last step, and of the validation after it."""
    steps = [entry for entry in state.log_history if "loss" in entry]
    metrics = {
        "steps": float(state.global_step),
        "loss": sum(entry["loss"] for entry in steps) / len(steps),
        "rows": float(len(rows.train)),
        "cut_rows": float(rows.cut),
        "trainable_parameters": float(trainable),
        "learning_rate": float(rate),
    }
    last = {key: steps[-1][key] for key in _SHOWN if key in steps[-1]}
    kept = {key: value for key, value in final.items() if key.removeprefix("eval_") in ("loss", *_SHOWN)}
    return metrics | {key.replace("/", "_"): float(value) for key, value in (last | kept).items()}
