"""Two rights on a real MLflow server with users: who registers may not promote to production, who promotes may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from gemma_ops import registry
from gemma_ops.errors import OpsError
from gemma_ops.registry import mlflow_environment, profile
from tests.helpers import patience
from tests.helpers import registry_runs as runs
from tests.registry.test_mlflow_server import free_port

pytest.importorskip("flask_wtf", reason="MLflow's users need flask-wtf")
NAME, PROD = "support-nano", "support-nano-prod"
ADMIN, SECRET = "admin", "correct-horse-battery-9"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = runs.fresh(tmp_path_factory.mktemp("auth"))
    port = free_port()
    settings = folder / "auth.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = READ\n"
        f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = {ADMIN}\nadmin_password = {SECRET}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 60\n"
    )
    given = {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_AUTH_ADMIN_PASSWORD": SECRET,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1", "--port",
        str(port),
        "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        command,
        env={**os.environ, **mlflow_environment.ENVIRONMENT, **given},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    uri = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError((folder / "server.log").read_text()[-2000:])
        try:
            return requests.get(f"{uri}/health", timeout=2).ok
        except requests.ConnectionError:
            return False

    try:
        patience.until(answers, 90, of=process.pid, every=0.2)
        yield uri
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def act_as(monkeypatch, user, secret):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", secret)


def grant(uri, user, model):
    from mlflow.server import get_app_client

    get_app_client("basic-auth", tracking_uri=uri).grant_user_permission(user, "registered_model", model, "EDIT")


@pytest.mark.slow
def test_who_registers_may_not_promote_to_production_and_who_promotes_may(server, tmp_path, monkeypatch):
    people = {"trainer": "trains-models-all-day-1", "promoter": "promotes-now-and-then-2"}
    for user, secret in people.items():
        made = requests.post(
            f"{server}/api/2.0/mlflow/users/create", json={"username": user, "password": secret},
            auth=(ADMIN, SECRET), timeout=60,
        )  # fmt: skip
        assert made.ok, made.text
    config = runs.config(tmp_path, server)
    act_as(monkeypatch, "trainer", people["trainer"])
    runs.make(config)
    assert registry.promote(config.machine, NAME, reason="the trainer's own").changed
    act_as(monkeypatch, ADMIN, SECRET)
    profile.connect_mlflow(config.machine).client.create_registered_model(PROD)
    grant(server, "promoter", PROD)

    act_as(monkeypatch, "trainer", people["trainer"])
    with pytest.raises(OpsError, match="403"):
        registry.promote(config.machine, NAME, to=PROD, reason="let me")
    act_as(monkeypatch, "promoter", people["promoter"])
    with pytest.raises(OpsError, match="403"):
        registry.promote(config.machine, NAME, to="challenger", reason="let me")
    done = registry.promote(config.machine, NAME, to=PROD, reason="checked")
    assert (done.name, done.version) == (PROD, "1")
    assert not registry.audit(config.machine, PROD).problems
    monkeypatch.setenv("GEMMA_OPS_CACHE", str(tmp_path / "cache"))
    from gemma_ops.registry.fetching import pull_version

    assert pull_version(config.machine, f"{PROD}@champion", Path(tmp_path / "copy")).version == "1"
