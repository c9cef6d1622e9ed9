"""The registry against a real MLflow server on loopback, and against everything that can happen to the connection.

One server for the file. What goes wrong goes wrong on the wire: a proxy between client and server that cuts the
connection at the n-th change, after the server has carried it out.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from gemma_ops import registry
from gemma_ops.errors import BusyError, GateError, ServiceError
from gemma_ops.registry import lock, manifest, mlflow_environment, profile, stored
from gemma_ops.runs import journal
from gemma_ops.runs.processes import Birth
from tests.helpers import patience
from tests.helpers import registry_runs as runs

CHANGES = ("POST", "PUT", "PATCH", "DELETE")


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


class Server:
    def __init__(self, folder: Path) -> None:
        port = free_port()
        runs.fresh(folder)
        environment = {**os.environ, **mlflow_environment.ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        stores = [
            "--backend-store-uri",
            f"sqlite:///{folder}/mlflow.db",
            "--artifacts-destination",
            str(folder / "artifacts"),
        ]
        self.log = (folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [*command, *stores], env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        self.uri, self.port, self.folder = f"http://127.0.0.1:{port}", port, folder

    def wait(self) -> None:
        def answers() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "server.log").read_text()[-2000:])
            try:
                profile.probe_mlflow(profile.TrackingPlace("server", self.uri, None))
            except ServiceError:
                return False
            return True

        patience.until(answers, 90, of=self.process.pid, every=0.2)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self.log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    memory = Path("/dev/shm")  # the server flushes its database to the disk at every change: in memory that is free
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else tmp_path_factory.getbasetemp()))
    made = Server(folder)
    try:
        made.wait()
        yield made
    finally:
        made.kill()
        shutil.rmtree(folder)


class Proxy:
    """Forwards to the server. `cut` is the number of the changing request whose answer is withheld; from then on it is
    down (`stays=False`) or goes on as if nothing had happened (`stays=True`)."""

    def __init__(self, server: Server) -> None:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if outer.down:
                    self.connection.close()
                    self.close_connection = True
                    return
                there = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
                there.request(self.command, self.path, body, dict(self.headers))
                answer = there.getresponse()
                content = answer.read()
                there.close()
                if self.command in CHANGES and "/search" not in self.path:
                    outer.changes.append(f"{self.command} {self.path.split('?')[0]}")
                    if len(outer.changes) == outer.cut:
                        outer.down = not outer.stays
                        self.connection.close()
                        self.close_connection = True
                        return
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        self.down, self.cut, self.stays = False, 0, False
        self.changes: list[str] = []
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def proxy(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # as after kill -9: nobody tries again
    made = Proxy(server)
    yield made
    made.close()


def one_version(machine, name):
    """Exactly one version, whole, and no other model of the same manifest."""
    tracking = profile.connect_mlflow(machine)
    (version,) = stored.registered_versions(tracking, name)
    logged = stored.logged_model(tracking, version)
    body = stored.read_manifest(tracking, logged)
    assert stored.compare_bytes(tracking, logged, body) == []
    assert [str(found.status) for found in stored.logged_models(tracking, manifest.check_manifest(body))] == ["READY"]
    return version


def test_mirror_register_promote_roll_back_over_http(server, tmp_path):
    said: list[str] = []
    config = runs.config(tmp_path, server.uri)
    runs.make(config, registry.mirror(config.machine, say=said.append, every=0.05))
    assert said == []
    tracking = profile.connect_mlflow(config.machine)
    record = json.loads((tmp_path / "runs/support/register/mlflow.json").read_text())
    assert record["tracking_uri"] == server.uri
    parent = tracking.client.get_run(record["run_id"])
    assert parent.info.status == "FINISHED"
    (train,) = [run for run in tracking.client.search_runs([tracking.experiment_id]) if run.info.run_name == "train"]
    assert len(tracking.client.get_metric_history(train.info.run_id, "loss")) == 20
    assert "report.html" in {item.path for item in tracking.client.list_artifacts(record["run_id"])}
    one_version(config.machine, "support-nano")
    assert registry.promote(config.machine, "support-nano", reason="first").changed
    second = runs.config(tmp_path, server.uri, name="second", train={"seed": 9})
    made = runs.make(second)
    assert made["register"].metrics["version"] == 2
    champion = made["champion"].path / "model" / "model.gguf"
    assert champion.read_bytes() == (tmp_path / "runs/support/quantize/q8_0/model.gguf").read_bytes()
    done = registry.promote(config.machine, "support-nano", reason="second", expect=1)
    assert (done.previous, done.compared_with, done.overrides) == ("1", "1", ())
    assert registry.promote(config.machine, "support-nano", reason="second").changed is False
    back = registry.rollback(config.machine, "support-nano", reason="complaints")
    assert (back.version, registry.show(config.machine, "support-nano").to_json()["aliases"]) == (
        "1",
        {"champion": "1"},
    )
    kinds = [entry["kind"] for entry in registry.history(config.machine, "support-nano")]
    assert kinds == ["version", "policy", "intent", "done", "version", "intent", "done", "intent", "done"]
    assert lock.TAG not in tracking.client.get_registered_model("support-nano").tags


def test_a_flipped_bit_on_the_server_is_refused(server, tmp_path):
    config = runs.config(tmp_path, server.uri, register={"name": "flipped", "artifacts": ["adapter"]})
    runs.make(config)
    tracking = profile.connect_mlflow(config.machine)
    logged = stored.logged_model(tracking, stored.version(tracking, "flipped", 1))
    (file,) = (server.folder / "artifacts").rglob(f"{logged.model_id}/artifacts/adapter/adapter_model.safetensors")
    body = bytearray(file.read_bytes())
    body[100] ^= 4
    file.write_bytes(body)
    with pytest.raises(GateError, match=r"adapter_model\.safetensors was changed"):
        registry.promote(config.machine, "flipped", reason="x")


def test_a_ledger_in_tags_shows_changes_too(server, tmp_path):
    config = runs.config(tmp_path, server.uri, register={"name": "tagged", "artifacts": ["adapter"]})
    runs.make(config)
    registry.promote(config.machine, "tagged", reason="honest")
    client = profile.connect_mlflow(config.machine).client
    tags = client.get_registered_model("tagged").tags
    client.set_registered_model_tag(
        "tagged", "gemma_ops.ledger.000004", tags["gemma_ops.ledger.000004"].replace("honest", "bribed")
    )
    with pytest.raises(GateError, match="entry 4 was changed"):
        registry.verify_ledger(config.machine, "tagged")


def test_a_lock_of_another_machine_holds_until_it_expires(server, tmp_path):
    config = runs.config(tmp_path, server.uri, register={"name": "locked", "artifacts": ["adapter"]})
    runs.make(config)
    client = profile.connect_mlflow(config.machine).client
    holder = {"id": "x", "host": "elsewhere", "pid": 1, "at": time.time()}
    client.set_registered_model_tag("locked", lock.TAG, json.dumps(holder))
    with pytest.raises(BusyError, match="process 1 on elsewhere"):
        registry.promote(config.machine, "locked", reason="x")
    client.set_registered_model_tag("locked", lock.TAG, json.dumps(holder | {"at": time.time() - lock.EXPIRY - 1}))
    assert registry.promote(config.machine, "locked", reason="x").changed
    with lock.held(profile.connect_mlflow(config.machine), "locked"):
        found = json.loads(client.get_registered_model("locked").tags[lock.TAG])
    assert Birth(found["place"], found["pid"], found["born"]) == Birth.here()
    assert {"id", "host", "pid", "at"} <= found.keys()  # what earlier versions read
    assert lock.TAG not in client.get_registered_model("locked").tags


def changes_of_a_registration(proxy: Proxy, root: Path) -> list[str]:
    """The changing requests that a registration makes, seen on one that goes through."""
    config = runs.config(root, proxy.uri, register={"name": "counted", "artifacts": ["adapter"]})
    profile.connect_mlflow(config.machine)  # whoever comes first makes the experiment, which no later registration does
    proxy.changes.clear()
    runs.make(config)
    return list(proxy.changes)


def telling(changes: list[str]) -> list[int]:
    """Numbers of the changes after which a cut tells something of its own: of files that are sent one after another the
    first and the last."""
    sent = ["mlflow-artifacts" in change for change in changes]
    ends = [not (sent[at] and 0 < at < len(sent) - 1 and sent[at - 1] and sent[at + 1]) for at in range(len(changes))]
    return [number for number, kept in enumerate(ends, 1) if kept]


@pytest.mark.slow
def test_registration_cut_after_any_change_and_repeated_ends_with_one_version(server, proxy, tmp_path):
    """Like kill -9 at that point: the server has done it, the client never learns."""
    changes = changes_of_a_registration(proxy, tmp_path)
    numbers = telling(changes)
    assert 10 <= len(numbers) < len(changes), changes
    artifacts = tmp_path / "runs" / "support"
    for number in numbers:
        name = f"cut-{number}"
        config = runs.config(tmp_path, proxy.uri, name=name, register={"name": name, "artifacts": ["adapter"]})
        copy_steps(artifacts, tmp_path / "runs" / name)
        proxy.changes.clear()
        proxy.cut, proxy.down = number, False
        with pytest.raises(ServiceError):
            runs.make(config)
        proxy.cut, proxy.down = 0, False
        assert runs.make(config)["register"].metrics["version"] == 1, proxy.changes
        one_version(config.machine, name)


def copy_steps(run: Path, copy: Path) -> None:
    """Finished steps of one run as those of another, so that only those are made that know the registered model."""
    copy.mkdir(parents=True)
    for step in ("fetch", "prepare", "train", "quantize"):
        (copy / step).symlink_to(run / step)


def test_a_request_repeated_by_the_http_layer_makes_no_second_version(server, proxy, tmp_path, monkeypatch):
    """The answer to a change is lost, the connection comes back, and the client's own retry sends it again."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0.0")
    runs.make(runs.config(tmp_path, proxy.uri, register={"name": "plain", "artifacts": ["adapter"]}))
    wanted = ("runs/create", "/logged-models", "model-versions/create", "registered-models/create")
    places = [number for number, line in enumerate(proxy.changes, start=1) if line.endswith(wanted)]
    assert len(places) == 4, proxy.changes
    proxy.stays = True
    for number in places:
        name = f"again-{number}"
        config = runs.config(tmp_path, proxy.uri, name=name, register={"name": name, "artifacts": ["adapter"]})
        copy_steps(tmp_path / "runs" / "support", tmp_path / "runs" / name)
        proxy.changes.clear()
        proxy.cut = number
        runs.make(config)
        assert len(proxy.changes) > number
        one_version(config.machine, name)
        tracking = profile.connect_mlflow(config.machine)
        assert (
            len([run for run in tracking.client.search_runs([tracking.experiment_id]) if run.info.run_name == name])
            == 1
        )


