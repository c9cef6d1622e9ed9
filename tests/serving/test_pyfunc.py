"""A registered version answers through MLflow's own tools, and where no registry is reached; nothing in it is run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from gemma_ops import registry
from gemma_ops.config import ServeConfig
from gemma_ops.errors import ConfigError, DataError, GateError
from gemma_ops.nano import tickets
from gemma_ops.registry import flavor
from gemma_ops.registry.fetching import pull_version
from gemma_ops.runs import digest
from gemma_ops.serving.copied import open_copy
from gemma_ops.serving.pyfunc import _load_pyfunc
from tests.helpers import patience
from tests.helpers.live_server import make_files, register, serving

ASKED = tickets.test_rows(1, 0)[0]["prompt"]
QUESTION = [{"role": "user", "content": ASKED}]


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    """The machine where support-nano has a champion, and a pulled copy of it."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("pyfunc")
        patch.setenv("GEMMA_OPS_CACHE", str(root / "cache"))
        (root / "gguf").mkdir()
        machine = register(root, make_files(root / "gguf"), "q8_0")
        registry.promote(machine, "support-nano", reason="first")
        pull_version(machine, "support-nano@champion", root / "copy")
        yield machine, root / "copy"


@pytest.fixture
def at_mlflow(champion, monkeypatch):
    import mlflow

    machine, _ = champion
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{machine.mlflow}/mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{machine.mlflow}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(before)


def test_what_mlflow_loads_answers_as_the_server_does(champion, at_mlflow):
    import pandas as pd

    machine, copy = champion
    config = {"format": "q8_0", "context": 256, "slots": 2}
    loaded = at_mlflow.pyfunc.load_model("models:/support-nano@champion", model_config=config)
    try:
        with serving(str(copy), machine=machine, form=None) as live:
            body = {"model": "support-nano", "messages": QUESTION, "max_tokens": 8, "temperature": 0}
            served = httpx2.post(f"{live.url}/v1/chat/completions", json=body, timeout=60).json()
        said = served["choices"][0]["message"]["content"]
        found = loaded.predict({"messages": QUESTION, "max_tokens": 8, "temperature": 0})
        assert found["choices"] == served["choices"]
        assert found["usage"]["completion_tokens"] == 8  # what the conversation says of its length holds
        assert found["usage"]["completion_tokens"] == served["usage"]["completion_tokens"] > 0
        params = {"max_tokens": 8, "temperature": 0}
        assert loaded.predict([ASKED] * 5, params) == [said] * 5
        for column, value in (("messages", QUESTION), ("messages", json.dumps(QUESTION)), ("prompt", ASKED)):
            assert loaded.predict(pd.DataFrame({column: [value], "other": [1]}), params) in ([said], [found])
        served, loop = loaded._model_impl, loaded._model_impl._loop
        loop._process -= 1  # as in a process that was forked: its thread is in the other one
        with pytest.raises(at_mlflow.MlflowException, match="load it again in this process"):
            served.predict([ASKED])
        served.close()
        loop._process += 1
        assert served.predict([ASKED], params) == [said]
    finally:
        loaded._model_impl.close()
    with pytest.raises(at_mlflow.MlflowException, match="was closed"):
        served.predict({"messages": QUESTION})


def test_mlflows_own_server_answers(champion):
    """`mlflow models serve`, as its users start it."""
    machine, _ = champion
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    place = f"sqlite:///{machine.mlflow}/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/support-nano@champion"]
    command += ["--env-manager", "local", "-p", str(port), "--workers", "1"]
    config = json.dumps({"context": 256, "slots": 1})
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it starts uvicorn by name
    more = {"MLFLOW_TRACKING_URI": place, "MLFLOW_PYFUNC_INFERENCE_CONFIG": config, "PATH": path}
    quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
    child = subprocess.Popen(command, env=os.environ | more, **quiet)
    url = f"http://127.0.0.1:{port}"
    try:
        patience.until(lambda: _there(f"{url}/ping"), 120, of=child.pid)
        body = {"messages": QUESTION, "max_tokens": 4, "temperature": 0.0}
        found = httpx2.post(f"{url}/invocations", json=body, timeout=60).json()
        assert found["object"] == "chat.completion"
        assert found["choices"][0]["message"]["content"]
        texts = httpx2.post(f"{url}/invocations", json={"inputs": [ASKED], "params": {"max_tokens": 4}}, timeout=60)
        assert len(texts.json()["predictions"]) == 1
        refused = httpx2.post(f"{url}/invocations", json={"messages": [{"role": "robot", "content": "x"}]}, timeout=60)
        assert refused.status_code == 400
        assert "robot" in refused.json()["message"]
    finally:
        os.killpg(child.pid, 15)
        patience.until(lambda: child.poll() is not None, 60)


def _there(url):
    try:
        return httpx2.get(url, timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def test_a_copy_that_was_changed_is_not_loaded(champion, tmp_path):
    import shutil

    _, copy = champion

    def changed(name, body):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(copy, folder)
        (folder / name).write_bytes(body)
        return str(folder)

    weights = bytearray((copy / "quantized/q8_0/model.gguf").read_bytes())
    weights[-1] ^= 1
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["subject"]["name"] = "other"
    empty = {"schema": manifest["schema"], "subject": {}, "digest": digest.of_json({})}
    for name, body, why in (
        ("quantized/q8_0/model.gguf", weights, "integrity: .*model.gguf was changed"),
        ("verdict.json", b"{}", "integrity: .*verdict.json was changed"),
        ("tokenizer/chat_template.jinja", b"{{ 1 }}", "integrity: .*chat_template.jinja was changed"),
        ("manifest.json", json.dumps(manifest).encode(), "integrity: .*the manifest was changed"),
        ("manifest.json", json.dumps(empty).encode(), "integrity: .*lists no files"),
        ("tokenizer/generation_config.json", b"{}", "integrity: .*would be loaded too"),
        ("quantized/q8_0/further.gguf", b"{}", "integrity: .*would be loaded too"),
    ):
        with pytest.raises(GateError, match=why):
            _load_pyfunc(changed(name, body), {"format": "q8_0"})
    with pytest.raises(DataError, match="can't be read"):
        _load_pyfunc(changed("manifest.json", b"[1]"), {})
    shutil.copytree(copy, tmp_path / "one")
    (tmp_path / "one/quantized/q8_0/model.gguf").unlink()  # as `pull --only q4_0` leaves it
    assert open_copy(tmp_path / "one", ServeConfig(), ()).format == "q4_0"
    with pytest.raises(ConfigError, match=r"model_config: .*slots"):
        _load_pyfunc(str(copy), {"slots": 0})
    with pytest.raises(GateError, match="it is not signed"):
        _load_pyfunc(str(copy), {"trusted_keys": ["release.pub"]})


def test_a_description_that_loads_other_code_is_told(champion, tmp_path):
    """MLflow imports whatever module the file names: promotion and audit refuse another than ours."""
    path = tmp_path / "MLmodel"
    flavor.write_mlmodel(path, "support-nano")
    assert flavor.mlmodel_problem(path) is None
    good = path.read_text()
    for before, after in (
        (flavor.LOADER, "os"),
        ("loader_module:", "code: src\n    loader_module:"),
        ("flavors:\n", "flavors:\n  sklearn: {pickled_model: model.pkl}\n"),
        ("flavors:", "flavours:"),
        ("flavors:", "\tflavors:"),
    ):
        path.write_text(good.replace(before, after))
        assert flavor.mlmodel_problem(path), after
