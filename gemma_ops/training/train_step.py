"""A training in this process, read from top to bottom: rows, model, adapter, trainer, what is kept.

The same for every method; what differs stands in a `Course` (`sft`, `methods.preference_course`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gemma_ops import family
from gemma_ops.config import LaunchConfig, Machine, MachineConfig, TrainConfig
from gemma_ops.config.methods import PREFERENCE, REINFORCE
from gemma_ops.data import published
from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.modeling.load import load_tokenizer, pick_device
from gemma_ops.modeling.threads import settle_threads
from gemma_ops.runs import journal
from gemma_ops.training import media_sft
from gemma_ops.training import teacher as teaching
from gemma_ops.training.course import Course, TrainingRows, TrainingSite
from gemma_ops.training.follow import Follow, last_checkpoint, prompts, validated, write_record
from gemma_ops.training.launch import strategy
from gemma_ops.training.launch.world import barrier, main_first, on_main
from gemma_ops.training.settle import refuse_warm_up_alone, settle, shape_of

_SHOWN = ("rewards/margins", "rewards/accuracies", "accuracy", "margin", "reward")
"""Figures of the last step that a step's metrics carry, where the method has them."""


def train_here(
    out: Path, settings: TrainConfig, machine: MachineConfig, *, base: Path, data: Path, teacher: Path | None = None
) -> dict[str, float]:
    """Train in this process, alone or as one of a process group, on from the last whole checkpoint below `out`.

    Writes `adapter/` (`tuned/` with `tune: full`), `record.jsonl` and `samples.jsonl` below `out`, and returns the
    step's metrics. Raises DataError when no row is left to learn from, or the rows are not what the method learns from.
    """
    course = _course(settings)
    folder = checkpoint(base)
    described = json.loads((base / "model.json").read_text(encoding="utf-8"))
    device = pick_device(machine.device)
    settle_threads(folder, machine.workers)
    launch = machine.launch if isinstance(machine, Machine) else LaunchConfig()
    site = TrainingSite(
        folder, out / "checkpoints", machine, launch, device, load_tokenizer(folder), published.template_of(folder),
        teacher=teaching.check_teacher(teacher, folder) if settings.method == "distill" else None,
        media=media_sft.find_media(folder, data, settings, sharded=launch.strategy == "fsdp"),
    )  # fmt: skip
    rows = main_first(lambda: course.rows(data, settings, site))
    refuse_warm_up_alone(settings, rows.train)
    size = family.SIZES.get(described["size"] or "")
    usual = size.learning_rate if size else family.DEFAULT_LEARNING_RATE  # an adapter's
    rate = settings.learning_rate or usual * course.rate_share(settings)
    tables, towers = [rows.train, rows.valid], site.media is not None
    settings = settle(settings, shape_of(folder), tables, device, ple=machine.ple, towers=towers)

    model = course.model(settings, site)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def follow() -> Follow:
        file, count = data / "valid.jsonl", settings.samples
        shown = prompts(file, site.tokenizer, count, rows.manner, site.media) if course.answers else []
        return Follow(out / "samples.jsonl", site.tokenizer, shown)

    trainer = course.trainer(model, settings, rows, site, rate=rate, follow=follow)
    strategy.check_strategy(trainer, launch)
    journal.record(rows=len(rows.train), cut=rows.cut, trainable=trainable, learning_rate=rate, device=device)

    if on_main():
        last_checkpoint(site.work)  # half-written ones go before anybody looks
    barrier()
    start = last_checkpoint(site.work)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    final = validated(trainer.state, settings) or trainer.evaluate() if len(rows.valid) else {}
    kept = course.save(model, out, site, described)
    if on_main():
        write_prompting(kept, Prompting.of(settings.thinking, site.template))
        write_record(trainer.state, out / "record.jsonl")
        (out / "samples.jsonl").touch()
        shutil.rmtree(site.work, ignore_errors=True)
    return _metrics(trainer.state, final, rows, rate, trainable)


def _course(settings: TrainConfig) -> Course:
    if settings.method in (*PREFERENCE, *REINFORCE):
        from gemma_ops.training.methods.preference_course import PreferenceCourse

        return PreferenceCourse(settings.method)
    from gemma_ops.training.sft import SupervisedCourse

    return SupervisedCourse(settings.tune)


def _metrics(state: Any, final: dict[str, Any], rows: TrainingRows, rate: float, trainable: int) -> dict[str, float]:
    """Return what the step reports: means over the training, figures of its last step, and of the validation after
    it."""
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
