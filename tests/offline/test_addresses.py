"""This machine is a literal loopback address and stays it: names that lead elsewhere, redirects, proxies, servers that
only look like our emulator, and files for a tracking server that isn't here."""

from __future__ import annotations

import json
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from gemma_ops.answer import Prompt
from gemma_ops.config import EvaluateConfig, GeminiConfig, MachineConfig, RunConfig
from gemma_ops.emulator import Emulator
from gemma_ops.errors import BoundaryError, BudgetError, ServiceError
from gemma_ops.evaluation import elsewhere, evaluate_step
from gemma_ops.gemini import handshake, open_gemini
from gemma_ops.gemini.cache import store_path
from gemma_ops.gemini.courier import Courier
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.service_access import endpoint, rehearsal
from gemma_ops.offline import addresses
from gemma_ops.registry import detours, manifest, mlflow_environment, profile, staging
from gemma_ops.targets.endpoint_target import Endpoint
from gemma_ops.targets.spec import parse_target
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.evaluations import Echo, make_task

CHAT = {
    "choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
GENERATED = {
    "candidates": [{"content": {"parts": [{"text": "ok"}], "role": "model"}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 1, "totalTokenCount": 6},
    "modelVersion": "gemini-3.8-flash",
}


class Listener:
    """A server on loopback that keeps what it gets: path, headers, body. `reply(path)` gives status, headers and
    body."""

    def __init__(self, reply=lambda _: (200, {}, CHAT), host="127.0.0.1", family=socket.AF_INET):
        self.got = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                listener.got.append((self.path, dict(self.headers), body))
                status, headers, said = reply(self.path)
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(data)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_CONNECT = answer  # noqa: N815  (names of http.server)

        kind = type("Server", (ThreadingHTTPServer,), {"address_family": family, "daemon_threads": True})
        self.server = kind((host, 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def port(self):
        return self.server.server_address[1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def names(monkeypatch):
    """A resolver of our own: names in the dictionary lead to the addresses it says, everything else where it always
    did."""
    known = {}
    real = socket.getaddrinfo

    def look(host, port, *more, **options):
        if host not in known:
            return real(host, port, *more, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0)) for address in known[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look)
    return known


def ask(url, text="kept here", **machine):
    target = Endpoint(parse_target(f"openai:{url}/v1#qwen3"), MachineConfig(**machine))
    try:
        ((answer,),) = target.answer(
            [[Prompt(({"role": "user", "content": text},), "local_only", "r1")]], max_new_tokens=5
        )
    finally:
        target.close()
    return target, answer


def test_a_name_below_localhost_is_here_only_while_it_leads_here(names):
    names.update(
        {"lm.localhost": ["192.0.2.9"], "both.localhost": ["127.0.0.1", "192.0.2.9"], "here.localhost": ["127.0.0.1"]}
    )
    for name, found in {
        "lm.localhost": (),
        "both.localhost": (),
        "here.localhost": ("127.0.0.1",),
        "example.com": (),
    }.items():
        assert addresses.loopback_addresses(name) == found
        target = Endpoint(parse_target(f"openai:http://{name}:9/v1#qwen3"), MachineConfig())
        assert ("local_only" in target.sees) == bool(found)
        assert target.place == ("stays here" if found else f"sent: {name}")
        target.close()
    assert addresses.loopback_addresses("0.0.0.0") == ("127.0.0.1",)
    assert addresses.loopback_addresses("[::1]") == ("::1",)
    assert addresses.loopback_addresses("") == ()


def test_an_endpoint_itself_refuses_what_it_may_not_see():
    """Whoever asks it: the callers look first, and this is the door."""
    with Listener() as server:
        url = f"http://127.0.0.1:{server.port}"
        with pytest.raises(BoundaryError, match="1 of 1 rows of what is to be asked are local_only"):
            ask(url, endpoints=[{"url": f"{url}/v1", "privacy": "paid"}])
        assert not server.got
        assert ask(url)[1].text == "ok"


def test_what_was_found_here_stays_here_when_the_name_moves(names):
    names["lm.localhost"] = ["127.0.0.1"]
    with Listener() as server:
        target = Endpoint(parse_target(f"openai:http://lm.localhost:{server.port}/v1#qwen3"), MachineConfig())
        names["lm.localhost"] = ["192.0.2.9"]
        ((answer,),) = target.answer(
            [[Prompt(({"role": "user", "content": "x"},), "local_only", "r")]], max_new_tokens=5
        )
        target.close()
        assert answer.text == "ok"
        assert server.got[0][1]["Host"] == f"lm.localhost:{server.port}"


def test_the_second_address_of_a_name_is_tried(names):
    names["localhost"] = ["127.0.0.9", "127.0.0.1"]
    with Listener() as server:
        assert ask(f"http://localhost:{server.port}")[1].text == "ok"


def test_a_redirect_is_never_followed_by_an_endpoint(monkeypatch):
    monkeypatch.setenv("LM_KEY", "key-of-the-endpoint")
    with (
        Listener() as other,
        Listener(lambda path: (307, {"Location": f"http://127.0.0.1:{other.port}{path}"}, {})) as first,
    ):
        url = f"http://127.0.0.1:{first.port}"
        with pytest.raises(BoundaryError, match=rf"307, which sends requests on to http://127.0.0.1:{other.port}"):
            ask(url, endpoints=[{"url": f"{url}/v1", "privacy": "local_only", "api_key_env": "LM_KEY"}])
        assert len(first.got) == 1
        assert not other.got


def gemini(folder, port, **more):
    settings = {"accept_terms": "2026-03-23", "tier": "paid", "budget_usd": 1.0, "batch": "never"}
    settings |= {"base_url": f"http://127.0.0.1:{port}", "attempts": 1, **more}
    return MachineConfig(runs=str(folder / "runs"), mlflow=None, gemini=GeminiConfig(**settings))


REQUEST = Request("gemini-3.8-flash", ({"role": "user", "content": "where to?"},), 64, "evaluate", privacy="any")


def test_a_redirect_takes_neither_body_nor_key_of_gemini_along(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Listener(lambda _: (200, {}, GENERATED)) as other:
        location = {"Location": f"http://127.0.0.1:{other.port}/v1/models"}
        with Listener(lambda path: (404 if path.startswith(handshake.PATH) else 308, location, {})) as first:
            door = open_gemini(gemini(tmp_path, first.port), run="r")
            with pytest.raises(BoundaryError, match="308, which sends requests on"):
                door.ask([REQUEST])
            assert door._ledger.spent().total == 0  # nobody served it
            door.close()
        assert not other.got


def test_an_upload_goes_where_the_requests_go(monkeypatch, tmp_path):
    """The service says where a batch's file is to be uploaded; a server that names another place gets nothing sent
    there."""
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Listener() as other:
        away = {"x-goog-upload-url": f"http://127.0.0.1:{other.port}/upload", "x-goog-upload-status": "active"}
        with Listener(lambda path: (404 if path.startswith(handshake.PATH) else 200, away, {})) as first:
            door = open_gemini(gemini(tmp_path, first.port, batch="always"), run="r")
            with pytest.raises(BoundaryError, match="which nobody named"):
                door.ask([REQUEST])
            door.close()
            assert first.got
        assert not other.got


def test_a_proxy_of_the_environment_is_left_aside_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Listener(lambda _: (502, {}, {})) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv(name, "")
        with Listener() as server:
            assert ask(f"http://127.0.0.1:{server.port}")[1].text == "ok"
        with Listener(lambda path: (200, {}, b"OK") if path == "/health" else (200, {}, GENERATED)) as server:
            with open_gemini(gemini(tmp_path, server.port), run="r") as door:
                assert door.ask([REQUEST])[0].text == "ok"
            place = profile.locate_mlflow(MachineConfig(mlflow=f"http://127.0.0.1:{server.port}"))
            profile.probe_mlflow(place)
            detours.spare_proxies("127.0.0.1")  # what `connect` does before MLflow, which asks through `requests`
            assert requests.get(f"{place.uri}/health", timeout=5).text == "OK"
        assert not proxy.got
        with pytest.raises(ServiceError):  # the way out still passes it
            profile.probe_mlflow(profile.TrackingPlace("server", "http://mlflow.example.org", None))
        assert proxy.got


def test_a_tracking_server_that_sends_on_is_not_followed():
    with Listener(lambda _: (200, {}, b"OK")) as other:
        with Listener(lambda _: (302, {"Location": f"http://127.0.0.1:{other.port}/health"}, {})) as first:
            place = profile.TrackingPlace("server", f"http://127.0.0.1:{first.port}", None)
            with pytest.raises(ServiceError, match="/health answered 302"):
                profile.probe_mlflow(place)
        assert not other.got
    assert mlflow_environment.ENVIRONMENT["MLFLOW_ALLOW_HTTP_REDIRECTS"] == "false"


def test_only_what_proves_to_be_our_emulator_is_a_rehearsal(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    forged = lambda path: (200, {}, b"0" * 64 if path.startswith(handshake.PATH) else GENERATED)  # noqa: E731
    for reply in (forged, lambda _: (200, {}, GENERATED)):
        with Listener(reply) as server:
            machine = gemini(tmp_path, server.port)
            assert not rehearsal(machine.gemini)
            assert endpoint(machine.gemini) == f"http://127.0.0.1:{server.port}"
            assert store_path(machine).name == "gemini.sqlite"
            unlimited = machine.model_copy(update={"gemini": machine.gemini.model_copy(update={"budget_usd": None})})
            with open_gemini(unlimited, run="r") as door, pytest.raises(BudgetError):
                door.ask([REQUEST])
            words = [path for path, *_ in server.got]
            assert words
            assert all(path.startswith(handshake.PATH) for path in words)
    with Emulator() as emulator:
        machine = machine_for(emulator, tmp_path)
        assert rehearsal(machine.gemini)
        assert store_path(machine).name == "gemini.rehearsal.sqlite"
        port = int(emulator.url.rpartition(":")[2])
    assert rehearsal(machine.gemini)  # gone: nobody is there to be told anything
    said = []
    assert handshake.answer_challenge("/v1/models") is None
    with socket.create_server(("127.0.0.1", port)) as another:
        another.settimeout(10)

        def reply():
            connection, _ = another.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            connection.close()

        for _ in range(2):
            threading.Thread(target=reply, daemon=True).start()
        assert not rehearsal(machine.gemini)  # whoever took its place must prove itself anew
        opening = {"gemini": machine.gemini.model_dump(mode="json"), "ledger": str(tmp_path / "l.sqlite"), "run": "r"}
        with pytest.raises(ServiceError, match="it was an emulator a moment ago"):
            Courier({**opening, "caps": [1, None], "since": 0.0, "rehearsal": True}, said.append)


@pytest.mark.parametrize(
    ("uri", "environment", "hosts"),
    [
        ("sqlite:///x.db", {}, []),
        ("postgresql://localhost/m", {}, []),
        ("postgresql+psycopg://db.example.org/m", {}, ["db.example.org"]),
        ("postgresql://127.0.0.1:5432,10.0.0.7:5432/m", {}, ["10.0.0.7"]),
        ("postgresql:///m?host=10.0.0.8", {}, ["10.0.0.8"]),
        ("postgresql:///m?host=%2Fvar%2Frun%2Fpostgresql", {}, []),
        ("postgresql://localhost/m?hostaddr=10.0.0.9", {}, ["10.0.0.9"]),
        ("postgresql:///m", {}, []),
        ("postgresql:///m", {"PGHOST": "db.example.org"}, ["db.example.org"]),
        ("postgresql:///m", {"PGHOST": "/run/postgresql"}, []),
        ("postgresql:///m", {"PGSERVICE": "prod"}, ["whatever PGSERVICE names"]),
        ("postgresql:///m?service=prod", {}, ["whatever service names"]),
        ("postgresql://[2001:db8::1]:5432/m", {}, ["[2001:db8::1]"]),
        ("postgresql://[::1]:5432/m", {}, []),
        ("mysql+pymysql://u@10.0.0.4:3306/m", {}, ["10.0.0.4"]),
        ("mysql://localhost/m?read_default_file=~/.my.cnf", {}, ["whatever read_default_file names"]),
        ("mssql+pyodbc://?odbc_connect=x", {}, ["whatever odbc_connect names"]),
    ],
)  # fmt: skip
def test_the_hosts_behind_a_databases_address(uri, environment, hosts):
    assert addresses.database_hosts(uri, environment) == hosts


def test_a_tracking_place_leaves_the_machine_by_its_host_its_database_or_its_store():
    def leaves(uri, stores=""):
        place = profile.locate_mlflow(MachineConfig(mlflow=uri))
        return profile.Tracking(None, place, "1", stores).leaves_machine

    assert not leaves("http://127.0.0.1:5000", "mlflow-artifacts:/1")
    assert leaves("http://mlflow.localhost:5000")
    assert leaves("postgresql:///m?host=10.0.0.8")
    assert not leaves("postgresql://localhost/m", "file:///data")
    assert leaves("postgresql://localhost/m", "s3://bucket/x")


def test_what_another_machine_is_shown_holds_no_word_of_a_private_row(tmp_path):
    rows = [
        {"id": f"q{n}", "prompt": f"question {n} ", "reference": f"a{n % 3}",
            "place": ["Zeppelinheim", "Klinik Nord"][n % 2], "size": n}
        for n in range(12)
    ]  # fmt: skip
    task = make_task(
        tmp_path / "wards", rows=rows, privacy="local_only",
        slices=["place", {"name": "size", "field": "size", "buckets": [6]}],
        metrics=[{"id": "exact_match"}, {"id": "choice_accuracy"}],
    )  # fmt: skip
    out = tmp_path / "runs" / "r" / "evaluate"
    out.mkdir(parents=True)
    config = EvaluateConfig(targets=("base", "tuned"))
    service = Echo("tuned", 9)
    service.place = "sent: paid, not logged"
    loaded = evaluate_step.load_checked(config, (task,), None)
    facts = {
        "targets": {n: {"identity": n, "place": p} for n, p in (("base", "stays here"), ("tuned", service.place))},
        "data": {},
    }
    evaluate_step.run_evaluation(out, config, loaded, [Echo("base", 3), service], facts, batch=4)
    mine = json.loads((out / "verdict.json").read_text())
    theirs = json.loads((out / elsewhere.FOLDER / "verdict.json").read_text())
    assert [line["bucket"] for line in mine["results"][0]["slices"]["place"]] == ["Klinik Nord", "Zeppelinheim"]
    assert [line["bucket"] for line in theirs["results"][0]["slices"]["place"]] == ["value 1", "value 2"]
    assert theirs["results"][0]["slices"]["size"] == mine["results"][0]["slices"]["size"]
    assert mine["routing"]
    sent = "".join(path.read_text() for path in (out / elsewhere.FOLDER).iterdir())
    for word in ("Zeppelin", "Klinik", '"a0"', '"a1"'):
        assert word in json.dumps(mine)
        assert word not in sent
    kept = [
        line["value"] for table in theirs["routing"]["tables"] for line in table["lines"] if line["slice"] == "place"
    ]
    assert kept == ["value 1", "value 2"]
    # The version on another machine carries that one, and its manifest speaks of it.
    for leaves, part in ((True, elsewhere.FOLDER), (False, ".")):
        (tmp_path / f"q{leaves}/q8_0").mkdir(parents=True)
        (tmp_path / f"q{leaves}/q8_0/model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
        chosen = staging.select_files(
            RunConfig().registration().model_copy(update={"artifacts": ("q8_0",)}),
            quantized=tmp_path / f"q{leaves}", evaluation=out, leaves=leaves,
        )  # fmt: skip
        assert chosen["verdict.json"] == out / part / "verdict.json"
        assert manifest._carried_verdict(out, chosen) == (out / part / "verdict.json").relative_to(out).as_posix()
    public = make_task(tmp_path / "open", rows=rows, privacy="any", slices=["place"])
    assert not elsewhere.hides(evaluate_step.load_checked(config, (public,), None))
