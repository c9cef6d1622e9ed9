"""The registry on PostgreSQL, as teams keep it: a real cluster on a socket of this machine, ended with the test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gemma_ops import registry
from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError, OpsError
from gemma_ops.registry import profile
from tests.helpers import registry_runs as runs

pytest.importorskip("psycopg", reason="PostgreSQL needs a driver, psycopg")
NAME = "support-nano"


def programs():
    """The folder of PostgreSQL's programs; None where it isn't installed (Debian: postgresql)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    here = shutil.which("initdb")
    return found[-1].parent if found else Path(here).parent if here else None


def owner():
    """Who runs the cluster: PostgreSQL refuses to run as root."""
    if os.geteuid():
        return {}
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        found = pwd.getpwnam("nobody")
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def place():
    """The URI of an empty database."""
    home = programs()
    if home is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    who = owner()
    if who:
        os.chown(folder, who["user"], who["group"])

    def call(program, *arguments):
        subprocess.run([home / program, *map(str, arguments)], check=True, capture_output=True, cwd=folder, **who)

    try:
        call("initdb", "-D", folder / "data", "-U", "mlflow", "--auth=trust", "--no-sync", "-E", "UTF8")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        call("pg_ctl", "-D", folder / "data", "-w", "-l", folder / "log", "-o", options, "start")
        call("createdb", "-h", folder, "-U", "mlflow", "mlflow")
        yield f"postgresql+psycopg://mlflow@/mlflow?host={folder}"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            call("pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


def test_versions_are_registered_promoted_and_rolled_back_on_postgresql(place, tmp_path):
    with pytest.raises(ConfigError, match="doesn't say where artifacts go") as caught:
        profile.connect_mlflow(MachineConfig(mlflow=place))
    assert "mlflow experiments create" in caught.value.fix
    from mlflow import MlflowClient

    MlflowClient(place, place).create_experiment("gemma-ops", artifact_location=(tmp_path / "artifacts").as_uri())
    config = runs.config(tmp_path, place)
    machine = config.machine
    assert not profile.connect_mlflow(machine).leaves_machine
    runs.make(config)
    first = registry.promote(machine, NAME, reason="first")
    assert (first.version, [point.state for point in first.points].count("pass")) == ("1", 11)
    for number, name in enumerate(("second", "third"), 2):
        runs.make(runs.config(tmp_path, place, name=name, train={"max_steps": 10 * number}))

    def promote(version):
        try:
            return registry.promote(machine, NAME, version=version, reason="better", expect="1").version
        except OpsError as error:
            return error.what

    with ThreadPoolExecutor(2) as pool:  # two at once, each over version 1: one of them comes too late
        moved, told = sorted(pool.map(promote, ("2", "3")), key=len)
    assert moved in ("2", "3")
    assert told == f"{NAME}@champion is version {moved}, not version 1"
    assert registry.rollback(machine, NAME, reason="worse").version == "1"
    assert registry.audit(machine, NAME).problems == ()
    moves = [(entry["action"], entry["to"]) for entry in registry.history(machine, NAME) if entry["kind"] == "intent"]
    assert moves == [("promote", "1"), ("promote", moved), ("rollback", "1")]
