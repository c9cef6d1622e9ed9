"""The server as a Ray Serve application, on a Ray of this machine: both clients, the death of a replica, a canary that
fails."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import httpx2
import openai
import psutil
import pytest
from google import genai
from google.genai import types

from gemma_ops.config import MachineConfig, RunConfig, ServeConfig
from gemma_ops.errors import ConfigError, GateError
from gemma_ops.nano import WEIGHTS
from tests.helpers import patience
from tests.helpers.live_server import make_files, record

pytest.importorskip("ray.serve", reason="Ray Serve, of the extra `ray`, is not installed")

import ray
from ray import serve

from gemma_ops.serving import rayserve
from gemma_ops.serving.open_source import open_source

SETS = ["name=served", "serve.replicas=2", "serve.slots=2", "serve.context=8192", "machine.workers=1"]


def free_port():
    """One below those that the system gives out, of which Ray takes dozens."""
    while True:
        with suppress(OSError), socket.create_server(("127.0.0.1", random.randrange(20_000, 30_000))) as free:
            return free.getsockname()[1]


def replicas():
    """Processes that hold an engine, and the engines themselves, by the number of the process."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::ServeReplica:served:server"):
            found[process.pid] = [child.pid for child in process.children()]
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return f"{make_files(tmp_path_factory.mktemp('gguf'))}/q8_0/model.gguf@{WEIGHTS}"


@pytest.fixture(scope="module")
def url(source):
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="gops-") as scratch:
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False,
            object_store_memory=80 << 20, _node_ip_address="127.0.0.1", _temp_dir=scratch,
        )  # fmt: skip
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(rayserve.app({"source": source, "sets": SETS}), name="served")
            yield f"http://127.0.0.1:{port}"
            patience.until(lambda: sum(map(len, replicas().values())) == 2, 60)  # one that died is back
            engines = [pid for pids in replicas().values() for pid in pids]
            serve.shutdown()
            patience.until(lambda: not any(psutil.pid_exists(pid) for pid in engines), 30)
        finally:
            ray.shutdown()


@pytest.fixture
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


def endless(client, text):
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 3000}
    shape = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": numbers}}
    stream = client.chat.completions.create(
        model="model", messages=user(text), response_format=shape, stream=True, max_tokens=8000
    )
    next(iter(stream))
    return stream


@pytest.mark.slow
def test_both_clients_are_answered_and_streams_come_in_pieces(url, client):
    whole = client.chat.completions.create(model="model", messages=user("Hello"), temperature=0, max_tokens=24)
    parts = list(
        client.chat.completions.create(model="model", messages=user("Hello"), temperature=0, max_tokens=24, stream=True)
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert len(parts) > 3
    google = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=url))
    config = types.GenerateContentConfig(temperature=0, max_output_tokens=24)
    assert google.models.generate_content(model="model", contents="Hello", config=config).text == (
        whole.choices[0].message.content
    )
    with pytest.raises(openai.BadRequestError, match="all that prompt and reply may have"):
        client.chat.completions.create(model="model", messages=user("long " * 9000))
    assert httpx2.get(f"{url}/ready").json()["status"] == "ready"
    parts = list(google.models.generate_content_stream(model="model", contents="Hello", config=config))
    assert "".join(part.text or "" for part in parts) == whole.choices[0].message.content


@pytest.mark.slow
def test_a_client_that_goes_ends_its_work(url, client):
    with ThreadPoolExecutor(2) as pool:
        for stream in pool.map(lambda text: endless(client, text), ("one", "two")):
            stream.close()
    idle = [
        f'gemma_ops_queue{{model="model",version="",format="",state="{state}"}} 0' for state in ("running", "waiting")
    ]

    def quiet():
        told = [httpx2.get(f"{url}/metrics").text for _ in range(8)]  # whichever replica tells
        return all(line in text for text in told for line in idle)

    patience.until(quiet, 20)


@pytest.mark.slow
def test_a_replica_that_is_killed_fails_only_what_it_was_saying(url, client):
    before = replicas()
    assert len(before) == 2
    streams = [endless(client, text) for text in ("one", "two")]
    busy = busiest(before)
    with ThreadPoolExecutor(8) as pool:

        def ask(number):
            return client.chat.completions.create(model="model", messages=user(f"go {number}"), max_tokens=4).choices

        asked = [pool.submit(ask, number) for number in range(8)]
        os.kill(busy, signal.SIGKILL)
        ends = list(pool.map(ended, streams))
        assert all(one.result() for one in asked)
    said = "the replica that answered has ended; send the request again"
    assert said in ends
    assert set(ends) <= {said, ""}
    patience.until(lambda: len(replicas()) == 2 and replicas().keys() != before.keys(), 60)


def busiest(found):
    """The replica whose engine computes most just now."""

    def spent():
        return {pid: sum(psutil.Process(engine).cpu_times().user for engine in found[pid]) for pid in found}

    before = spent()
    return patience.until(lambda: next((pid for pid, now in spent().items() if now > before[pid] + 0.05), None), 30)


def ended(stream):
    """What a stream that goes on for long ends with: nothing, or the error that it told."""
    try:
        for _ in stream:
            pass
    except openai.APIError as error:
        return error.message
    return ""


@pytest.mark.slow
def test_an_engine_that_dies_in_its_replica_is_started_again_and_the_request_waits(url, client):
    for engines in replicas().values():
        for pid in engines:
            os.kill(pid, signal.SIGKILL)
    assert client.chat.completions.create(model="model", messages=user("a"), max_tokens=2).choices


@pytest.mark.slow
def test_what_a_cluster_cant_keep_is_refused(source):
    for more, why in (
        ("serve.challenger.share=0.1", "serve.challenger"),
        ("serve.certificate=a.pem", "HTTPS|certificate"),
    ):
        with pytest.raises(ConfigError, match=why):
            rayserve.app({"source": source, "sets": [*SETS, more]})
    with pytest.raises(ConfigError, match="source: Field required; sauce: Extra inputs"):
        rayserve.app({"sauce": "x"})


def test_one_whose_canary_fails_never_comes_up(source, tmp_path, monkeypatch):
    rows = [{"messages": user("Hello"), "ids": [1], "max_new_tokens": 4, "answers": {"q8_0": "Hi"}}]
    found = replace(
        open_source(source, MachineConfig(), ServeConfig()),
        canary=record(tmp_path / "canary.json", rows),
        format="q8_0",
    )
    monkeypatch.setattr(rayserve, "open_source", lambda *_: found)
    replica = object.__new__(rayserve.ServerReplica)
    with pytest.raises(GateError, match="1 of 1 prompts are not those of the evaluation"):
        asyncio.run(replica.__init__("any", MachineConfig(), ServeConfig(context=256, slots=1)))
    assert not hasattr(replica, "_front")


def test_offline_goes_along(source):
    """In every process that Ray starts for the application, the variables hold that hold here."""
    made = rayserve.bind_app(source, RunConfig(name="served", offline=True))
    front, server = made._bound_deployment, made._bound_deployment.init_args[1]._bound_deployment
    for deployment in (front, server):
        assert deployment.ray_actor_options["runtime_env"]["env_vars"]["GEMMA_OPS_OFFLINE"] == "1"
