"""Full fine-tuning: every parameter of the language model learns, and the tensors that changed are kept.

A full fine-tune leaves no adapter. What is written is `tuned/`: the changed tensors under the names and in the number
types of the base's files, sharded, with an index in the usual form, and `tuned.json`, which names the base by id,
revision and the digests of its weight files. `merge` puts them into a copy of the base; towers and the per-layer table
are the base's own. The folder appears under its name when it is whole, and not before.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from gemma_ops.config import TrainConfig
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.modeling import nf4
from gemma_ops.modeling.audit import component_of
from gemma_ops.modeling.checkpoint_source import check_shards, checkpoint
from gemma_ops.modeling.shards import DTYPES, TensorEntry, read_headers, read_tensors
from gemma_ops.runs import digest

FOLDER = "tuned"
RECORD = "tuned.json"
INDEX = "model.safetensors.index.json"
SCHEMA = "gemma-ops/tuned@1"
RATE = 0.1
"""Share of an adapter's learning rate that full fine-tuning takes, since every weight moves: a rule of thumb, not
measured on this family."""
_SHARD = 2 << 30
"""Bytes of a shard, which is what writing holds in memory."""
_SMALL = 1 << 16
"""Largest tensor, in bytes, that is read to tell bases apart."""
_TOWERS = ("vision", "audio")


def unfreeze(model: Any, settings: TrainConfig) -> int:
    """Unfreeze the language model, freeze the rest, and return how many parameters learn.

    The embedding learns with the head, which it is. The per-layer table (E2B 2.3e9, E4B 2.8e9 numbers) stays: a step
    touches the rows of its tokens only, yet AdamW would hold 12 bytes for each of its numbers. Towers learn where
    `train.lora.towers` says so. Raises ConfigError for 4-bit weights, and for towers that are not loaded.
    """
    if any(nf4.is_4bit(parameter) for parameter in model.parameters()):
        raise ConfigError("train.tune full can't train 4-bit weights", "set train.weights to bf16 or fp32")
    frozen = {"per-layer table"} | (set() if settings.lora.towers else set(_TOWERS))
    learns, towers = 0, False
    for name, parameter in model.named_parameters():
        component = component_of(name)
        parameter.requires_grad_(component not in frozen)
        towers |= component in _TOWERS
        learns += parameter.numel() if parameter.requires_grad else 0
    if settings.lora.towers and not towers:
        raise ConfigError("train.lora.towers wants the towers to learn, and the loaded model has none", "leave it out")
    return learns


def save_full(
    model: Any, folder: Path, source: Path, described: dict[str, Any], *, write: bool = True
) -> dict[str, Any]:
    """Write the tensors that learned and differ from those of the checkpoint `source`, and return the record.

    `described` is the base's `model.json`. Where parameters are spread over processes, every process must call this,
    and one of them writes. Raises ModelError when a tensor has no place in the base, is not finite, or when nothing
    changed.
    """
    files = read_headers(check_shards(source))
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if homeless := sorted(set(learned) - set(files)):
        raise ModelError(
            f"{len(homeless)} tensors that learned are none of {source}, the first: {homeless[0]}", "report it"
        )
    if not write:
        for name in (name for name in files if name in learned):
            _whole(learned[name])
        return {}
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = _write(partial, learned, files)
    if not names:
        raise ModelError("the training changed nothing: every tensor is still the base's", "train longer, or report it")
    record = {
        "schema": SCHEMA,
        "base": described["id"],
        "revision": described["revision"],
        "base_weights": weights_digest(described),
        "base_fingerprint": fingerprint(files),
        "tensors": len(names),
        "parameters": sum(files[name].parameters for name in names),
        "unchanged": len(learned) - len(names),
    }
    (partial / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return record


def _write(folder: Path, learned: dict[str, Any], files: dict[str, TensorEntry]) -> list[str]:
    """Write shards and index, and return the names of the tensors that changed, in the order of the base's files."""
    import torch
    from safetensors.torch import save_file

    shards: list[list[str]] = []
    waiting: dict[str, Any] = {}
    total = 0

    def flush() -> None:
        save_file(waiting, str(folder / f"part-{len(shards)}"), metadata={"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    for name in (name for name in files if name in learned):
        value = _whole(learned[name]).detach().to("cpu", DTYPES[files[name].dtype]).contiguous()
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{name} is infinite or not a number: the training diverged",
                "lower train.learning_rate, and start again",
            )
        if torch.equal(value, read_tensors(files[name])):
            continue
        size = value.numel() * value.element_size()
        if waiting and sum(each.numel() * each.element_size() for each in waiting.values()) + size > _SHARD:
            flush()
        waiting[name], total = value, total + size
    if waiting:
        flush()
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{number}").rename(folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return list(weight_map)


def _whole(parameter: Any) -> Any:
    """Return a parameter as one tensor, gathered where it is spread over processes, in the order in which all of them
    ask."""
    return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter


def weights_digest(described: dict[str, Any]) -> str:
    """Return one digest of a base's weight files, from the digests in its `model.json`."""
    return digest.of_json({name: found for name, found in described["files"].items() if name.endswith(".safetensors")})


def fingerprint(files: dict[str, TensorEntry]) -> str:
    """Return what tells one base from another without reading it all: names, types, shapes, and the numbers of the
    small tensors (norms and scales differ between any two trainings of one shape)."""
    found = hashlib.sha256()
    for name, entry in sorted(files.items()):
        found.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
        if entry.stop - entry.start <= _SMALL:
            with entry.file.open("rb") as stream:
                stream.seek(entry.start)
                found.update(stream.read(entry.stop - entry.start))
    return found.hexdigest()


def full_entries(folder: Path, base: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a `tuned/` folder, checked against the base artifact (or plain checkpoint folder) they
    belong to.

    Raises ModelError when files are missing, cut short or of another format, or when the base is another one.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        listed = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} holds no whole result of train.tune=full ({error})", "train again") from error
    if record.get("schema") != SCHEMA:
        raise ModelError(
            f"{folder} was written in the format {record.get('schema')!r}, and this version reads {SCHEMA}",
            "train again, or use the version of gemma-ops that wrote it",
        )
    described, inside = base / "model.json", checkpoint(base)
    other = (
        described.is_file()
        and weights_digest(json.loads(described.read_text(encoding="utf-8"))) != record["base_weights"]
    )
    if other or fingerprint(read_headers(check_shards(inside))) != record["base_fingerprint"]:
        raise ModelError(
            f"{folder} was trained from {record['base']} with other weights than those in {inside}",
            "use the very base it was trained from: the tensors that did not change are only there",
        )
    files = [folder / name for name in sorted(set(listed.values()))]
    if absent := [file for file in files if not file.is_file()]:
        raise ModelError(f"{absent[0]} is missing", "copy the whole folder, or train again")
    found = read_headers(files)
    if set(found) != set(listed) or len(found) != record["tensors"]:
        raise ModelError(f"{folder} does not hold the {record['tensors']} tensors it lists", "copy the folder again")
    return found


def load_full(model: Any, folder: Path, base: Path) -> Any:
    """Put the tensors of a `tuned/` folder into the loaded `base`. Raises ModelError when one does not fit."""
    import torch

    places = dict(model.named_parameters())
    for name, entry in full_entries(folder, base).items():
        if name not in places or nf4.is_4bit(places[name]) or tuple(places[name].shape) != entry.shape:
            raise ModelError(f"{name} of {folder} does not fit this base", "use the base named in its tuned.json")
        with torch.no_grad():
            places[name].copy_(read_tensors(entry))
    return model
