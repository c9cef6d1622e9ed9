"""Where MLflow lives: reading `machine.mlflow`, the preflight, a fresh database."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from gemma_ops import registry
from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError, MachineError, ServiceError
from gemma_ops.registry import database, mlflow_environment, profile
from tests.helpers import registry_runs
from tests.helpers.patience import Stopwatch


def machine(mlflow: str | None, **more: str) -> MachineConfig:
    return MachineConfig.model_validate({"mlflow": mlflow, **more})


def test_a_folder_holds_one_database_and_the_artifacts_and_nothing_else_appears(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = profile.locate_mlflow(machine("mlflow"))
    assert place.kind == "folder"
    assert place.uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    registry_runs.fresh(tmp_path / "mlflow")
    tracking = profile.connect_mlflow(machine("mlflow"))
    run = tracking.client.create_run(tracking.experiment_id)
    tracking.client.log_text(run.info.run_id, "x", "a.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow"]
    assert {path.name for path in (tmp_path / "mlflow").iterdir() if not path.name.startswith(".")} == {
        "mlflow.db",
        "artifacts",
    }


@pytest.mark.parametrize(
    ("given", "kind", "leaves"),
    [
        ("http://127.0.0.1:5000/", "server", False),
        ("https://mlflow.example.org", "server", True),
        ("postgresql+psycopg2://me@db.example.org/mlflow", "database", True),
        ("sqlite:///some/file.db", "database", False),
        ("mlflow", "folder", False),
    ],
)
def test_every_kind_of_place_is_told_apart(given, kind, leaves):
    place = profile.locate_mlflow(machine(given))
    assert (place.kind, place.leaves_machine) == (kind, leaves)


def test_tracking_off_is_no_place_and_asking_for_the_registry_then_says_so():
    assert profile.locate_mlflow(machine(None)) is None
    with pytest.raises(ConfigError, match=r"machine\.mlflow is null"):
        registry.show(machine(None), "any")


@pytest.mark.parametrize("given", ["https://me:secret@mlflow.example.org", "postgresql://me:secret@db/mlflow"])
def test_a_password_in_the_address_is_refused_and_not_repeated(given):
    with pytest.raises(ConfigError, match="password") as caught:
        profile.locate_mlflow(machine(given))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("given", ["s3://bucket/mlflow", "file:///tmp/mlruns", "sqlite://"])
def test_an_address_that_is_no_tracking_place_is_refused(given):
    with pytest.raises(ConfigError):
        profile.locate_mlflow(machine(given))


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "mlflow.db").touch()
    with pytest.raises(ConfigError, match="is a file"):
        profile.locate_mlflow(machine(str(tmp_path / "mlflow.db")))


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def test_a_server_that_is_down_fails_within_seconds_with_the_ways_out():
    watch = Stopwatch()
    with pytest.raises(ServiceError, match=r"can't be reached: .*[Rr]efused") as caught:
        registry.show(machine(f"http://127.0.0.1:{free_port()}"), "any")
    assert watch.had() < 3
    assert caught.value.exit_code == 6
    assert "machine.mlflow=mlflow" in caught.value.fix
    assert "machine.mlflow=null" in caught.value.fix


def test_a_server_that_accepts_and_never_answers_fails_within_seconds():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        watch = Stopwatch()
        with pytest.raises(ServiceError, match="no answer in 3 s"):
            registry.promote(machine(f"http://127.0.0.1:{silent.getsockname()[1]}"), "any", reason="x")
        assert watch.had() < 6


def test_something_else_on_the_port_is_not_taken_for_mlflow():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)

        def answer() -> None:
            connection, _ = other.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ServiceError, match="not an MLflow server"):
            profile.probe_mlflow(profile.locate_mlflow(machine(f"http://127.0.0.1:{other.getsockname()[1]}")))
        thread.join()


def test_a_database_is_whole_or_not_there(tmp_path):
    """A maker that is killed leaves a file under another name, which the next one throws away."""
    file = tmp_path / "mlflow.db"
    fresh = tmp_path / ".mlflow.db.making"
    maker = subprocess.Popen(
        [sys.executable, "-m", "gemma_ops.registry.database", str(fresh)], stderr=subprocess.DEVNULL
    )
    while not fresh.exists() or fresh.stat().st_size == 0:
        assert maker.poll() is None
        time.sleep(0.01)
    maker.kill()
    maker.wait()
    assert not file.exists()
    database.ensure(file)
    with sqlite3.connect(file) as connection:
        assert connection.execute("select count(*) from alembic_version").fetchone() == (1,)
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    assert not fresh.exists()


def test_a_folder_that_was_moved_is_noticed(tmp_path):
    """MLflow stores absolute paths: written to blindly, the artifacts would land where the folder used to be."""
    profile.connect_mlflow(machine(str(registry_runs.fresh(tmp_path / "before"))))
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    with pytest.raises(MachineError, match="was moved"):
        profile.connect_mlflow(machine(str(tmp_path / "after")))


def test_a_deleted_experiment_says_how_to_get_it_back(tmp_path):
    here = machine(str(registry_runs.fresh(tmp_path / "m")), experiment="trial")
    tracking = profile.connect_mlflow(here)
    tracking.client.delete_experiment(tracking.experiment_id)
    with pytest.raises(ConfigError, match="was deleted"):
        profile.connect_mlflow(here)


def test_a_folder_that_cannot_be_written_is_a_machine_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="can't be made"):
        profile.connect_mlflow(machine(str(tmp_path / "file" / "mlflow")))


def test_importing_the_room_imports_no_mlflow():
    script = (
        "import sys, gemma_ops.registry, gemma_ops.registry.live_mirror as live; from gemma_ops.config import "
        "MachineConfig; live.Mirror(MachineConfig()); assert not [m for m in ('mlflow', 'requests', 'numpy') if m in "
        "sys.modules]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_environment_of_the_user_wins(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    mlflow_environment.set_environment()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
