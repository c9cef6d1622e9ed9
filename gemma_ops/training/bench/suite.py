"""The list of benchmarks for a GPU, run one after the other within a time: `gemma-ops bench train --suite gpu`.

Each is a folder of its own that keeps what was measured, so the list can be run in pieces, and a size that does not fit
the GPU is recorded as such and costs nothing but its attempt.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemma_ops.errors import OpsError
from gemma_ops.training.bench.runner import Runner, Tell
from gemma_ops.training.bench.spec import Spec, make

_SIZES = (("e2b", "bf16"), ("e4b", "bf16"), ("e2b", "nf4"), ("e4b", "nf4"), ("26b-a4b", "nf4"), ("31b", "nf4"))
_ROWS = (8192, 4096, 2048)
_TOKENS = 16_384
"""Of an optimizer step: two rows of 8,192."""
_MEAN = 300


def gpu(**more: Any) -> list[Spec]:
    """Every size at every row length, what matters most first."""
    specs = []
    for row in _ROWS:
        for size, weights in _SIZES:
            rows = round(_TOKENS / _MEAN / 8) * 8
            spec = make(
                size, device="cuda", weights=weights, lengths="chat", batch=rows, micro_batch=8,  # type: ignore[arg-type]
                row_length=row, micro_tokens=row, steps=2, repeats=2, **more,
            )  # fmt: skip
            specs.append(replace(spec, longest=min(2048, row)))
    return specs


SUITES = {"gpu": gpu}


def run(specs: list[Spec], folder: Path, tell: Tell, *, command: str, minutes: float | None) -> dict[str, Any]:
    """Run what is not finished; one that fails does not stop the others. Returns the results of all, by name."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    found: dict[str, Any] = {}
    for spec in specs:
        place = folder / spec.name
        if deadline is not None and time.monotonic() > deadline and not (place / "bench.json").is_file():
            found[spec.name] = {"absent": "no time left"}
            continue
        tell(f"── {spec.name}")
        try:
            found[spec.name] = Runner(spec, place, tell, command=command, deadline=deadline).run()
        except OpsError as error:
            found[spec.name] = {"absent": error.what}
            tell(f"{spec.name}: {error.what}")
        _write(folder / "suite.json", found)
    return found


def _write(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
