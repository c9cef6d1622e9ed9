"""A w4a16 checkpoint written from our own codes, in the layout that Google's QAT checkpoints have for vLLM.

The lattice of 4-bit symmetric codes in groups of 32 is that of a GGML type, so what is rounded, searched or trained for
a GGUF file of that type is stored here too: the codes as they are, their float16 scale as bf16, which is what engines
multiply with. Embeddings, per-layer tables and projections, routers and towers stay as they are in the checkpoint.

Experts are written one by one, under the names that llm-compressor gives them and vLLM reads. The output appears whole:
the weights are renamed into place, and the configuration, without which nobody takes the folder for a checkpoint, comes
last.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.folder import both_spellings, carry_over
from gemma_ops.export.gguf_tensors import GgufPlan, PlannedTensor
from gemma_ops.export.redundant_kv import check_redundant
from gemma_ops.export.safetensors_stream import StreamedTensor, stream_safetensors
from gemma_ops.export.tensor_bytes import TensorBytes, tensor_pieces
from gemma_ops.family.formats import BLOCKS, PACKED_FILE, Packed
from gemma_ops.ggml.encoding import encode_rows
from gemma_ops.ggml.lattices import Blocks, join_blocks
from gemma_ops.ggml.packing import unpack_blocks
from gemma_ops.modeling.packed_weights import CODES, LAYOUT, PACKED, SCALE, SHAPE, pack_codes
from gemma_ops.modeling.shards import DTYPES, TensorEntry
from gemma_ops.runs.durable import write_json

_VERSION = "0.19.0"
"""Version of compressed-tensors whose configuration is written."""
_STACK = re.compile(r"(.+)\.experts\.(gate_up_proj|down_proj)")


def write_packed(
    source: MergedCheckpoint, plan: GgufPlan, form: Packed, out: Path, encoding: TensorBytes, *, redundant_kv: bool
) -> None:
    """Write the folder `out`; `plan` says which tensors take the format's lattice, and `encoding` what was fitted.
    `redundant_kv` keeps the keys and values of layers that take them from an earlier one. Raises ModelError for a
    checkpoint without a tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    planned = {tensor.source.name: tensor for tensor in plan.tensors if tensor.source}
    if redundant_kv:
        check_redundant(source)
    dropped = {"tied head"} if redundant_kv else {"tied head", "unused keys and values"}
    left_out = {name for reason in dropped for name in plan.left_out.get(reason, ())}
    parts: dict[str, tuple[TensorEntry, int]] = {}
    tensors: list[StreamedTensor] = []
    for name, entry in source.entries.items():
        if name in left_out:
            continue
        if name in planned and planned[name].type == form.lattice:
            for number, (stem, outputs, inputs) in enumerate(_matrices(name, entry)):
                parts[stem] = (entry, number)
                tensors += _parts(stem, outputs, inputs, BLOCKS[planned[name].type])
        else:
            tensors.append(StreamedTensor(name, entry.dtype, entry.shape))
    packing = _Packing(source, planned, parts, encoding)
    stream_safetensors(out / PACKED_FILE, tensors, packing.data)
    carry_over(source, out)
    _write_config(source, tensors, out, BLOCKS[form.lattice] if form.lattice else 0)


