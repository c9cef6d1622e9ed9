"""The job that lays a tuned checkpoint into float graphs of its base, without converting: the graphs were made once, on
a machine with memory for it, and a copy of them gets the tensors that the training changed.

Every changed tensor must be found in the graphs bit for bit as the base has it, or nothing is written.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.errors import GateError
from gemma_ops.toolenvs.jobs.edge_audit import checkpoint_weights, weight_files
from gemma_ops.toolenvs.jobs.edge_constants import FLOAT32, graph_constants, mapped_graph
from gemma_ops.toolenvs.jobs.edge_export import EXECUTOR, GRAPHS

_FIX = "export the tuned model itself (quantize.edge_graphs: null), on a machine with the memory for it"

_OTHER = "give the graphs of the very base of this run"


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy the graphs of `graphs`, made of the checkpoint `base`, to `out`, with the tensors of `model` that differ.
    Returns how many were laid in, and seconds. Raises GateError for a changed tensor that no graph holds, or that can't
    be told from another one."""
    began = time.monotonic()
    source, out = Path(request["graphs"]), Path(request["out"])
    out.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{graph}.tflite" for graph in GRAPHS), EXECUTOR):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    opened = {name: mapped_graph(out / f"{name}.tflite", write=True) for name in GRAPHS}
    places: dict[int, list[tuple[str, int]]] = {}
    for name, data in opened.items():
        for each in graph_constants(name, data):
            if each.type == FLOAT32:
                places.setdefault(each.bytes, []).append((name, each.start))
    originals = {name: mapped_graph(source / f"{name}.tflite") for name in GRAPHS}
    laid: dict[tuple[str, int], str] = {}
    for tensor, before, after in changed_tensors(Path(request["base"]), Path(request["model"])):
        old, new = before.tobytes(), after.tobytes()
        found = [
            place for place in places.get(len(old), ())
            if bytes(originals[place[0]][place[1] : place[1] + len(old)]) == old
        ]  # fmt: skip
        if not found:
            raise GateError(f"the training changed {tensor}, and the graphs of the base don't hold it", _FIX)
        for graph, start in found:
            if (graph, start) in laid:
                raise GateError(
                    f"{tensor} and {laid[graph, start]} are the same in the base and not in the model", _FIX
                )
            opened[graph][start : start + len(new)] = new
            laid[graph, start] = tensor
    for data in opened.values():
        data.flush()
    return {"laid": len(laid), "seconds": time.monotonic() - began}


def changed_tensors(base: Path, model: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield the tensors of two checkpoints that differ, as contiguous float32, with their names, one in memory at a
    time. Raises GateError for checkpoints of different tensors."""
    from safetensors import safe_open

    tuned = weight_files(model)
    if odd := sorted(tuned.keys() ^ weight_files(base).keys()):
        raise GateError(f"{odd[0]} is in one of {model} and {base}, and not in both", _OTHER)
    for name, value in checkpoint_weights(base):
        with safe_open(tuned[name], "pt") as tensors:
            other = tensors.get_tensor(name).float().numpy()
        if other.shape != value.shape:
            raise GateError(f"{name} has another shape in {model} than in {base}", _OTHER)
        if not np.array_equal(value, other):
            yield name, np.ascontiguousarray(value), np.ascontiguousarray(other)
