"""The step `merge`: the adapter, or the tensors of a full fine-tune, put into the bf16 base, and proof that it took.

Each output shard is the base's shard with the bytes of updated tensors replaced: same header, same names, same order,
so towers, routers and the redundant keys of KV-shared layers are carried along untouched, and memory never holds more
than one tensor (one expert of a stack). `W + scale * B @ A` is computed in fp32 and rounded once to the base's dtype.
Merging into a 4-bit base is refused: dequantized packed weights can be garbage (bitsandbytes on CPU after a forward
pass), and a requantized sum loses part of what was trained.

A shard is written next to its final name and renamed when it is on disk, so a killed step goes on after the last whole
shard and ends with the same bytes.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import BinaryIO

import torch

from gemma_ops.config import MachineConfig, MergeConfig
from gemma_ops.data.prompt_record import read_prompting, write_prompting
from gemma_ops.errors import GateError, ModelError
from gemma_ops.export import merge_check, replacing
from gemma_ops.export.adapter_check import check_adapter
from gemma_ops.export.checkpoint import INDEX, MergedCheckpoint
from gemma_ops.export.folder import carry_over, check_room
from gemma_ops.export.gguf_adapter import write_adapter
from gemma_ops.export.merge_lora import Update
from gemma_ops.export.prompts import export_prompt_ids, fidelity_prompts, manner_of
from gemma_ops.export.replacing import Replacement
from gemma_ops.family.formats import ADAPTER_FILE
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.modeling.shards import DTYPES, TensorEntry
from gemma_ops.privacy.classes import learned_class, record_learned, strictest
from gemma_ops.runs import journal
from gemma_ops.runs.durable import write_json

_CHUNK = 8 << 20  # bytes copied or compared at a time


def merge(
    out: Path, settings: MergeConfig, machine: MachineConfig, *, base: Path, adapter: Path, data: Path | None = None
) -> dict[str, float]:
    """Write `out/model/` (a complete checkpoint folder), `out/adapter.gguf` where it is asked for, and
    `out/report.json`, and return the counts and canary numbers.

    Raises ModelError for an incomplete or quantized base and for an adapter that can't be folded into it, or that
    llama.cpp would not compute, GateError when the merged model does not differ from the base or llama.cpp disagrees,
    MachineError when the disk has no room.
    """
    source = MergedCheckpoint(checkpoint(base))
    trained = replacing.folder(adapter)
    updates = replacing.weight_changes(trained, source, base)
    learned = strictest([learned_class(base), learned_class(adapter)])
    if settings.gguf_adapter:
        write_adapter(trained, source, out / ADAPTER_FILE, learned=learned)
    target = out / "model"
    target.mkdir(parents=True, exist_ok=True)
    check_room(target, sum(shard.stat().st_size for shard in source.shards if not (target / shard.name).exists()))
    for number, shard in enumerate(source.shards, 1):
        _write_shard(shard, target / shard.name, source, updates)
        journal.record(shard=shard.name, done=number, shards=len(source.shards))
    if (source.folder / INDEX).exists():
        shutil.copyfile(source.folder / INDEX, target / (INDEX + ".tmp"))
        (target / (INDEX + ".tmp")).replace(target / INDEX)
    carried = carry_over(source, target)
    prompting = read_prompting(trained)
    if prompting:
        write_prompting(target, prompting)
    changes = _audit(source, MergedCheckpoint(target), updates)
    found = merge_check.check_merge(
        source.folder,
        target,
        trained,
        fidelity_prompts(data, settings.canary_prompts),
        machine,
        data=data,
        towers=replacing.in_towers(updates),
        prompting=prompting,
    )
    parity = None
    if settings.gguf_adapter:
        manner = manner_of(target, prompting)
        rows = fidelity_prompts(data, settings.canary_prompts, text_only=True)
        asked = [export_prompt_ids(load_tokenizer(target), row, manner) for row in rows]
        parity = check_adapter(out / ADAPTER_FILE, trained, source, asked, machine, scratch=out / "base.gguf")
    report = {
        "tensors": len(source.entries),
        "updated": len(updates),
        "untouched": len(source.entries) - len(updates),
        "files": carried,
        "relative_change": {name: float(f"{value:.4g}") for name, value in changes.items()},
        "canary": found.report(),
        **({"adapter": parity.report()} if parity else {}),
    }
    write_json(out / "report.json", report, indent=2)
    parts = {"base": learned_class(base), "trained": learned_class(adapter)}
    for folder in (out, target):
        record_learned(folder, strictest(parts.values()), [f"{name}: {kind}" for name, kind in parts.items()])
    return {
        "tensors_updated": float(len(updates)),
        "relative_change": sum(changes.values()) / len(changes),
        **found.metrics(),
        **(parity.metrics() if parity else {}),
    }


def _write_shard(shard: Path, out: Path, source: MergedCheckpoint, updates: dict[str, Update | Replacement]) -> None:
    """Copy a shard with its updated tensors replaced; a shard already in place was complete when it was renamed."""
    if out.exists():
        return
    entries = sorted((entry for entry in source.entries.values() if entry.file == shard), key=lambda entry: entry.start)
    temporary = out.with_name(out.name + ".tmp")
    try:
        with shard.open("rb") as reader, temporary.open("wb") as writer:
            for entry in entries:
                if entry.name in updates:
                    _copy(reader, writer, entry.start)
                    _write_updated(writer, entry, updates[entry.name])
            _copy(reader, writer, shard.stat().st_size)
            writer.flush()
            os.fsync(writer.fileno())
        temporary.replace(out)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _copy(reader: BinaryIO, writer: BinaryIO, until: int) -> None:
    """Copy bytes from where the writer stands up to offset `until`."""
    reader.seek(writer.tell())
    while (left := until - writer.tell()) > 0:
        writer.write(reader.read(min(_CHUNK, left)))


def _write_updated(writer: BinaryIO, entry: TensorEntry, update: Update | Replacement) -> None:
    """Write the new value, one expert or piece at a time, rounded once to the base's dtype."""
    for value in update.merged(entry):
        merged = value.to(DTYPES[entry.dtype])
        if not torch.isfinite(merged).all():
            raise ModelError(
                f"what was trained makes {entry.name} infinite or not a number",
                "train again: its weights have diverged",
            )
        writer.write(memoryview(merged.contiguous().view(torch.uint8).numpy()).cast("B"))


