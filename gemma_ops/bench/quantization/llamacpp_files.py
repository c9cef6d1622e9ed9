"""Files as llama.cpp's own quantizer would make them: its encoder, its importance matrix, its choice of types.

The encoder is called in the library that xllamacpp brings (`ggml_quantize_chunk`); the quantizer around it is not in
that library, so its choice of types is written down here (llama.cpp, llama-quant.cpp, for a model whose head is its
embedding).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import GgufPlan, PlannedTensor, fitting_type, plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.export.tensor_bytes import TensorBytes
from gemma_ops.family.formats import BITS, GgufName, TensorType
from gemma_ops.modeling.llamacpp_library import llamacpp_encode

TABLES: TensorType = "Q6_K"
"""Type of embeddings that are heads too, and of per-layer tables, in llama.cpp's files of 4 bits."""
_PLE_LINEARS = ("inp_gate.weight", "proj.weight")


class LlamaCppBytes(TensorBytes):
    """Bytes of tensors by llama.cpp's encoder."""

    def encode(self, tensor: PlannedTensor, first: int, piece: torch.Tensor) -> bytes:
        """Return the bytes of whole rows; see `TensorBytes.encode`."""
        import gguf

        if BITS[tensor.type] >= 16:
            return super().encode(tensor, first, piece)
        code = gguf.GGMLQuantizationType[tensor.type]
        weights, size = gguf.GGML_QUANT_SIZES[code]
        columns = self.importance.get(tensor.name)
        rows = piece.float().numpy()
        width = rows.shape[1] // weights * size
        if columns is None or columns.ndim == 1:
            shares = None if columns is None else columns.numpy()
            return bytes(llamacpp_encode(rows, int(code), width, shares).tobytes())
        of_one, found = tensor.shape[-2], []
        for start in range(0, len(rows), of_one):  # one expert after another, each with an importance of its own
            shares = columns[(first + start) // of_one].numpy()
            found.append(llamacpp_encode(rows[start : start + of_one], int(code), width, shares).tobytes())
        return b"".join(found)


def llamacpp_plan(source: MergedCheckpoint, form: GgufName) -> GgufPlan:
    """Return the plan of a file with the types that llama.cpp's quantizer chooses: per-layer projections like other
    matrices, tables in `TABLES`."""
    plan = plan_tensors(source, form, TABLES)
    bulk = next(each.type for each in plan.tensors if each.kind == "attn_q.weight")
    return dataclasses.replace(
        plan,
        tensors=[
            dataclasses.replace(each, type=fitting_type(bulk, each.shape[-1])) if each.kind in _PLE_LINEARS else each
            for each in plan.tensors
        ],
    )


def write_llamacpp(
    source: MergedCheckpoint, form: GgufName, out: Path, importance: dict[str, torch.Tensor], threads: int
) -> None:
    """Write a file as llama.cpp would."""
    plan = llamacpp_plan(source, form)
    write_gguf(source, plan, out, threads=threads, encoding=LlamaCppBytes(importance=importance))