@pytest.mark.slow
def test_promotion_cut_after_any_change_and_repeated_is_done_once(server, proxy, tmp_path):
    config = runs.config(tmp_path, proxy.uri, register={"name": "moved", "artifacts": ["adapter"]})
    runs.make(config)
    runs.make(
        runs.config(
            tmp_path, proxy.uri, name="other", train={"seed": 5}, register={"name": "moved", "artifacts": ["adapter"]}
        )
    )
    proxy.changes.clear()
    registry.promote(config.machine, "moved", version=1, reason="start")
    total = len(proxy.changes)
    assert total == 7, "lock, intent, anchor, alias, done, anchor, unlock"
    trial = {"reason": "again", "override": "these versions were not compared with each other"}
    at = 1
    for number in range(1, total + 1):
        at = 3 - at
        proxy.changes.clear()
        proxy.cut, proxy.down = number, False
        with pytest.raises(ServiceError):
            registry.promote(config.machine, "moved", version=at, **trial)
        proxy.cut, proxy.down = 0, False
        done = registry.promote(config.machine, "moved", version=at, **trial)
        assert done.version == str(at)
        shown = registry.show(config.machine, "moved").to_json()
        assert (shown["aliases"], shown["interrupted"], shown["moved_without_ledger"]) == (
            {"champion": str(at)},
            [],
            [],
        )
        came_true = [entry["to"] for entry in registry.history(config.machine, "moved") if entry["kind"] == "done"]
        assert came_true[-2:] == [str(3 - at), str(at)], "once, not twice"


