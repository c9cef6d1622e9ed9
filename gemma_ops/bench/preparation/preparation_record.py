"""The record of `gemma-ops bench prepare`: every arm's time and memory, and the ratios, as one JSON document."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from gemma_ops import __version__
from gemma_ops.bench.arm_process import run_arm
from gemma_ops.bench.training.bench_machine import machine
from gemma_ops.nano import tickets

SCHEMA = "gemma-ops/preparation-bench@1"
_ARM_MODULE = "gemma_ops.bench.preparation.preparation_arms"


def measure_preparation(
    rows: int, workers: int, repeats: int, seed: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all arms on so many rows of the support desk, `repeats` times in turn; medians are kept.

    The step runs with one process, with `workers`, and on a tenth of the rows, which tells whether memory grows.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as place:
        folder = Path(place)
        source, tenth = folder / "rows.jsonl", folder / "tenth.jsonl"
        _write(source, rows, seed)
        _write(tenth, max(1, rows // 10), seed)
        asked = [("step", source, 1), ("tokens", source, 1), ("datasets", source, 1)]
        asked += [("step", source, workers), ("datasets", source, workers)] if workers > 1 else []
        asked += [("step", tenth, workers)]
        for repeat in range(repeats):
            for number, (arm, file, processes) in enumerate(asked):
                name = _name(arm, processes, tenth=file == tenth)
                tell(f"{repeat + 1} of {repeats}: {name}")
                made = _measured(arm, file, folder / f"{repeat}-{number}", processes)
                found.setdefault(name, []).append(made)
    arms = {name: _arm(name, rows, runs) for name, runs in found.items()}
    return {
        "schema": SCHEMA,
        "command": f"gemma-ops bench prepare --rows {rows} --workers {workers} --repeats {repeats} --seed {seed}",
        "version": __version__,
        "machine": machine("cpu"),
        "rows": rows,
        "workers": workers,
        "arms": arms,
        "ratios": {
            "step": _ratio(arms, "step"),
            "tokens": _ratio(arms, "tokens"),
        },
    }


def _write(path: Path, rows: int, seed: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        made = enumerate(tickets.training_rows(rows, seed))
        file.writelines(json.dumps({"id": f"ticket-{number}", **row}) + "\n" for number, row in made)


def _name(arm: str, workers: int, *, tenth: bool = False) -> str:
    many = f", {workers} processes" if workers > 1 else ""
    return f"{arm}{many}{', a tenth of the rows' if tenth else ''}"


def _measured(arm: str, source: Path, folder: Path, workers: int) -> dict[str, Any]:
    return run_arm(
        _ARM_MODULE, arm, source, folder, workers,
        failed=f"the arm {arm} failed", fix="correct what it says, or measure fewer rows",
        environment={"TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip


def _arm(name: str, rows: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    counted = max(1, rows // 10) if "tenth" in name else rows
    seconds, spent = (median(run[key] for run in runs) for key in ("seconds", "cpu_seconds"))
    return {
        "rows": counted,
        "tokens": runs[0]["tokens"],
        "seconds": round(seconds, 2),
        "rows_per_second": round(counted / seconds),
        "rows_per_core_second": round(counted / spent),
        "peak_mib": round(max(run["peak_mib"] for run in runs)),
    }


def _ratio(arms: dict[str, Any], name: str) -> float:
    return round(float(arms[name]["rows_per_core_second"] / arms["datasets"]["rows_per_core_second"]), 2)


def preparation_lines(body: dict[str, Any]) -> list[str]:
    """Return the record as lines for a terminal."""
    found = ["rows/s  rows/s a core  peak MiB    rows  what"]
    for name, arm in body["arms"].items():
        speed = f"{arm['rows_per_second']:6,}  {arm['rows_per_core_second']:13,}"
        found.append(f"{speed}  {arm['peak_mib']:8,}  {arm['rows']:6,}  {name}")
    ratios = body["ratios"]
    found.append(
        f"rows a second a core beside datasets.map: the whole step {ratios['step']:.2f}x, tokens alone "
        f"{ratios['tokens']:.2f}x"
    )
    return found
