"""Results of a training, adapter or changed tensors, as the new value of each base tensor that they change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint, read_checkpoint_json
from gemma_ops.export.merge_lora import Update, adapter_folder, read_updates
from gemma_ops.modeling import full
from gemma_ops.modeling.shards import TensorEntry, shard_pieces

_PIECE = 1 << 24
"""Numbers that are copied at a time."""


@dataclass(frozen=True)
class Replacement:
    """A tensor that a full fine-tune changed."""

    target: str
    value: TensorEntry

    def merged(self, entry: TensorEntry) -> Iterator[torch.Tensor]:
        """Yield the new tensor in fp32, in pieces; `entry` is the base's, of the same shape."""
        for _, numbers in shard_pieces(self.value, _PIECE):
            yield numbers.float()


def folder(path: Path) -> Path:
    """Return the folder of what was trained inside the artifact of `train`: `tuned/`, else the adapter's."""
    for found in (path / full.FOLDER, path):
        if (found / full.RECORD).exists():
            return found
    return adapter_folder(path)


def is_full(found: Path) -> bool:
    """True if a folder that `folder` gave holds tensors instead of an adapter."""
    return (found / full.RECORD).exists()


def in_towers(changed: Iterable[str]) -> tuple[bool, bool]:
    """Return whether any, and whether all, of the tensors of these names lie in the vision or audio tower."""
    found = [bool(re.search(r"vision|audio", name)) for name in changed]
    return any(found), all(found)


def weight_changes(found: Path, source: MergedCheckpoint, base: Path) -> dict[str, Update | Replacement]:
    """Return what becomes of each changed tensor of `source`, the checkpoint inside the artifact `base`. Raises
    ModelError when what was trained does not fit it, as a whole."""
    if not is_full(found):
        _check_base(found, base)
        return dict(read_updates(found, source))
    replaced: dict[str, Update | Replacement] = {}
    for name, entry in full.full_entries(found, base).items():
        place = source.entries.get(name)
        if place is None or place.shape != entry.shape:
            raise ModelError(
                f"{found} holds {name} {entry.shape}, which {source.folder} does not",
                "merge into the very base it was trained from",
            )
        replaced[name] = Replacement(name, entry)
    return replaced


def _check_base(adapter: Path, base: Path) -> None:
    """Refuse an adapter of another published base. Only names of the Hub are compared: a path says nothing."""
    described = base / "model.json"
    if not described.is_file():
        return
    trained_on = str(
        read_checkpoint_json(adapter / "adapter_config.json", "the adapter's settings").get("base_model_name_or_path")
    )
    given = str(read_checkpoint_json(described, "which model the base is").get("id"))
    if trained_on != given and all(re.fullmatch(r"[\w.-]+/[\w.-]+", name) for name in (trained_on, given)):
        raise ModelError(
            f"the adapter in {adapter} was trained on {trained_on}, and the base is {given}",
            "merge into the base it was trained on; where the weights are the same under two names, correct "
            "base_model_name_or_path in adapter_config.json",
        )
