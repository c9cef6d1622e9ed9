"""Checkpoints of compressed-tensors by the tool llm-compressor: its jobs, and the folder that is made of their output.

What needs no rows is quantized file by file without a model, so that memory holds one file of the checkpoint whatever
its size. A format whose activations have measured scales, and GPTQ, need the model in memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import MachineError
from gemma_ops.export.checkpoint import INDEX, MergedCheckpoint
from gemma_ops.export.fidelity import Conversation, FileDivergence
from gemma_ops.export.folder import both_spellings, carry_over
from gemma_ops.export.gguf_fit import is_calibrated
from gemma_ops.export.redundant_kv import belongs_to, check_redundant, redundant_names
from gemma_ops.export.safetensors_stream import StreamedTensor, stream_safetensors
from gemma_ops.family import Shape
from gemma_ops.family.formats import BLOCKS, PACKED_FILE, Packed
from gemma_ops.modeling.shards import TensorEntry, read_headers
from gemma_ops.runs.durable import write_json
from gemma_ops.runs.processes import free_memory
from gemma_ops.toolenvs.tool_job import run_tool_job
from gemma_ops.toolenvs.tool_list import TOOLS

TOOL = TOOLS["llm-compressor"]
_HEADROOM = 1.6
"""Memory of calibration over the bytes of the checkpoint: the model, what a layer keeps of the rows, GPTQ's moments."""
_CALIBRATION = 256
"""Rows that scales of activations, and GPTQ, are measured on."""


def compress_in_tool(
    source: MergedCheckpoint,
    form: Packed,
    method: str,
    out: Path,
    settings: QuantizeConfig,
    machine: MachineConfig,
    rows: Sequence[Sequence[int]],
    scratch: Path,
) -> None:
    """Write the folder `out` by llm-compressor. Raises MachineError where the tool or the memory is missing, ModelError
    where redundant keys and values are asked for and the checkpoint has none."""
    shape = Shape.from_config(source.config)
    calibrated = is_calibrated(settings, form.name)
    size = sum(shard.stat().st_size for shard in source.shards)
    if calibrated and size * _HEADROOM > free_memory():
        raise MachineError(
            f"{form.name} by {'GPTQ' if method == 'gptq' else 'measured scales'} needs the model in memory, about "
            f"{size * _HEADROOM / 1e9:.0f} GB, and {free_memory() / 1e9:.0f} GB are free",
            "use a larger machine, or a format that needs no rows: fp8, w8a8, or w4a16 with quantize.w4a16=own",
        )
    request = {
        "model": str(source.folder.absolute()), "out": str(out.absolute()), "scheme": form.scheme, "method": method,
        "group": BLOCKS[form.lattice] if form.lattice else 0,
        "rows": [list(row) for row in rows[:_CALIBRATION]] if calibrated else [],
        "shares_kv": any(layer.shares_kv for layer in shape.layers), "mixture": bool(shape.experts),
        "model_free": not calibrated,
    }  # fmt: skip
    run_tool_job(TOOL, machine, "compress", request, scratch / "jobs" / f"{form.name}-make", what=form.name)
    finish_folder(source, out, redundant_kv=settings.redundant_kv)


def finish_folder(source: MergedCheckpoint, out: Path, *, redundant_kv: bool) -> None:
    """Make what the tool wrote a complete folder: one file of weights, the configuration in both spellings, tokenizer,
    template and stop ids, and the keys and values of layers that share them as they are asked for."""
    quantization = json.loads((out / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    files = sorted(out.glob("*.safetensors"))
    entries = read_headers(files)
    shared = redundant_names(source)
    if redundant_kv:
        check_redundant(source)
    kept = {name: entry for name, entry in entries.items() if not belongs_to(name, shared)}
    if redundant_kv:
        kept |= {name: source.entries[name] for name in shared}
        quantization["ignore"] += sorted({name.removesuffix(".weight") for name in shared if "_proj" in name})
    if files != [out / PACKED_FILE] or kept.keys() != entries.keys():
        joined = out / "joined.safetensors"
        tensors = [StreamedTensor(name, entry.dtype, entry.shape) for name, entry in kept.items()]
        stream_safetensors(joined, tensors, lambda tensor: _read(kept[tensor.name]))
        for file in files:
            file.unlink()
        joined.rename(out / PACKED_FILE)
    for name in (INDEX, "recipe.yaml"):
        (out / name).unlink(missing_ok=True)
    carry_over(source, out)
    config = {**both_spellings(source.config), "quantization_config": quantization}
    write_json(out / "config.json", config, indent=2)


def _read(entry: TensorEntry) -> bytes:
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        return stream.read(entry.stop - entry.start)


def diverge_in_tool(
    source: MergedCheckpoint,
    form: Packed,
    folder: Path,
    chosen: Sequence[Conversation],
    machine: MachineConfig,
    scratch: Path,
) -> FileDivergence:
    """Read a checkpoint back in the tool and compare it with bf16 on whole conversations, as `FileDivergence` says."""
    work = scratch / "jobs" / f"{form.name}-compare"
    request = {
        "model": str(folder.absolute()), "reference": str(source.folder.absolute()), "mixture": False,
        "dtype": "bfloat16", "conversations": [each.ids for each in chosen],
    }  # fmt: skip
    run_tool_job(TOOL, machine, "compare_checkpoint", request, work, what=form.name)
    with np.load(work / "measured.npz") as found:
        kls = [found[f"kl{number}"] for number in range(len(chosen))]
        hits = [found[f"hit{number}"] for number in range(len(chosen))]
    return FileDivergence(chosen, kls, hits)
