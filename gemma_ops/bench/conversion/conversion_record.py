"""The record of `gemma-ops bench convert`: for each format the time beside a plain copy and llama.cpp's encoder, and
the memory, as one JSON document."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gemma_ops import __version__
from gemma_ops.bench.arm_process import run_arm
from gemma_ops.bench.conversion.cut_checkpoint import write_cut
from gemma_ops.bench.training.bench_machine import machine
from gemma_ops.family.formats import GGUF, GGUF_FILE, QUANTIZED_TYPES, GgufName

SCHEMA = "gemma-ops/conversion-bench@1"
FORMATS: tuple[GgufName, ...] = tuple(
    form.name for form in GGUF.values() if form.tensor in QUANTIZED_TYPES and not form.careful and not form.mixed
)
"""Formats of one type each."""
_ARM_MODULE = "gemma_ops.bench.conversion.conversion_arms"
_ARMS = ("copy", "gemma-ops", "llama.cpp")


def measure_conversion(
    size: str, layers: int, formats: Sequence[GgufName], threads: int, work: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure the formats on a checkpoint of a size cut to so many layers, made below the folder `work` and removed
    again. Raises MachineError when an arm fails."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=work) as place:
        tell(f"a checkpoint of {size} with {layers} layers")
        checkpoint = write_cut(size, layers, Path(place) / "model")
        lines = []
        for form in formats:
            tell(form)
            arms = {arm: _measured(arm, checkpoint, form, Path(place) / GGUF_FILE, threads) for arm in _ARMS}
            lines.append(_line(form, arms))
    return {
        "schema": SCHEMA,
        "command": f"gemma-ops bench convert --size {size} --layers {layers} --threads {threads} "
        + " ".join(f"--format {form}" for form in formats),
        "version": __version__,
        "machine": machine("cpu"),
        "size": size,
        "layers": layers,
        "threads": threads,
        "lines": lines,
    }


def _measured(arm: str, checkpoint: Path, form: str, out: Path, threads: int) -> dict[str, Any]:
    return run_arm(
        _ARM_MODULE, arm, checkpoint, form, out, threads,
        failed=f"the arm {arm} failed for {form}", fix="correct what it says, or cut to fewer layers",
    )  # fmt: skip


def _line(form: str, arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ours = arms["gemma-ops"]
    return {
        "format": form,
        "type": ours["type"],
        "parameters": ours["parameters"],
        "bytes": ours["bytes"],
        "largest_tensor": ours["largest_tensor"],
        "peak_bytes": ours["peak_bytes"],
        "million_a_second": round(ours["parameters"] / ours["seconds"] / 1e6, 1),
        "of_copy": round(arms["copy"]["seconds"] / ours["seconds"], 3),
        "of_llamacpp": round(arms["llama.cpp"]["cpu_seconds"] / ours["cpu_seconds"], 3),
    }


def conversion_lines(body: dict[str, Any]) -> list[str]:
    """Return the record as lines for a terminal."""
    largest = body["lines"][0]["largest_tensor"] / 1e9
    return [
        "format   million weights/s  of a plain copy  of llama.cpp's encoder  peak memory      file",
        *(
            f"{line['format']:<8} {line['million_a_second']:17,.1f}  {line['of_copy']:15.2f}  "
            f"{line['of_llamacpp']:22.2f}  {line['peak_bytes'] / 1e6:8,.0f} MB  {line['bytes'] / 1e9:5.2f} GB"
            for line in body["lines"]
        ),
        f"{body['size']}, {body['layers']} layers, {body['threads']} threads; the largest tensor has {largest:.2f} GB",
        "of llama.cpp's encoder: CPU time, which writes nothing",
    ]
