"""A safetensors file written as a stream: one tensor in memory at a time, whole under its name or not there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor that will be written."""

    name: str
    dtype: str
    """Type as the format spells it, such as `BF16`."""
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Return its length in the file."""
        return _SIZES[self.dtype] * math.prod(self.shape)


def stream_safetensors(out: Path, tensors: Sequence[StreamedTensor], data: Callable[[StreamedTensor], bytes]) -> None:
    """Write the file `out` with the bytes that `data` gives for each tensor, called in the order of `tensors`, wide
    types first, so that every tensor lies on a multiple of its width. Raises ValueError for bytes of another length."""
    ordered = sorted(tensors, key=lambda tensor: -_SIZES[tensor.dtype])
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        offsets = [end, end := end + tensor.bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = out.with_name(out.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in ordered:
                body = data(tensor)
                if len(body) != tensor.bytes:
                    raise ValueError(f"{tensor.name} has {len(body)} bytes instead of {tensor.bytes}")
                file.write(body)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
