"""The constants of a graph for LiteRT-LM: where each lies in the file, and what it holds.

A graph's file is a flatbuffer with a table of buffers; constants of several signatures share one. It is mapped and not
read, so that a graph of many gigabytes can be looked through, and parts of it replaced.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FLOAT32, INT8, INT4 = 0, 9, 17
"""Types of tensors (tflite's schema, `TensorType`)."""
_BLOCKWISE = 2
"""`QuantizationDetails` of a tensor whose blocks have scales of their own."""
_DATA = 4
"""Place of a buffer's bytes in its table (tflite's schema, `Buffer`)."""


@dataclass(frozen=True)
class GraphConstant:
    """A constant of a graph."""

    graph: str
    name: str
    type: int
    shape: tuple[int, ...]
    start: int
    bytes: int
    """Place in the file."""
    scale: Any = None
    """Steps by row, or by row and block; None where it isn't quantized."""

    def held(self, data: Any) -> np.ndarray:
        """Return its values as float32, from the mapped file: codes times steps where it is quantized."""
        raw = np.frombuffer(data, np.uint8, self.bytes, self.start)
        if self.type == FLOAT32:
            return raw.view(np.float32).reshape(self.shape)
        codes = raw.view(np.int8) if self.type == INT8 else nibble_codes(raw)
        rows = codes[: int(np.prod(self.shape))].reshape(len(self.scale), -1).astype(np.float32)
        values: np.ndarray = rows * self.steps(rows.shape[1])
        return values.reshape(self.shape)

    def steps(self, width: int) -> np.ndarray:
        """Return the step of each code of a row, (rows, width)."""
        scale = np.asarray(self.scale, np.float32).reshape(len(self.scale), -1)
        return np.repeat(scale, width // scale.shape[1], 1)


def nibble_codes(raw: np.ndarray) -> np.ndarray:
    """Return codes of 4 bits, two a byte, the first in the low bits, as int8 from -8 to 7."""
    both = np.stack([raw & 15, raw >> 4], -1).reshape(-1).astype(np.int8)
    codes: np.ndarray = np.where(both > 7, both - 16, both)
    return codes


def mapped_graph(file: Path, *, write: bool = False) -> Any:
    """Return a graph's file mapped into memory."""
    with file.open("r+b" if write else "rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_WRITE if write else mmap.ACCESS_READ)


def graph_constants(graph: str, data: Any) -> Iterator[GraphConstant]:
    """Yield the constants of a mapped graph, each buffer once."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    seen: set[int] = set()
    for index in range(model.SubgraphsLength()):
        part = model.Subgraphs(index)
        for place in range(part.TensorsLength()):
            tensor = part.Tensors(place)
            if tensor.Buffer() in seen:
                continue
            start, size = _bytes(model.Buffers(tensor.Buffer()))
            if size:
                seen.add(tensor.Buffer())
                shape = tuple(tensor.Shape(side) for side in range(tensor.ShapeLength()))
                scale = _scale(model, part, tensor, data)
                yield GraphConstant(graph, tensor.Name().decode(), tensor.Type(), shape, start, size, scale)


def _bytes(buffer: Any) -> tuple[int, int]:
    """Return where a buffer's bytes begin in the file, and how many there are: in the flatbuffer, or behind it."""
    if buffer.Offset() > 1:
        return buffer.Offset(), buffer.Size()
    place = buffer._tab.Offset(_DATA)
    return (buffer._tab.Vector(place), buffer.DataLength()) if place else (0, 0)


def _scale(model: Any, part: Any, tensor: Any, data: Any) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    found = tensor.Quantization()
    if found is None:
        return None
    if found.DetailsType() == _BLOCKWISE:
        details = schema.BlockwiseQuantization()
        details.Init(found.Details().Bytes, found.Details().Pos)
        scales = part.Tensors(details.Scales())
        start, size = _bytes(model.Buffers(scales.Buffer()))
        count = int(np.prod([scales.Shape(side) for side in range(scales.ShapeLength())]))
        kind = np.float16 if size == 2 * count else np.float32
        return np.frombuffer(data, kind, count, start).reshape(tensor.Shape(0), -1)
    return found.ScaleAsNumpy() if found.ScaleLength() else None