def _audit(
    source: MergedCheckpoint, merged: MergedCheckpoint, updates: dict[str, Update | Replacement]
) -> dict[str, float]:
    """Read both folders back (same tensors, untouched ones byte for byte), and return |W' - W| / |W| of the updated
    ones.

    Raises ModelError when a file is not what was written, GateError when no updated tensor changed at all.
    """
    fix = "run the step again with --redo merge; if it repeats, check the disk"
    layout = {name: (entry.dtype, entry.shape) for name, entry in source.entries.items()}
    if layout != {name: (entry.dtype, entry.shape) for name, entry in merged.entries.items()}:
        raise ModelError("the merged folder does not hold the same tensors as the base", fix)
    changes = {}
    for name, entry in source.entries.items():
        if name not in updates:
            if not _same_bytes(entry, merged.entries[name]):
                raise ModelError(f"{name} should have been copied unchanged and was not", fix)
            continue
        difference = total = 0.0
        for before, after in zip(source.slices(name, _CHUNK), merged.slices(name, _CHUNK), strict=True):
            difference += float((after.double() - before.double()).square().sum())
            total += float(before.double().square().sum())
        changes[name] = (difference / total) ** 0.5 if total else difference**0.5
    if not any(changes.values()):
        raise GateError(
            "the adapter changes nothing: every updated tensor equals the base's after rounding to its dtype",
            "train longer or with a higher train.learning_rate; an adapter whose B factors are all zero was never "
            "trained",
        )
    return changes


def _same_bytes(one: TensorEntry, other: TensorEntry) -> bool:
    with one.file.open("rb") as left, other.file.open("rb") as right:
        left.seek(one.start)
        right.seek(other.start)
        remaining = one.stop - one.start
        while remaining > 0:
            count = min(_CHUNK, remaining)
            if left.read(count) != right.read(count):
                return False
            remaining -= count
    return True
