"""The list of benchmarks for a GPU, run one after the other within a time: `gemma-ops bench train --suite gpu`.

All of them run in one process that is kept, what matters most first. Each is a folder that keeps what was measured, so
the list can be run in pieces, and what does not fit the GPU is recorded as such and costs nothing but its attempt.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from gemma_ops.bench.training.bench_spec import BenchSpec, make_spec
from gemma_ops.bench.training.runner import BenchRunner, Tell
from gemma_ops.bench.training.workers import Kept
from gemma_ops.errors import OpsError

_MEAN = 300
_ROWS = {"e2b": 52, "e4b": 52, "26b-a4b": 24, "31b": 12}
"""Rows of an optimizer step: some 15,500 tokens, and fewer where stock trainers would need minutes a step."""
_FIRST = (("e2b", "bf16", 8192), ("31b", "nf4", 4096), ("26b-a4b", "nf4", 4096), ("e4b", "bf16", 8192))
_THEN = (("e2b", "nf4", 8192), ("e4b", "nf4", 8192))
_LENGTHS = (
    ("26b-a4b", "nf4", 8192), ("31b", "nf4", 8192), ("e2b", "bf16", 2048), ("31b", "nf4", 2048),
    ("26b-a4b", "nf4", 2048),
    ("e4b", "bf16", 2048), ("e2b", "nf4", 2048), ("e4b", "nf4", 2048), ("e2b", "bf16", 4096), ("e4b", "bf16", 4096),
    ("e2b", "nf4", 4096), ("e4b", "nf4", 4096),
)  # fmt: skip
"""Other lengths of packed rows, measured without the padded arm, whose rows are the same whatever the length of a
packed one."""


def gpu_suite(**more: Any) -> list[BenchSpec]:
    """Return every size at every row length, and the least memory that QLoRA at 2,048 tokens can do with."""
    least = [
        _one(size, "nf4", 2048, checkpointing="all", graphs="off", **more | {"arms": ("gemma-ops",)})
        for size in ("e2b", "e4b", "26b-a4b", "31b")
    ]
    packed = {"arms": ("trl-packed", "gemma-ops")} | more
    return [
        *(_one(*which, **more) for which in _FIRST),
        *least,
        *(_one(*which, **more) for which in _THEN),
        *(_one(*which, **packed) for which in _LENGTHS),
    ]


def _one(size: str, weights: str, row: int, **more: Any) -> BenchSpec:
    return make_spec(
        size, device="cuda", weights=weights,  # type: ignore[arg-type]
        mean=_MEAN, longest=min(2048, row), batch=_ROWS[size], micro_batch=4,
        row_length=row, micro_tokens=row, steps=2, repeats=1, **more,
    )  # fmt: skip


SUITES = {"gpu": gpu_suite}


def run_suite(
    specs: list[BenchSpec], folder: Path, tell: Tell, *, command: str, minutes: float | None
) -> dict[str, Any]:
    """Run what is not finished; one that fails does not stop the others. Returns the results of all, by name."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    found: dict[str, Any] = {}
    gate: dict[str, Any] | None = None
    rate: float | None = None
    folder.mkdir(parents=True, exist_ok=True)
    with Kept() as worker:
        for spec in specs:
            place = folder / spec.name
            if deadline is not None and time.monotonic() > deadline and not (place / "bench.json").is_file():
                found[spec.name] = {"absent": "no time left"}
                continue
            tell(f"── {spec.name}")
            began = time.monotonic()
            try:
                runner = BenchRunner(spec, place, tell, command=command, deadline=deadline, worker=worker, gate=gate)
                rate = runner.measured_rate(rate)
                found[spec.name] = runner.run()
                gate = gate or found[spec.name].get("gate")
            except OpsError as error:
                found[spec.name] = {"absent": error.what}
                tell(f"{spec.name}: {error.what}")
            tell(f"   {time.monotonic() - began:.0f} s")
            _write(folder / "suite.json", found)
    return found


def _write(path: Path, found: dict[str, Any]) -> None:
    half = path.with_suffix(".partial")
    half.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    half.replace(path)
