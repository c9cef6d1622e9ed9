"""The job that follows every weight of a checkpoint into the graphs: bit for bit in float, within half a step where it
was rounded.

Scalars count too. One of exactly 1 may be gone, since the converter leaves the multiplication out; any other must stand
among the constants.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.errors import GateError
from gemma_ops.toolenvs.jobs.edge_constants import FLOAT32, GraphConstant, graph_constants, mapped_graph
from gemma_ops.toolenvs.jobs.edge_export import GRAPHS

_TOWERS = ("vision_tower.", "audio_tower.", "embed_vision.", "embed_audio.")
_ROOM = 1.02
"""Half a step, and what float32 rounding adds to it."""


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Audit the float graphs in `graphs` against the checkpoint `model`, and each of `quantized`, {name: folder},
    against the float graphs. Returns counts and, by name, the largest error in steps and parameters by type. Raises
    GateError where a weight is missing or further away than rounding puts it."""
    opened = {name: mapped_graph(Path(request["graphs"]) / f"{name}.tflite") for name in GRAPHS}
    constants = [each for name, data in opened.items() for each in graph_constants(name, data)]
    places, folded = place_weights(checkpoint_weights(Path(request["model"])), constants, opened)
    found = {
        name: _audit_quantized(Path(place), constants, opened, {id(each) for each in places.values()})
        for name, place in request["quantized"].items()
    }
    return {"weights": len(places), "folded_scalars": folded, "quantized": found}


def checkpoint_weights(model: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the language model's tensors as float32, one in memory at a time, without what no model reads."""
    from safetensors import safe_open

    for name, file in weight_files(model).items():
        with safe_open(file, "pt") as tensors:
            yield name, tensors.get_tensor(name).float().numpy()


def weight_files(model: Path) -> dict[str, Path]:
    """Return the file of each tensor of the language model, by name, without towers, a tied head, and the keys and
    values that layers which share them have in Google's files."""
    from safetensors import safe_open

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    sharing = range(text["num_hidden_layers"] - (text.get("num_kv_shared_layers") or 0), text["num_hidden_layers"])
    unread = tuple(f"layers.{layer}.self_attn.{part}." for layer in sharing for part in ("k_proj", "v_proj", "k_norm"))
    found: dict[str, Path] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if name != "lm_head.weight"]  # noqa: SIM118 - no mapping
            found |= {name: file for name in names if not any(part in name for part in (*_TOWERS, *unread))}
    return found


def place_weights(
    weights: Iterator[tuple[str, np.ndarray]], constants: list[GraphConstant], opened: Mapping[str, Any]
) -> tuple[dict[str, GraphConstant], int]:
    """Return the constant of each weight, and how many scalars of 1 were left out. Raises GateError for a weight that
    no constant holds."""
    by_size: dict[int, list[GraphConstant]] = {}
    for each in constants:
        if each.type == FLOAT32:
            by_size.setdefault(each.bytes, []).append(each)
    found: dict[str, GraphConstant] = {}
    folded, missing = 0, []
    for name, value in weights:
        data = np.ascontiguousarray(value, np.float32).tobytes()
        same = next((each for each in by_size.get(len(data), ()) if _same(each, opened[each.graph], data)), None)
        if same is not None:
            found[name] = same
        elif value.size == 1 and float(value.reshape(-1)[0]) == 1.0:
            folded += 1
        else:
            missing.append(name)
    if missing:
        raise GateError(
            f"{len(missing)} weights of the checkpoint stand in no graph, the first: {missing[0]}",
            "export again; if it repeats, this version of litert-torch does not convert this model",
        )
    return found, folded


def _same(constant: GraphConstant, mapped: Any, data: bytes) -> bool:
    return bytes(mapped[constant.start : constant.start + constant.bytes]) == data


def _audit_quantized(
    folder: Path, constants: list[GraphConstant], opened: Mapping[str, Any], weights: set[int]
) -> dict[str, Any]:
    """Compare the graphs of a folder with the float ones, constant by constant of the same name."""
    stored: dict[str, int] = {}
    worst, rounded = 0.0, 0
    for name in GRAPHS:
        data = mapped_graph(folder / f"{name}.tflite")
        held = {each.name: each for each in graph_constants(name, data)}
        for each in constants:
            if each.graph != name or id(each) not in weights:
                continue
            mine = held.get(each.name)
            if mine is None or mine.shape != each.shape:
                raise GateError(
                    f"{folder} lacks the weight {each.name[-80:]}", "make the format again: --redo quantize"
                )
            wanted, got = each.held(opened[name]), mine.held(data)
            kind = {FLOAT32: "float32"}.get(mine.type, f"int{8 * mine.bytes // got.size}")
            stored[kind] = stored.get(kind, 0) + got.size
            if mine.type == FLOAT32:
                error = float(np.abs(wanted - got).max())
            else:
                rounded += got.size
                rows = wanted.reshape(len(mine.scale), -1)
                steps = mine.steps(rows.shape[1])
                error = float((np.abs(rows - got.reshape(rows.shape)) / np.where(steps == 0, np.inf, steps)).max())
            worst = max(worst, error)
            if error > (0.0 if mine.type == FLOAT32 else 0.5 * _ROOM):
                raise GateError(
                    f"{folder}: {each.name[-80:]} is {error:.2f} steps away from the float weight, and rounding leaves "
                    "half a step",
                    "make the format again: --redo quantize",
                )
    total = sum(stored.values())
    return {"parameters": stored, "quantized_share": rounded / total, "worst_steps": worst}
