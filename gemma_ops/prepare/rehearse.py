"""A rehearsal of `prepare`: what it would refuse and leave out, without keeping what it makes."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import DataConfig, MachineConfig
from gemma_ops.errors import DataError
from gemma_ops.prepare.prepare_step import prepare


@dataclass(frozen=True)
class Rehearsal:
    """Findings of the rehearsed step: what it refuses with the way out, and a line for each thing it leaves out or
    doubts."""

    refusals: tuple[tuple[str, str], ...]
    thinned: tuple[str, ...]
    trained: dict[str, int]
    """Number of examples of the training rows by `train.thinking`, and `tokens`; empty where nothing could be
    prepared."""


def rehearse_prepare(
    settings: DataConfig, *, source: Path | None, model: Path, tasks: tuple[Path, ...] = ()
) -> Rehearsal:
    """Run `prepare` into a folder that is thrown away; where it refuses, once more with nothing refused, to count the
    rest.

    Raises what the readers and ModelError of a checkpoint without a tokenizer.
    """
    lenient = settings.model_copy(update={"max_bad_share": 1.0, "overlap": "report", "pii": "report"})
    refusals: list[tuple[str, str]] = []
    body: dict[str, Any] = {}
    for asked in (settings, lenient):
        with tempfile.TemporaryDirectory(prefix="gemma-ops-") as folder:
            try:
                prepare(Path(folder), asked, MachineConfig(), source=source, model=model, tasks=tasks)
                body = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
            except DataError as error:
                what = error.what.replace(f"{folder}/", "")
                refusals += [(what, error.fix.replace(f"{folder}/", ""))] if asked is settings else []
        if body:
            break
    if not body:
        return Rehearsal(tuple(refusals), (), {})
    trained = {**body["examples"], "tokens": body["tokens"]["train"]["tokens"]}
    return Rehearsal(tuple(refusals), tuple(_thinned(body)), trained)


def _thinned(body: dict[str, Any]) -> list[str]:
    rows, overlap = body["rows"], body["overlap"]
    found = []
    if rows["exact_duplicates"]:
        found.append(f"{rows['exact_duplicates']:,} rows train the very same as an earlier one and would be left out")
    if rows["near_duplicates"]:
        first = body["near_duplicates"]["first"][0]
        found.append(
            f"{rows['near_duplicates']:,} rows nearly repeat an earlier one and would be left out, first "
            f"{first['row']}, which repeats {first['of']} (data.near_duplicates)"
        )
    if rows["overlap_dropped"]:
        found.append(f"{rows['overlap_dropped']:,} rows also stand in an evaluation task and would be left out")
    elif any(task["rows"] for task in overlap["tasks"]):
        shown = ", ".join(f"{task['rows']:,} in {task['name']}" for task in overlap["tasks"] if task["rows"])
        found.append(f"rows that also stand in an evaluation task: {shown}")
    if body["same_prompt_other_answer"]:
        found.append(
            f"{body['same_prompt_other_answer']:,} rows ask what an earlier row asked and answer it differently"
        )
    if body["contradictions"]:
        found.append(f"{body['contradictions']:,} rows want the answer that an earlier row to the same prompt rejects")
    return found
