"""What a training leaves, adapter or changed tensors, as the new value of each base tensor it changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from gemma_ops.errors import ModelError
from gemma_ops.export.checkpoint import Checkpoint
from gemma_ops.export.lora import Update, folder_of, read_updates
from gemma_ops.modeling import full
from gemma_ops.modeling.shards import Entry, pieces

_PIECE = 1 << 24
"""Numbers copied at a time."""


@dataclass(frozen=True)
class Replacement:
    """A tensor that a full fine-tune changed."""

    target: str
    value: Entry

    def merged(self, entry: Entry) -> Iterator[torch.Tensor]:
        """The new tensor in fp32, in pieces; `entry` is the base's, of the same shape."""
        for _, numbers in pieces(self.value, _PIECE):
            yield numbers.float()


def folder(path: Path) -> Path:
    """The folder of what was trained inside the artifact of `train`: `tuned/`, else the adapter's."""
    for found in (path / full.FOLDER, path):
        if (found / full.RECORD).exists():
            return found
    return folder_of(path)


def is_full(found: Path) -> bool:
    """Whether a folder that `folder` gave holds tensors instead of an adapter."""
    return (found / full.RECORD).exists()


def in_towers(changed: Iterable[str]) -> tuple[bool, bool]:
    """Whether any, and whether all, of the tensors of these names lie in the vision or audio tower."""
    found = [bool(re.search(r"vision|audio", name)) for name in changed]
    return any(found), all(found)


def changes(found: Path, source: Checkpoint, base: Path) -> dict[str, Update | Replacement]:
    """What becomes of each changed tensor of `source`, the checkpoint inside the artifact `base`. Raises ModelError when
    what was trained does not fit it, as a whole."""
    if not is_full(found):
        return dict(read_updates(found, source))
    replaced: dict[str, Update | Replacement] = {}
    for name, entry in full.entries(found, base).items():
        place = source.entries.get(name)
        if place is None or place.shape != entry.shape:
            raise ModelError(
                f"{found} holds {name} {entry.shape}, which {source.folder} does not",
                "merge into the very base it was trained from",
            )
        replaced[name] = Replacement(name, entry)
    return replaced
