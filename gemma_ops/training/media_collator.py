"""Passes of rows with images or sounds: the tensors of text, `mm_token_type_ids`, and those of the media.

Files are opened where the loader works, so that decoding runs next to the device. Soft tokens never carry loss: their
labels were never set (`data.encoded`). Token types go along with every pass, whether it shows something or not: without
them the large sizes would silently read an image from left to right (`modeling_gemma4.py`,
`use_bidirectional_attention`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.family.media import TYPES
from gemma_ops.modeling.media_inputs import Perceiver, Seen, join_media
from gemma_ops.training.forward_inputs import Collate

Row = dict[str, Any]


class MediaCollate(Collate):
    """Collator for rows of `data.arrow.table` whose `media` is not empty; `folder` is the rows' folder."""

    def __init__(self, perceiver: Perceiver, folder: Path, **manner: Any) -> None:
        super().__init__(**manner)
        self.perceiver = perceiver
        self.folder = folder

    def _packed(self, rows: list[Row]) -> dict[str, Any]:
        found = super()._packed(rows)
        types = np.zeros(found["input_ids"].shape, dtype=np.int64)
        start = 0
        for row in rows:
            self._mark(types[0, start : start + len(row["input_ids"])], row)
            start += len(row["input_ids"])
        return found | self._shown(rows, types)

    def _padded(self, rows: list[Row]) -> dict[str, Any]:
        found = super()._padded(rows)
        types = np.zeros(found["input_ids"].shape, dtype=np.int64)
        for index, row in enumerate(rows):
            self._mark(types[index], row)
        return found | self._shown(rows, types)

    @staticmethod
    def _mark(types: Any, row: Row) -> None:
        """Write the types of a row's soft tokens; begin and end tokens are words like others."""
        for part in shown_batch(row):
            types[part["start"] + 1 : part["end"] - 1] = TYPES[part["type"]]

    def _shown(self, rows: list[Row], types: Any) -> dict[str, Any]:
        import torch

        seen: list[Seen] = [self.perceiver.see(parts, self.folder, []) for row in rows if (parts := shown_batch(row))]
        return {"mm_token_type_ids": torch.from_numpy(types), **join_media(seen)}


def shown_batch(row: Row) -> list[dict[str, Any]]:
    """Return the images and sounds of a tokenized row, each with the `start` and `end` of its tokens."""
    found: list[dict[str, Any]] = json.loads(str(row.get("media") or "[]"))
    return found
