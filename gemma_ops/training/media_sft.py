"""Supervised fine-tuning on rows with images or sounds: what it does differently. `sft` asks here, and is the same
else.

The model keeps its towers, which stay frozen unless `train.lora.towers` adapts them. Rows are packed like others: E2B
and E4B read an image from left to right as they read words; the other sizes let an image's tokens see each other in
sliding layers, and attention over documents numbers images within each document. With `train.kernels.attention: sdpa`
those sizes are padded, because transformers 5.24 mixes the images of packed rows up (`family.traps`, packed-images).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gemma_ops.config import TrainConfig, methods
from gemma_ops.data import media_files
from gemma_ops.errors import ConfigError
from gemma_ops.family.media import KINDS
from gemma_ops.modeling.checkpoint_source import read_model_config
from gemma_ops.modeling.media_inputs import Perceiver


@dataclass(frozen=True)
class Media:
    """The images and sounds of a data folder, for the model of a checkpoint folder."""

    perceiver: Perceiver
    folder: Path
    kinds: tuple[str, ...]
    """Kinds of media: `image`, `audio`, or both."""
    packs: bool
    """Whether packed passes are exact for this model."""

    @property
    def collate(self) -> Any:
        """Return the collator that builds passes, in place of `forward_inputs.Collate`."""
        from gemma_ops.training.media_collator import MediaCollate

        return partial(MediaCollate, self.perceiver, self.folder)


def shown_in_rows(data: Path) -> tuple[str, ...]:
    """Return the kinds of media in the rows of a prepared folder: of `image` and `audio`, those with files in its
    store."""
    store = data / media_files.FOLDER
    endings = {file.suffix.lstrip(".") for file in store.iterdir()} if store.is_dir() else set()
    return tuple(kind for kind, known in KINDS.items() if endings & known)


def find_media(folder: Path, data: Path, settings: TrainConfig, *, sharded: bool = False) -> Media | None:
    """Return the media of a data folder, None where there are none.

    Raises ConfigError for a method that has no form with images and sounds, and where the model is to be `sharded` over
    processes.
    """
    kinds = shown_in_rows(data)
    if not kinds:
        return None
    methods.check_shown_rows(settings.method, kinds, "the rows")
    if sharded:
        raise ConfigError(
            "launch.strategy=fsdp gathers a tower when a pass runs it: processes whose passes show nothing would wait "
            "for ever",
            "use launch.strategy=ddp for rows with images or audio",
        )
    return Media(Perceiver(folder), data, kinds, packs(folder, settings))


def packs(folder: Path, settings: TrainConfig) -> bool:
    """True if rows with images may be packed: not where an image's tokens see those after them, and masks are
    transformers' own."""
    if settings.kernels.attention == "documents":
        return True
    config = read_model_config(folder)
    text = config.get("text_config") or config
    return text.get("use_bidirectional_attention") != "vision"
