"""A Hugging Face checkpoint folder read as a stream: which tensors lie where, and their bytes, one slice at a time.

Merging and converting must work on models larger than memory, and must say plainly when a folder is incomplete (a
download cut short is the usual cause). Knowing the byte ranges (`modeling.shards`) lets `merge` copy what does not
change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gemma_ops.errors import ModelError
from gemma_ops.modeling.checkpoint_source import check_shards, read_model_config
from gemma_ops.modeling.shards import DTYPES, FETCH_AGAIN, SIZES, TensorEntry, read_headers, read_range, read_tensors

INDEX = "model.safetensors.index.json"


class MergedCheckpoint:
    """The tensors and settings of a folder, checked to be complete when opened.

    Raises ModelError when a shard is missing, cut short or unreadable, when the index and the shards disagree, or when
    the weights are quantized (then there is nothing to merge into and nothing to convert from).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_model_config(folder)
        self.text: dict[str, Any] = self.config.get("text_config") or self.config
        self.shards = check_shards(folder)
        self.entries: dict[str, TensorEntry] = read_headers(self.shards)
        self._check_index()
        self._check_plain()

    def read(self, name: str) -> torch.Tensor:
        """Return the whole tensor, in its stored dtype."""
        return read_tensors(self.entries[name])

    def slices(self, name: str, parameters: int) -> Iterator[torch.Tensor]:
        """Yield the tensor as 2-D pieces (rows, last dimension) of at most about `parameters` numbers, in stored
        order."""
        entry = self.entries[name]
        width = entry.shape[-1] if entry.shape else 1
        rows = entry.parameters // width
        size = SIZES[entry.dtype] * width
        step = max(1, parameters // width)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            yield read_range(entry, entry.start + first * size, entry.start + last * size).reshape(-1, width)

    def _check_index(self) -> None:
        path = self.folder / INDEX
        if not path.exists():
            return
        listed = set(read_checkpoint_json(path, "the list of shards").get("weight_map", {}))
        absent = sorted(listed - set(self.entries))
        if absent:
            raise ModelError(f"{len(absent)} tensors of {INDEX} stand in no shard, first {absent[0]!r}", FETCH_AGAIN)

    def _check_plain(self) -> None:
        odd = [entry for entry in self.entries.values() if entry.dtype not in DTYPES]
        if "quantization_config" in self.config or odd:
            reason = f"holds {odd[0].dtype} tensors ({odd[0].name})" if odd else "has a quantization_config"
            raise ModelError(
                f"{self.folder} is already quantized: it {reason}",
                "use the bf16 checkpoint it was made from; merging into 4 bits or requantizing loses quality silently",
            )


def read_checkpoint_json(path: Path, what: str) -> dict[str, Any]:
    """Return a JSON object from a file of a model folder; raises ModelError when it is absent or broken."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing ({what})", "point at a complete Hugging Face model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON ({what}): {error}", FETCH_AGAIN) from error
    if not isinstance(body, dict):
        raise ModelError(f"{path} holds no JSON object ({what})", FETCH_AGAIN)
    return body
