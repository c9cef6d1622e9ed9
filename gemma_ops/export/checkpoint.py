"""A Hugging Face checkpoint folder read as a stream: which tensors lie where, and their bytes, one slice at a time.

Merging and converting must work on models larger than memory, and must say plainly when a folder is incomplete (a
download cut short is the usual cause). safetensors is simple enough to read directly: eight bytes of header length, a
JSON header with dtype, shape and byte range of each tensor, then the data
(https://huggingface.co/docs/safetensors#format). Knowing the byte ranges lets `merge` copy what does not change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemma_ops.errors import ModelError
from gemma_ops.modeling.source import check_shards, read_config

INDEX = "model.safetensors.index.json"
FETCH_AGAIN = "fetch or copy the model again: the folder must hold every shard, whole"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Entry:
    """One tensor in a file: `start` and `stop` are byte offsets from the beginning of the file."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


class Checkpoint:
    """The tensors and settings of a folder, checked to be complete when opened.

    Raises ModelError when a shard is missing, cut short or unreadable, when the index and the shards disagree, or when
    the weights are quantized (then there is nothing to merge into and nothing to convert from).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self.text: dict[str, Any] = self.config.get("text_config") or self.config
        self.shards = check_shards(folder)
        self.entries: dict[str, Entry] = {}
        for shard in self.shards:
            self.entries |= {entry.name: entry for entry in read_header(shard)}
        self._check_index()
        self._check_plain()

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, in its stored dtype."""
        entry = self.entries[name]
        return read_range(entry, entry.start, entry.stop).reshape(entry.shape)

    def slices(self, name: str, parameters: int) -> Iterator[torch.Tensor]:
        """The tensor as 2-D pieces (rows, last dimension) of at most about `parameters` numbers, in stored order."""
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
        listed = set(read_json(path, "the list of shards").get("weight_map", {}))
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


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file of a model folder; ModelError when it is absent or broken."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing ({what})", "point at a complete Hugging Face model folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON ({what}): {error}", FETCH_AGAIN) from error
    if not isinstance(body, dict):
        raise ModelError(f"{path} holds no JSON object ({what})", FETCH_AGAIN)
    return body


def read_header(file: Path) -> list[Entry]:
    """The tensors of a safetensors file in the order of their bytes. Raises ModelError when the file is cut short."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, size)))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{file} is cut short or no safetensors file ({size} bytes)", FETCH_AGAIN) from error
    data = 8 + length
    entries = [
        Entry(name, file, facts["dtype"], tuple(facts["shape"]), *(data + offset for offset in facts["data_offsets"]))
        for name, facts in header.items()
        if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: entry.start)
    if entries and size < entries[-1].stop:
        raise ModelError(f"{file} is cut short: {size} of {entries[-1].stop} bytes", FETCH_AGAIN)
    return entries


def read_range(entry: Entry, start: int, stop: int) -> torch.Tensor:
    """The numbers stored in bytes [start, stop) of a tensor's file, as a flat tensor."""
    buffer = bytearray(stop - start)
    with entry.file.open("rb", buffering=0) as stream:
        stream.seek(start)
        view, done = memoryview(buffer), 0
        while done < len(buffer):
            count = stream.readinto(view[done:])
            if not count:
                raise ModelError(f"{entry.file} ended while {entry.name} was read", FETCH_AGAIN)
            done += count
    if not buffer:
        return torch.empty(0, dtype=DTYPES[entry.dtype])
    return torch.frombuffer(buffer, dtype=DTYPES[entry.dtype])