class _Packing:
    """The bytes of each part; the codes of one matrix at a time are kept, since they make two parts."""

    def __init__(
        self,
        source: MergedCheckpoint,
        planned: dict[str, PlannedTensor],
        parts: dict[str, tuple[TensorEntry, int]],
        encoding: TensorBytes,
    ) -> None:
        self._source, self._planned, self._parts, self._encoding = source, planned, parts, encoding
        self._name = ""
        self._blocks: Blocks | None = None

    def data(self, tensor: StreamedTensor) -> bytes:
        """Return the bytes of one tensor of the file."""
        stem, _, part = tensor.name.rpartition(".")
        if part not in (PACKED, SCALE, SHAPE) or stem not in self._parts:
            return self._kept(tensor.name)
        entry, number = self._parts[stem]
        if part == SHAPE:
            rows, inputs = _matrices(entry.name, entry)[number][1:]
            return bytes(torch.tensor([rows, inputs]).numpy().tobytes())
        blocks = self._rows(entry, number, tensor.shape[0])
        made = pack_codes(blocks.codes) if part == PACKED else blocks.scale.to(torch.bfloat16).view(torch.int16)
        return bytes(made.contiguous().numpy().tobytes())

    def _rows(self, entry: TensorEntry, number: int, rows: int) -> Blocks:
        """Return the rows of one matrix of an entry: matrices of a stack follow each other."""
        if self._name != entry.name or self._blocks is None:
            self._name, self._blocks = (
                entry.name,
                lattice_blocks(self._source, self._planned[entry.name], self._encoding),
            )
        found = self._blocks
        return Blocks(
            found.lattice, *(part[number * rows : (number + 1) * rows] for part in (found.codes, found.scale))
        )

    def _kept(self, name: str) -> bytes:
        entry = self._source.entries[name]
        known = self._encoding.known(self._planned[name]) if name in self._planned else None
        if known is None:
            with entry.file.open("rb") as stream:
                stream.seek(entry.start)
                return stream.read(entry.stop - entry.start)
        fitted = torch.frombuffer(bytearray(known), dtype=torch.float32).to(DTYPES[entry.dtype])
        return bytes(fitted.view(torch.uint8).numpy().tobytes())


def lattice_blocks(source: MergedCheckpoint, tensor: PlannedTensor, encoding: TensorBytes) -> Blocks:
    """Return a tensor's rows on its lattice: as they were fitted, else searched, by importance where that is known."""
    entry = tensor.source
    assert entry is not None
    if (known := encoding.known(tensor)) is not None:
        rows = entry.parameters // entry.shape[-1]
        return unpack_blocks(torch.frombuffer(bytearray(known), dtype=torch.uint8).view(rows, -1), tensor.type)
    columns = encoding.importance.get(tensor.name)
    pieces = []
    for first, piece in tensor_pieces(source, tensor):
        weights = columns
        if columns is not None and columns.ndim == 2:
            weights = columns[torch.arange(first, first + len(piece)) // tensor.shape[-2]]
        pieces.append(encode_rows(piece.float(), tensor.type, weights))
    return join_blocks(pieces, 0)


def _matrices(name: str, entry: TensorEntry) -> list[tuple[str, int, int]]:
    """Return (name without its last part, outputs, inputs) of each matrix that is written of a tensor, in the order of
    its rows."""
    stack = _STACK.fullmatch(name)
    if stack is None:
        return [(name.removesuffix(".weight"), entry.shape[0], entry.shape[1])]
    experts, outputs, inputs = entry.shape
    names = ("gate_proj", "up_proj") if stack[2] == "gate_up_proj" else ("down_proj",)
    return [
        (f"{stack[1]}.experts.{expert}.{part}", outputs // len(names), inputs)
        for expert in range(experts)
        for part in names
    ]


def _parts(stem: str, outputs: int, inputs: int, group: int) -> list[StreamedTensor]:
    return [
        StreamedTensor(f"{stem}.{PACKED}", "I32", (outputs, inputs // CODES)),
        StreamedTensor(f"{stem}.{SCALE}", "BF16", (outputs, inputs // group)),
        StreamedTensor(f"{stem}.{SHAPE}", "I64", (2,)),
    ]


def _write_config(source: MergedCheckpoint, tensors: list[StreamedTensor], out: Path, group: int) -> None:
    kept = [each.name.removesuffix(".weight") for each in tensors if each.name.endswith(".weight")]
    linear = sorted(name for name in kept if not re.search(r"norm|embed_tokens|conv|position_embedding", name))
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group, "dynamic": False,
        "actorder": None, "block_structure": None, "observer": "memoryless_minmax", "observer_kwargs": {},
    }  # fmt: skip
    quantization = {
        "quant_method": "compressed-tensors", "version": _VERSION, "format": LAYOUT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {
            "targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None,
            "format": LAYOUT,
        }},
        "ignore": ["lm_head", *linear], "kv_cache_scheme": None, "global_compression_ratio": None,
        "sparsity_config": {}, "transform_config": {},
    }  # fmt: skip
    config: dict[str, Any] = both_spellings(source.config)
    write_json(out / "config.json", {**config, "quantization_config": quantization}, indent=2)
