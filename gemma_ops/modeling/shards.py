"""safetensors files read by byte range: which tensors lie where, and any rows of them, without mapping the whole.

The format is eight bytes of header length, a JSON header with dtype, shape and byte range of each tensor, then the data
(https://huggingface.co/docs/safetensors#format). Ranges are read with plain reads into a buffer of their own, so memory
holds what was asked for and nothing else; a table that only rows are taken from can be mapped instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gemma_ops.errors import ModelError

FETCH_AGAIN = "fetch or copy the model again: the folder must hold every shard, whole"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorEntry:
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


def read_header(file: Path) -> list[TensorEntry]:
    """Return the tensors of a safetensors file in the order of their bytes. Raises ModelError when the file is cut
    short."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(length, size)))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ModelError(f"{file} is cut short or no safetensors file ({size} bytes)", FETCH_AGAIN) from error
    data = 8 + length
    entries = [
        TensorEntry(
            name, file, facts["dtype"], tuple(facts["shape"]), *(data + offset for offset in facts["data_offsets"])
        )
        for name, facts in header.items()
        if name != "__metadata__"
    ]
    entries.sort(key=lambda entry: entry.start)
    if entries and size < entries[-1].stop:
        raise ModelError(f"{file} is cut short: {size} of {entries[-1].stop} bytes", FETCH_AGAIN)
    return entries


def read_headers(files: Sequence[Path]) -> dict[str, TensorEntry]:
    """Return every tensor of a checkpoint by name, in the order of the files and of the bytes in them."""
    return {entry.name: entry for file in files for entry in read_header(file)}


def read_range(entry: TensorEntry, start: int, stop: int) -> torch.Tensor:
    """Return the numbers stored in bytes [start, stop) of a tensor's file, as a flat tensor."""
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


def read_tensors(entry: TensorEntry) -> torch.Tensor:
    """Return the whole tensor in its stored dtype, in memory of its own."""
    return read_range(entry, entry.start, entry.stop).reshape(entry.shape)


def shard_pieces(entry: TensorEntry, parameters: int, multiple: int = 1) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the flat tensor in pieces of at most about `parameters` numbers, each but the last a multiple of
    `multiple`: (offset of the first number, the numbers)."""
    step = max(multiple, parameters // multiple * multiple)
    size = SIZES[entry.dtype]
    for first in range(0, entry.parameters, step):
        last = min(first + step, entry.parameters)
        yield first, read_range(entry, entry.start + first * size, entry.start + last * size)


def mapped(entry: TensorEntry) -> torch.Tensor | None:
    """Return the tensor as a private view of the file, which costs no memory but the page cache's; None where its bytes
    do not lie on a multiple of its width."""
    size = SIZES[entry.dtype]
    if entry.start % size:
        return None
    flat = torch.from_file(str(entry.file), shared=False, size=entry.stop // size, dtype=DTYPES[entry.dtype])
    return flat[entry.start // size :].view(entry.shape)
