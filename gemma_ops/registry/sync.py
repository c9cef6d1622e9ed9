"""The pass that brings MLflow up to what a run folder says.

The run folder is the truth: settings in `config.json`, finished steps in `<step>/artifact.json`, running ones in
`<step>.partial/`, every record of a step in `logs/<step>.<attempt>.jsonl`. One pass of `sync` copies what MLflow has
not seen yet and remembers how far it came (`state.py`). Nothing is held in memory, so a pass can fail, or the process
die, at any point: the next one goes on where MLflow stopped answering. The logs are the spool.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gemma_ops.registry import describe, run_reader
from gemma_ops.registry import state as memory
from gemma_ops.registry.profile import Tracking, TrackingPlace
from gemma_ops.runs import digest

_BATCH = 1000  # MLflow's own limit on metrics in one call
Known = dict[str, Any]


def sync(tracking: Tracking, run: Path, *, ended: str | None = None, error: str | None = None) -> str:
    """Run one pass, and return the id of the parent run. `ended` is None while the run goes on, then FINISHED, FAILED
    or KILLED; `error` says why it failed.

    Raises what MLflow raises: the caller decides whether to try again.
    """
    with memory.LOCK:
        state = memory.parent_run(tracking, run)
        if not state["described"]:
            describe.log_settings(tracking, run, state["run_id"])
            state["described"] = True
        if not ended and state["status"] != "RUNNING":
            tracking.client.update_run(state["run_id"], status="RUNNING")
            state["status"] = "RUNNING"
        memory.write_state(run, tracking.place, state)
        for step, logs in run_reader.attempts(run).items():
            _step(tracking, run, state, name=step, logs=logs, ended=ended)
        if ended:
            describe.outcome(tracking, run, state, error)
            tracking.client.set_terminated(state["run_id"], ended)
            state["status"] = ended
            memory.write_state(run, tracking.place, state)
        return str(state["run_id"])


def up_to_date(run: Path, place: TrackingPlace, digests: dict[str, str]) -> bool:
    """True if MLflow has everything about these finished steps already; answered without importing it."""
    if place.database and not place.database.exists():
        return False
    state = memory.read_state(run, place)
    return (
        state["status"] == "FINISHED"
        and state["config"] == digest.of_json(memory.config_of(run))
        and all(state["steps"].get(name, {}).get("digest") == value for name, value in digests.items())
    )


def pending_records(run: Path, place: TrackingPlace) -> int:
    """Return how many records of the logs MLflow has not seen."""
    steps, count = memory.read_state(run, place)["steps"], 0
    for step, logs in run_reader.attempts(run).items():
        known = steps.get(step, {})
        for attempt, log in logs.items():
            if attempt >= known.get("first", run_reader.first_of(logs)):
                count += sum(1 for _ in run_reader.records(log, known.get("logs", {}).get(log.name, 0)))
    return count


def _step(
    tracking: Tracking, run: Path, state: memory.State, *, name: str, logs: dict[int, Path], ended: str | None
) -> None:
    """Copy one step: its nested run, its settings, the new records of its logs, how it ended."""
    artifact = run_reader.read_step_json(run / name / "artifact.json")
    known: Known | None = state["steps"].get(name)
    last = max(logs)
    if known is None or (known["digest"] and known["attempt"] < last) or not memory.exists(tracking, known["run_id"]):
        # Never seen here, made again after it had finished, or deleted by somebody: it gets a run of its own.
        known = _open(tracking, run, state, name, logs)
    if not known["digest"]:
        known["attempt"] = last
        for attempt, log in logs.items():
            if attempt >= known["first"]:
                _log(tracking, run, state, known, log)
        if artifact:
            tracking.client.set_terminated(known["run_id"], "FINISHED", end_time=_ended(logs[last]))
            known["digest"] = artifact["digest"]
        elif ended:
            tracking.client.set_terminated(known["run_id"], ended)
    if artifact and known["shown"] != state["run_id"]:
        _final(tracking, state["run_id"], name, artifact)
        describe.datasets(tracking, run, name, state["run_id"])
        known["shown"] = state["run_id"]
    memory.write_state(run, tracking.place, state)


def _open(tracking: Tracking, run: Path, state: memory.State, name: str, logs: dict[int, Path]) -> Known:
    """Make the nested run of a step, or find the one made just before a crash."""
    first, parent = run_reader.first_of(logs), state["run_id"]
    identity = (
        run_reader.read_step_json(run / name / "artifact.json")
        or run_reader.read_step_json(run / f"{name}.partial" / "fingerprint.json")
        or {}
    )
    key = digest.of_json([state["key"], name, first])[:32]
    run_id = memory.make_run(tracking, key, name, parent=parent, start=int(run_reader.began(logs[first]) * 1000))
    describe.step(tracking, run_id, name, identity)
    describe.datasets(tracking, run, name, run_id)
    known = {
        "run_id": run_id,
        "parent": parent,
        "shown": None,
        "first": first,
        "attempt": max(logs),
        "logs": {},
        "digest": None,
    }
    state["steps"][name] = known
    memory.write_state(run, tracking.place, state)
    return known


def _log(tracking: Tracking, run: Path, state: memory.State, known: Known, log: Path) -> None:
    """Copy the records of one log from where the last pass stopped."""
    from mlflow.entities import Metric

    batch: list[Any] = []
    offset = start = known["logs"].get(log.name, 0)

    def send() -> None:
        # Sent before it is remembered: after a crash in between it is sent again, and MLflow keeps equal metrics once.
        if batch:
            tracking.client.log_batch(known["run_id"], metrics=batch)
            batch.clear()
        known["logs"][log.name] = offset
        memory.write_state(run, tracking.place, state)

    for record, after in run_reader.records(log, start):
        at, step = int(record.get("time", 0) * 1000), run_reader.record_position(record)
        values = [Metric(key, value, at, step) for key, value in run_reader.numbers(record)]
        if batch and len(batch) + len(values) > _BATCH:
            send()
        batch += values[:_BATCH]
        offset = after
    if offset != start:
        send()


def _final(tracking: Tracking, run_id: str, name: str, artifact: dict[str, Any]) -> None:
    """Put a step's final metrics on the parent run, where runs are compared: `train/loss`; an evaluation's are named by
    task."""
    from mlflow.entities import Metric

    at = int(time.time() * 1000)
    prefix = "" if name == "evaluate" else f"{name}/"
    values = [Metric(prefix + key, value, at, 0) for key, value in run_reader.numbers(artifact["metrics"])]
    for start in range(0, len(values), _BATCH):
        tracking.client.log_batch(run_id, metrics=values[start : start + _BATCH])


def _ended(log: Path) -> int | None:
    """Return when the last record was written, in milliseconds since 1970."""
    last = 0.0
    for record, _ in run_reader.records(log):
        last = float(record.get("time", 0.0))
    return int(last * 1000) or None
