"""The mirror's state in a run folder: `runs/<name>/mlflow.json`, one entry per tracking place.

    {"sqlite:///…/mlflow.db": {
        "config": digest of the settings the parent run shows (its parameters can't change: other settings get another
                  run),
        "key": written before the run is made, so that a crash in between finds it again instead of making a second,
        "run_id": the parent run, "status": its last known one,
        "described": whether its parameters are there,
        "files": {artifact path: sha256 already uploaded},
        "steps": {name: {"run_id", "parent", "shown": the parent that has its metrics,
                         "first" and "attempt": first and last log of its run, "logs": {file: bytes mirrored},
                         "digest": of the finished step, else null}}}}

Both the mirror's thread and the step `register` ask for the parent run; `LOCK` lets one of them make it.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from pathlib import Path
from typing import Any

from gemma_ops.registry import run_reader
from gemma_ops.registry.profile import Tracking, TrackingPlace
from gemma_ops.runs import digest

FILE = "mlflow.json"
LOCK = threading.RLock()
KEY = "gemma_ops.key"

_seen: set[str] = set()

State = dict[str, Any]


def read_state(run: Path, place: TrackingPlace) -> State:
    """Return what `run` remembers of `place`; an empty entry when nothing, or when the file was damaged (it can be made
    anew)."""
    try:
        entry = json.loads((run / FILE).read_text(encoding="utf-8")).get(place.uri, {})
    except (OSError, ValueError, AttributeError):
        entry = {}
    return {
        "config": None,
        "key": None,
        "run_id": None,
        "status": None,
        "described": False,
        "files": {},
        "steps": {},
        **entry,
    }


def write_state(run: Path, place: TrackingPlace, state: State) -> None:
    """Replace the entry of `place`, whole or not at all."""
    file = run / FILE
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        body = {}
    body[place.uri] = state
    temporary = file.with_name(f".{FILE}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    temporary.replace(file)


def config_of(run: Path) -> dict[str, Any]:
    """Return the run's settings without those of the machine; empty when the folder has no `config.json`."""
    try:
        config: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    config.pop("machine", None)
    return config


def parent_run(tracking: Tracking, run: Path) -> State:
    """Return the state of `run` with a parent run that exists in MLflow and shows these settings: found again or
    made."""
    with LOCK:
        state, wanted = read_state(run, tracking.place), digest.of_json(config_of(run))
        if state["config"] != wanted or (state["run_id"] and not exists(tracking, state["run_id"])):
            # Steps keep their runs under the earlier parent; where that is gone, they are mirrored again.
            steps = {name: step for name, step in state["steps"].items() if exists(tracking, step["run_id"])}
            state.update(config=wanted, key=None, run_id=None, status=None, described=False, files={}, steps=steps)
        if not state["run_id"]:
            if not state["key"]:
                state["key"] = uuid.uuid4().hex
                write_state(run, tracking.place, state)
            began = min(
                (run_reader.began(log) for logs in run_reader.attempts(run).values() for log in logs.values()),
                default=0.0,
            )
            state["run_id"] = make_run(tracking, state["key"], run.name, start=int(began * 1000) or None)
            write_state(run, tracking.place, state)
        return state


def make_run(tracking: Tracking, key: str, name: str, *, parent: str | None = None, start: int | None = None) -> str:
    """Return the id of the one run that carries `key`; made when there is none. `start` in milliseconds since 1970.

    A connection cut after the server has acted is repeated by the HTTP layer and would leave two: the surplus is
    deleted.
    """
    client, place = tracking.client, [tracking.experiment_id]
    found = client.search_runs(place, f"tags.`{KEY}` = '{key}'", max_results=10)
    if not found:
        tags = {KEY: key, "mlflow.source.type": "JOB", "mlflow.source.name": "gemma-ops", "mlflow.user": user()}
        if parent:
            tags["mlflow.parentRunId"] = parent
        client.create_run(tracking.experiment_id, start_time=start, run_name=name, tags=tags)
        found = client.search_runs(place, f"tags.`{KEY}` = '{key}'", max_results=10)
    for surplus in found[1:]:
        client.delete_run(surplus.info.run_id)
    return str(found[0].info.run_id)


def exists(tracking: Tracking, run_id: str | None) -> bool:
    """True if the run is there and not deleted; asked once per mirrored run, so one deleted meanwhile fails on the next
    write."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return False
    if run_id in _seen:
        return True
    try:
        found = tracking.client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    if found.info.lifecycle_stage == "active":
        _seen.add(run_id)
    return run_id in _seen


def forget() -> None:
    """Forget the cached answers of `exists`."""
    _seen.clear()


def user() -> str:
    """Return who runs this process; the numeric id where the system has no name for it."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
