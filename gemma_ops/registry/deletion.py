"""Detection of a deleted version: somebody may have deleted the version that a run registered, or the whole database.

Asked before a run in which the step `register` would be kept. A database on this machine is read directly, since
importing MLflow takes longer than a run in which everything is kept.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.errors import ServiceError
from gemma_ops.registry import profile, run_reader, stored
from gemma_ops.registry.profile import TrackingPlace

_DELETED = "Deleted_Internal"
"""Stage under which MLflow keeps the row of a deleted version (3.17, `store/model_registry/dbmodels`)."""


def lost_version(machine: MachineConfig, run: Path) -> str | None:
    """Say in a sentence that the version of a run is gone; None where it is there, was never made, or can't be asked
    for."""
    record = run_reader.read_step_json(run / "register" / "mlflow.json")
    place = profile.locate_mlflow(machine)
    if not record or not record.get("version") or place is None or record.get("tracking_uri") != place.uri:
        return None
    who = f"version {record['version']} of {record['name']}"
    if place.database and not place.database.exists():
        return f"{who} is gone with {place.database}: it is registered again"
    found = _in_database(place, record) if place.database else None
    if found is None:
        try:
            found = _in_mlflow(machine, record)
        except ServiceError:
            return None  # the run says that nobody answers
    return None if found else f"{who} was deleted in MLflow: it is registered again as a new version"


def _in_database(place: TrackingPlace, record: dict[str, Any]) -> bool | None:
    """Return whether the version is there; None where the database is of another kind than we know."""
    question = "SELECT current_stage FROM model_versions WHERE name = ? AND version = ?"
    try:
        with closing(sqlite3.connect(f"{Path(str(place.database)).as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute(question, (record["name"], int(record["version"]))).fetchall()
    except (sqlite3.Error, ValueError):
        return None
    return any(stage != _DELETED for (stage,) in rows)


def _in_mlflow(machine: MachineConfig, record: dict[str, Any]) -> bool:
    tracking = profile.connect_mlflow(machine)
    with profile.mlflow_calls(tracking.place):
        found = stored.registered_versions(tracking, record["name"], record["manifest"])
        return any(str(version.version) == str(record["version"]) for version in found)