def test_a_server_that_goes_away_in_the_middle_costs_the_run_nothing(server, proxy, tmp_path):
    """Down while it trains, back before the end: every record arrives."""
    config = runs.config(tmp_path, proxy.uri, name="outage")
    said: list[str] = []
    waits: list[float] = []

    def train(out, settings, machine, *, base, data):
        wait_for(lambda: '"prepare"' in (tmp_path / "runs/outage/mlflow.json").read_text())
        proxy.down = True
        for step in range(1, 301):
            watch = patience.Stopwatch()
            journal.record(step=step, loss=1.0 / step)
            waits.append(watch.had())
        time.sleep(0.5)
        proxy.down = False
        return runs.train(out, settings, machine, base=base, data=data)

    runs.make(
        config, registry.mirror(config.machine, say=said.append, every=0.05), steps={"train": train}, until="train"
    )
    assert said == []
    assert max(waits) < 0.5
    tracking = profile.connect_mlflow(config.machine)
    state = json.loads((tmp_path / "runs/outage/mlflow.json").read_text())[proxy.uri]
    history = tracking.client.get_metric_history(state["steps"]["train"]["run_id"], "loss")
    assert len(history) == 320
    assert tracking.client.get_run(state["run_id"]).info.status == "FINISHED"


def wait_for(condition, seconds: float = 30.0) -> None:
    def there() -> bool:
        try:
            return condition()
        except FileNotFoundError:
            return False

    patience.until(there, seconds)


def test_killed_for_good_the_run_ends_well_and_says_what_is_missing(server, tmp_path):
    """Last in this file: the server itself is killed."""
    config = runs.config(tmp_path, server.uri, name="widow")
    said: list[str] = []

    def train(out, settings, machine, *, base, data):
        wait_for(lambda: '"prepare"' in (tmp_path / "runs/widow/mlflow.json").read_text())
        server.kill()
        return runs.train(out, settings, machine, base=base, data=data)

    watch = patience.Stopwatch()
    artifacts = runs.make(
        config, registry.mirror(config.machine, say=said.append, every=0.05), steps={"train": train}, until="train"
    )
    assert artifacts["train"].metrics["loss"] == 0.2
    assert watch.had() < 30
    (line,) = said
    assert "can't be reached" in line
    assert "records of" in line
    assert "the same command sends them" in line
    watch = patience.Stopwatch()
    with pytest.raises(ServiceError):
        runs.make(config, registry.mirror(config.machine))
    assert watch.had() < 5, "the next run stops before it spends anything"
    home = runs.config(tmp_path, name="widow")
    runs.make(home, registry.mirror(home.machine, say=said.append))
    assert len(said) == 1
    assert registry.show(home.machine, "support-nano").to_json()["versions"][0]["verdict"] == "pass"
