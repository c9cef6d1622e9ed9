"""The bytes of a tensor in a GGUF file, made from the checkpoint piece by piece.

q8_0, q5_0 and q4_0 are rounded by llama.cpp's own encoder where no importance is known. The types with blocks of 256,
and every type once importance is known, are searched (`ggml.encoding`). What was fitted to the rows is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from gemma_ops.export import gguf_metadata
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import PlannedTensor
from gemma_ops.family.formats import TensorType
from gemma_ops.ggml.encoding import encode_rows
from gemma_ops.ggml.lattices import LATTICES
from gemma_ops.ggml.packing import pack_blocks
from gemma_ops.modeling.llamacpp_library import llamacpp_encode

_FLOATS = {"F32": torch.float32, "F16": torch.float16}
_PIECE = 1 << 19
"""Numbers a piece: 2 MB in fp32, which a core's cache holds; whole rows of every block size."""


class FittedTensors(Protocol):
    """Tensors whose bytes are known already."""

    def __contains__(self, name: object) -> bool:
        """True for the name of a tensor of the file that was fitted."""

    def read(self, name: str) -> bytes:
        """Return its bytes in the file."""


@dataclass(frozen=True)
class TensorBytes:
    """How the tensors of one file become bytes."""

    importance: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Mean square of what each column is multiplied with, by the tensor's name in the file: (inputs,), or (experts,
    inputs)."""
    fitted: FittedTensors | None = None
    searched: tuple[TensorType, ...] = ()
    """Types whose scales are searched even where no importance is known."""

    def known(self, tensor: PlannedTensor) -> bytes | None:
        """Return the bytes of a fitted tensor; None for one that `pieces` and `encode` are for."""
        return self.fitted.read(tensor.name) if self.fitted is not None and tensor.name in self.fitted else None

    def encode(self, tensor: PlannedTensor, first: int, piece: torch.Tensor) -> bytes:
        """Return the bytes of whole rows of a tensor, of which `first` is the number of the first."""
        if tensor.type == "BF16":
            return bytes(piece.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
        columns = self.importance.get(tensor.name)
        if tensor.type in _FLOATS:
            return bytes(piece.to(_FLOATS[tensor.type]).numpy().tobytes())
        if columns is None and not _is_searched(tensor.type) and tensor.type not in self.searched:
            return bytes(_plain_rows(piece, tensor.type).tobytes())
        if columns is not None and columns.ndim == 2:
            rows_of_one = tensor.shape[-2]
            columns = columns[torch.arange(first, first + len(piece)) // rows_of_one]
        return bytes(pack_blocks(encode_rows(piece.float(), tensor.type, columns)).numpy().tobytes())


def rounded_rows(rows: torch.Tensor, kind: TensorType) -> torch.Tensor:
    """Return what a plain file makes of rows in a quantized type, (rows, width) float32 both."""
    if _is_searched(kind):
        return encode_rows(rows, kind).decode()
    import gguf

    found = gguf.quants.dequantize(_plain_rows(rows, kind), gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(found).to(rows.device)


def _plain_rows(rows: torch.Tensor, kind: TensorType) -> np.ndarray:
    """Return the bytes of rows as llama.cpp rounds them, (rows, bytes)."""
    import gguf

    code = gguf.GGMLQuantizationType[kind]
    weights, size = gguf.GGML_QUANT_SIZES[code]
    return llamacpp_encode(rows.float().cpu().numpy(), int(code), rows.shape[1] // weights * size, None)


def _is_searched(kind: TensorType) -> bool:
    """True for the types whose blocks are searched even where nothing is known of the columns' importance."""
    return LATTICES[kind].step_range is not None


def tensor_pieces(source: MergedCheckpoint, tensor: PlannedTensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield a tensor in pieces of whole rows, each with the number of its first row."""
    if tensor.source is None:
        yield 0, torch.from_numpy(gguf_metadata.rope_factors(source))
        return
    first = 0
    for piece in source.slices(tensor.source.name, _PIECE):
        yield first, piece
        first += len(piece)
