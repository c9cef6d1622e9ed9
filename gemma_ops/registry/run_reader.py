"""Reading of a run folder for its mirror: records of the logs, numbers in a record, settings as a flat table.

Free of MLflow, so that a run in which nothing happened is recognised without importing it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemma_ops.registry import evaluation_evidence

LONGEST = 500  # characters of a parameter: it is for reading, `config.json` holds the whole of it
_NOT_METRICS = frozenset({"time", "step", "done", "total", "event", "pid", "version"})
_LOG = re.compile(r"(?P<step>.+)\.(?P<attempt>\d+)\.jsonl")


def read_step_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None when the file isn't there (a step that has not finished)."""
    if not path.exists():
        return None
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def records(log: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield whole lines from byte `offset` on, each with the offset after it. A line still being written is left for
    later."""
    with log.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                body = json.loads(line)
            except ValueError:  # torn by a crash of an earlier attempt: the next attempt has its own file
                continue
            if isinstance(body, dict):
                yield body, offset


def attempts(run: Path) -> dict[str, dict[int, Path]]:
    """Return {step: {attempt: log}}, steps in the order in which their last attempts began, attempts ascending."""
    found: dict[str, dict[int, Path]] = {}
    for log in (run / "logs").glob("*.jsonl"):
        if match := _LOG.fullmatch(log.name):
            found.setdefault(match["step"], {})[int(match["attempt"])] = log
    for step, logs in found.items():
        found[step] = dict(sorted(logs.items()))
    return dict(sorted(found.items(), key=lambda item: began(list(item[1].values())[-1])))


def began(log: Path) -> float:
    """Return when an attempt began, in seconds since 1970; 0 for an empty log."""
    first = next(records(log), None)
    return float(first[0].get("time", 0.0)) if first else 0.0


def first_of(logs: dict[int, Path]) -> int:
    """Return the attempt with which the work of the last one began: the one after the last that reached its end before
    it."""
    first = next(iter(logs))
    for before, after in itertools.pairwise(logs):
        if any(record.get("event") == "end" for record, _ in records(logs[before])):
            first = after
    return first


def numbers(record: dict[str, Any]) -> list[tuple[str, float]]:
    """Return every number of a record under a name MLflow accepts; nested objects joined by `/`, texts and flags left
    out.

    What a step reports about one task or target stands under that one's name, so that their curves don't run into each
    other. Of what it reports as it ends only the `seconds` are taken: the results stand on the parent run, and
    here they would be a point on the curve of the same name.
    """
    if record.get("event") == "end":
        return [("seconds", float(record["seconds"]))] if "seconds" in record else []
    prefix = "".join(f"{metric_key(record[key])}/" for key in ("task", "target") if isinstance(record.get(key), str))
    return [
        (prefix + key, value) for key, value in _numbers({k: v for k, v in record.items() if k not in _NOT_METRICS})
    ]


def record_position(record: dict[str, Any]) -> int:
    """Return where on the horizontal axis a record lies: its `step`, else how much is `done`, else 0."""
    found = record.get("step", record.get("done", 0))
    return found if isinstance(found, int) else 0


def _numbers(body: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in body.items():
        if isinstance(value, dict):
            yield from ((f"{metric_key(key)}/{inner}", number) for inner, number in _numbers(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield metric_key(key), float(value)


def metric_key(text: str) -> str:
    """Return a name that MLflow takes: only the characters it allows (letters, digits, `_ - . space : /`), at most 250
    of them, and a path in its plain form (no `//` as in an address, no `.` or `..` between slashes)."""
    plain = re.sub(r"[^\w\-. :/]", "_", text, flags=re.ASCII)[:250]
    parts = [part if part.strip(".") else "_" * len(part) for part in plain.split("/") if part]
    return "/".join(parts) or "_"


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return settings as {dotted name: text}; unset ones left out, lists as JSON, long values cut with an ellipsis."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            flat[f"{prefix}{metric_key(key)}"] = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return flat


def privacy_of(run: Path) -> dict[str, int]:
    """Return {privacy class: rows} of the prepared rows and of the questions asked; empty when there are none."""
    counts: dict[str, int] = {}
    for name in ("train.jsonl", "valid.jsonl"):
        path = run / "prepare" / name
        if path.exists():
            for row, _ in records(path):
                label = str(row.get("privacy", "local_only"))
                counts[label] = counts.get(label, 0) + 1
    found = evaluation_evidence.read_evidence(run / "evaluate")
    for task in found.tasks.values() if found else ():
        for label, number in task.privacy.items():
            counts[label] = counts.get(label, 0) + number
    return counts
