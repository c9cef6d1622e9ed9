"""The step `draft`: a drafter tuned on the tuned model's own answers, written for every engine, and measured.

    weights/        the drafter for transformers and vLLM, bf16 safetensors
    drafter.gguf    the drafter for llama.cpp
    drafter.json    what it does for each quantized file, and whether to serve it with the drafter

A killed step goes on where it was: with the answers that are recorded, and from the training's last state.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gemma_ops.config import DraftConfig, MachineConfig
from gemma_ops.data import example
from gemma_ops.data.parts import media_of
from gemma_ops.data.prompt_record import read_prompting
from gemma_ops.data.row_tokens import Manner
from gemma_ops.drafting.draft_figures import recommend
from gemma_ops.drafting.draft_measurement import TriedFile, measure_task
from gemma_ops.drafting.draft_training import DraftTraining, train_drafter
from gemma_ops.drafting.drafter_gguf import write_drafter_gguf
from gemma_ops.drafting.drafter_unroll import TargetTable
from gemma_ops.drafting.recorded_states import RecordedStates, is_recorded, record_states
from gemma_ops.errors import DataError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.file_fidelity import parity_weights
from gemma_ops.export.folder import check_room
from gemma_ops.export.prompts import export_prompt_ids, manner_of
from gemma_ops.family import Shape
from gemma_ops.family.formats import GGUF, REFERENCE
from gemma_ops.modeling.checkpoint_source import checkpoint, fetched_id
from gemma_ops.modeling.drafter_files import check_drafter, load_drafter, read_drafter_config, save_drafter
from gemma_ops.modeling.load import load_model, load_tokenizer, pick_device
from gemma_ops.planning.drafter_bytes import recorded_bytes
from gemma_ops.privacy.classes import learned_class, record_learned, rows_class, stricter
from gemma_ops.runs import digest, journal
from gemma_ops.targets.prompt_encoder import Encoder
from gemma_ops.targets.target import AskingMode
from gemma_ops.tasks.task import load_all
from gemma_ops.verdicts.drafter_record import DRAFTER, DRAFTER_GGUF, DRAFTER_WEIGHTS, SCHEMA, DrafterRecord

_WORK = "work"
"""Folder of recordings, of the training's state and of the stock drafter's file; gone at the end."""
_BATCH = 32
"""Prompts that the target answers at once."""
_LONGEST = 2048
"""Tokens of a prompt; longer ones are left out."""


def draft(
    out: Path,
    settings: DraftConfig,
    machine: MachineConfig,
    *,
    model: Path,
    stock: Path,
    data: Path,
    quantized: Path,
    tasks: tuple[Path, ...] = (),
    source: Path | None = None,
) -> dict[str, float]:
    """Tune `stock`, a drafter as the step `fetch` leaves it, for the merged checkpoint `model` on its answers to the
    prompts of `data`; measure it with each file of `quantized` on the tasks, whose rows `source` may hold.

    Raises ModelError for a drafter of another size, DataError where no row can be asked, MachineError when the disk has
    no room, and what llama.cpp refuses.
    """
    name = fetched_id(stock)
    target, stock, work = MergedCheckpoint(checkpoint(model)), checkpoint(stock), out / _WORK
    check_drafter(read_drafter_config(stock), target.config)
    learned = stricter(learned_class(model), rows_class([data / "train.jsonl"]))
    rows = _recorded(target, data, settings, machine, work / "states")
    parameters, loss = _tuned(target, stock, rows, settings, machine, work, out / DRAFTER_WEIGHTS)
    write_drafter_gguf(out / DRAFTER_WEIGHTS, target.folder, out / DRAFTER_GGUF, learned=learned)
    write_drafter_gguf(stock, target.folder, work / DRAFTER_GGUF)
    record_learned(out, learned, [f"model and rows: {learned}"])
    files = _measured(out, target.folder, settings, machine, quantized, tasks, source)
    record = DrafterRecord.made(
        {
            "schema": SCHEMA, "base": name, "tokens": settings.tokens, "parameters": parameters,
            "rows": len(rows), "engine": f"llama.cpp (xllamacpp {version('xllamacpp')})", "files": files,
        }
    )  # fmt: skip
    (out / DRAFTER).write_text(record.text(), encoding="utf-8")
    shutil.rmtree(work)
    return {"rows": float(len(rows)), "loss": loss, "parameters": float(parameters), **_metrics(record)}


def _recorded(
    target: MergedCheckpoint, data: Path, settings: DraftConfig, machine: MachineConfig, folder: Path
) -> RecordedStates:
    """Return what the target says to the training prompts, recorded where that isn't done yet."""
    tokenizer = load_tokenizer(target.folder)
    manner = manner_of(target.folder, read_prompting(target.folder))
    prompts = list(_prompts(data / "train.jsonl", tokenizer, manner, settings))
    if not prompts:
        raise DataError(
            f"no row of {data / 'train.jsonl'} asks in text alone, so there is nothing to draft",
            "set draft.base=none",
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    most = recorded_bytes(Shape.from_config(target.config), settings, sum(map(len, prompts)) / len(prompts))
    check_room(folder, max(0, round(most) - written))
    if not is_recorded(folder, len(prompts), _BATCH):
        weights, device = parity_weights(target), pick_device(machine.device, target.folder)
        model = load_model(target.folder, weights=weights, device=device)
        record_states(model, prompts, folder, answer_tokens=settings.answer_tokens, batch=_BATCH)
    rows = RecordedStates(folder)
    if not len(rows):
        raise DataError(
            "every answer of the tuned model is one token long: there is nothing to draft", "set draft.base=none"
        )
    return rows


def _prompts(file: Path, tokenizer: Any, manner: Manner, settings: DraftConfig) -> Iterator[list[int]]:
    """Yield the prompts of rows drawn by the seed, as token ids; rows that show something are left out, and raw
    texts."""
    rows = list(example.read_rows(file))
    random.Random(settings.seed).shuffle(rows)
    found = 0
    for row in rows:
        if found == settings.rows:
            return
        messages = row.get("messages") or []
        if not messages or media_of(messages):
            continue
        ids = export_prompt_ids(tokenizer, row, manner)
        if len(ids) <= _LONGEST:
            found += 1
            yield ids


def _tuned(
    target: MergedCheckpoint,
    stock: Path,
    rows: RecordedStates,
    settings: DraftConfig,
    machine: MachineConfig,
    work: Path,
    out: Path,
) -> tuple[int, float]:
    """Train the drafter and write it; return its parameters and the mean loss of the last tenth of the steps."""
    import torch

    device = pick_device(machine.device, stock)
    drafter = load_drafter(stock, device=device)
    name = next(name for name in target.entries if name.endswith("embed_tokens.weight"))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    table = TargetTable(target.read(name).to(device, dtype), target.text.get("final_logit_softcapping"))
    training = DraftTraining(settings.steps, settings.batch, settings.learning_rate, settings.tokens, settings.seed)
    losses, began = [0.0], time.perf_counter()
    for step, loss in train_drafter(drafter, table, rows, training, work):
        losses.append(loss)
        if step % 10 == 0 or step == settings.steps:
            journal.record(
                event="drafting", step=step, steps=settings.steps, loss=loss, seconds=time.perf_counter() - began
            )
    save_drafter(drafter, out)
    last = losses[-max(1, settings.steps // 10) :]
    return sum(value.numel() for value in drafter.parameters()), sum(last) / len(last)


def _measured(
    out: Path,
    model: Path,
    settings: DraftConfig,
    machine: MachineConfig,
    quantized: Path,
    tasks: tuple[Path, ...],
    source: Path | None,
) -> dict[str, Any]:
    """Return what the drafter does for each quantized file, and for the bf16 one where there is no other."""
    prompting = read_prompting(model)
    encode = Encoder(model, AskingMode(thinking=prompting is not None and prompting.asks_to_think))
    made = [name for name in GGUF if name != REFERENCE and (quantized / GGUF[name].path).is_file()] or [REFERENCE]
    chosen = [task.first(settings.measure_rows) for task in load_all(tasks, source)]
    found = {}
    for form in made:
        file = quantized / GGUF[form].path
        tried = TriedFile(file, out / _WORK / DRAFTER_GGUF, out / DRAFTER_GGUF, machine.workers)
        measured = [measure_task(tried, task, encode, settings, form) for task in chosen if not task.shows]
        on, reason = recommend(measured) if measured else (False, "no task was asked with it")
        found[form] = {
            "sha256": digest.of_file(file),
            "tasks": [task.to_json() for task in measured],
            "recommended": on,
            "reason": reason,
        }
    return found


def _metrics(record: DrafterRecord) -> dict[str, float]:
    """Return the figures of each file, on average over the tasks: `was` is those of the stock drafter."""
    found: dict[str, float] = {}
    for form, file in record.files.items():
        found[f"{form}/recommended"] = float(file.recommended)
        if not file.tasks:
            continue
        figures = {
            "tokens_per_step": [task.tuned.tokens_per_step.value for task in file.tasks],
            "was": [task.stock.tokens_per_step.value for task in file.tasks],
            "accepted": [task.tuned.accepted.value for task in file.tasks],
            "accepted_was": [task.stock.accepted.value for task in file.tasks],
            "speed": [task.tuned.speed.value for task in file.tasks],
            "equal": [task.equal / task.rows for task in file.tasks],
        }
        found |= {f"{form}/{name}": sum(map(float, values)) / len(values) for name, values in figures.items()}
    return found
