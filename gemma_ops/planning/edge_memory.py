"""The memory that converting a Gemma 4 for LiteRT-LM takes, and which models are converted at all."""

from __future__ import annotations

from gemma_ops.errors import MachineError, ModelError
from gemma_ops.family.shape import Shape

_PEAK = 2.4
"""Peak memory over the float32 weights, extrapolated from a model of 172 M parameters (litert-torch 0.10.0); E2B would
take about 50 GB, E4B 75 to 80."""
_BASE = 0.9e9
"""Bytes of the process itself, with torch and the converter (measured with nano)."""
_GATES = 2.0
"""Memory of running float graphs over the float32 weights: as they are mapped, and as the interpreter lays them out
anew. Quantizing a graph takes less."""


def conversion_bytes(shape: Shape) -> float:
    """Return the memory that conversion to float graphs takes, in bytes."""
    return _BASE + _PEAK * 4 * shape.counts().text


def grafted_bytes(shape: Shape) -> float:
    """Return the memory that grafted graphs take, in bytes: that of comparing them with transformers, which is never
    left out."""
    return _BASE + _GATES * 4 * shape.counts().text


def check_convertible(shape: Shape) -> None:
    """Raise ModelError for a model that LiteRT-LM's graphs of Gemma 4 don't fit."""
    if not shape.per_layer_dim or shape.experts:
        raise ModelError(
            "files for LiteRT-LM are made of Gemma 4 with per-layer embeddings and without experts: E2B and E4B",
            "leave litertlm formats out of quantize.formats for this model",
        )


def check_conversion(shape: Shape, free: float, *, grafted: bool) -> None:
    """Raise MachineError where conversion, or quantizing grafted graphs, takes more than `free` bytes, and ModelError
    as `check_convertible` does."""
    check_convertible(shape)
    needed = grafted_bytes(shape) if grafted else conversion_bytes(shape)
    if needed <= free:
        return
    way = "use a machine with the memory for it"
    if not grafted:
        way += (
            f"; or make float graphs of the base there once (gemma-ops tools edge-graphs MODEL FOLDER), and set "
            f"quantize.edge_graphs to them: that takes about {grafted_bytes(shape) / 1e9:.0f} GB here"
        )
    what = "quantizing for LiteRT-LM" if grafted else "converting for LiteRT-LM"
    raise MachineError(f"{what} takes about {needed / 1e9:.0f} GB of memory, and {free / 1e9:.1f} GB are free", way)
