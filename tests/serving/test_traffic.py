"""What a server tells MLflow: a trace a request and counts by version and lane, with content only where it may go."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx2
import pytest

from gemma_ops.config import MachineConfig
from gemma_ops.emulator import Emulator
from gemma_ops.errors import ConfigError, ServiceError
from gemma_ops.registry.traffic_runs import TracedRequest, TrafficPlace
from gemma_ops.serving import server, traffic
from gemma_ops.serving.traffic_writer import allowed, write_traffic
from tests.helpers import registry_runs as runs
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.live_server import make_files, serving

SECRET = "my invoice 4711 is wrong"
QUESTION = [{"role": "user", "content": SECRET}]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("gguf")) / "q8_0" / "model.gguf"


@pytest.fixture
def inline(monkeypatch):
    """The lines are filed by this process, which has MLflow already, and not by one of their own."""
    lines = []

    async def start(self, counted):
        self._send({"machine": self._machine.model_dump(mode="json"), "title": self._title})

    async def close(self, counts):
        self._send({"counts": dict(counts)})
        write_traffic(lines, self._say)

    monkeypatch.setattr(traffic.TrafficRecorder, "start", start)
    monkeypatch.setattr(traffic.TrafficRecorder, "_send", lambda self, line: not lines.append(json.dumps(line)))
    monkeypatch.setattr(traffic.TrafficRecorder, "close", close)


def filed(folder):
    """The traces in an MLflow folder, by path and status; and its runs."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name = 'gemma-ops-serving'")
    traces = client.search_traces(locations=[experiment.experiment_id], max_results=100)
    return experiment, traces, client.search_runs([experiment.experiment_id])


def post(live, path, body, **headers):
    return httpx2.post(f"{live.url}{path}", json=body, headers=headers, timeout=60)


def test_each_request_is_traced_without_content(file, tmp_path):
    runs.fresh(tmp_path / "mlflow")
    with serving(file, mlflow=tmp_path / "mlflow", traces="metadata") as live:
        body = {"model": "nano", "messages": QUESTION, "max_tokens": 8}
        whole = post(live, "/v1/chat/completions", body)
        usage = whole.json()["usage"]
        assert post(live, "/v1/chat/completions", body | {"stream": True}).text.rstrip().endswith("[DONE]")
        parts = {
            "contents": [{"role": "user", "parts": [{"text": SECRET}]}],
            "generationConfig": {"maxOutputTokens": 8},
        }
        assert post(live, "/v1beta/models/nano:generateContent", parts).status_code == 200
        assert post(live, "/v1/chat/completions", body | {"messages": []}).status_code == 400
        text = httpx2.get(f"{live.url}/metrics").text
    assert 'gemma_ops_traces_total{outcome="sent"} 4' in text
    assert 'gemma_ops_traces_total{outcome="dropped"} 0' in text
    experiment, traces, (run,) = filed(tmp_path / "mlflow")
    assert experiment.tags["mlflow.experimentKind"] == "genai_development"
    assert sorted((trace.info.tags["mlflow.traceName"], str(trace.info.state.value)) for trace in traces) == [
        ("/v1/chat/completions", "ERROR"), ("/v1/chat/completions", "OK"), ("/v1/chat/completions", "OK"),
        ("/v1beta/models/nano:generateContent", "OK"),
    ]  # fmt: skip
    one = next(t for t in traces if t.info.tags["gemma_ops.request"] == whole.headers["x-request-id"])
    assert one.info.token_usage["input_tokens"] == usage["prompt_tokens"]
    assert one.info.token_usage["output_tokens"] == usage["completion_tokens"]
    assert one.info.tags["gemma_ops.lane"] == "local"
    assert one.info.tags["gemma_ops.format"] == "q8_0"
    assert one.info.execution_duration >= 0
    assert not any(SECRET in json.dumps(trace.to_dict()) for trace in traces)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["version/q8_0/requests"] == 4
    assert run.data.metrics["version/q8_0/reply_tokens"] > 0
    assert run.data.metrics["version/q8_0/seconds_mean"] > 0


def test_an_mlflow_on_this_machine_keeps_content_where_it_is_asked_to(file, tmp_path, inline):
    runs.fresh(tmp_path / "mlflow")
    with serving(file, mlflow=tmp_path / "mlflow", traces="full") as live:
        said = post(live, "/v1/chat/completions", {"model": "nano", "messages": QUESTION, "max_tokens": 8}).json()
    _, (trace,), _ = filed(tmp_path / "mlflow")
    span = trace.data.spans[0]
    assert span.inputs["messages"] == QUESTION
    text = said["choices"][0]["message"]["content"]
    assert span.outputs["choices"][0]["message"]["content"] == text
    assert (trace.info.request_preview, trace.info.response_preview) == (SECRET, text)


def test_lanes_and_dollars_are_filed(file, tmp_path, monkeypatch, inline):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    runs.fresh(tmp_path / "mlflow")
    log = str(tmp_path / "log.jsonl")
    with (
        Emulator() as gemini,
        serving(
            file, gemini=machine_for(gemini, tmp_path), routing="default", routing_log=log, mlflow=tmp_path / "mlflow",
            traces="metadata",
        ) as live,
    ):  # fmt: skip
        asked = {"model": "auto", "max_tokens": 8, "messages": QUESTION}
        assert post(live, "/v1/chat/completions", asked).headers["x-gemma-ops-lane"] == "local"
        asked["messages"] = [{"role": "user", "content": "tell me more of it. " * 60}]
        sent = post(live, "/v1/chat/completions", asked, **{"x-gemma-ops-privacy": "any"})
        assert sent.headers["x-gemma-ops-lane"] == "gemini"
        records, page = live.records, httpx2.get(f"{live.url}/metrics").text
    usage = sent.json()["usage"]
    assert records[-1]["lane"] == "gemini"
    assert records[-1]["dollars"] == usage["gemma_ops"]["dollars"] > 0
    thoughts = usage["completion_tokens_details"]["reasoning_tokens"]
    assert records[-1]["tokens"] == usage["completion_tokens"] - thoughts
    assert "version" not in records[-1]
    assert 'requests_total{model="nano",version="",format="q8_0",protocol="openai",status="200"} 1' in page
    _, traces, (run,) = filed(tmp_path / "mlflow")
    one = next(t for t in traces if t.info.tags["gemma_ops.lane"] == "gemini")
    assert one.info.cost["total_cost"] == pytest.approx(usage["gemma_ops"]["dollars"])
    assert one.data.spans[0].attributes["mlflow.llm.model"] == usage["gemma_ops"]["model"]
    assert "gemma_ops.version" not in one.info.tags
    assert run.data.metrics["lane/gemini/share"] == run.data.metrics["lane/local/share"] == 0.5
    assert run.data.metrics["lane/gemini/dollars"] == pytest.approx(usage["gemma_ops"]["dollars"])


TRACED = TracedRequest(
    "1",
    "/v1/chat/completions",
    0,
    1.0,
    200,
    privacy="any",
    learned="any",
    asked={"messages": QUESTION},
    said={"a": "b"},
)


@pytest.mark.parametrize(
    ("change", "elsewhere", "kept"),
    [
        ({}, True, True),
        ({"privacy": "local_only"}, True, False),
        ({"learned": "local_only"}, True, False),
        ({"privacy": "local_only"}, False, True),
        ({"asked": {"messages": [{"role": "user", "content": "mail me at ada@lovelace.org"}]}}, True, False),
        ({"said": {"content": "it is DE89370400440532013000"}}, True, False),
        ({"asked": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}}, True, False),
        ({"asked": {"contents": [{"parts": [{"inlineData": {}}]}]}}, True, False),
    ],
)
def test_content_goes_elsewhere_only_where_its_class_allows_it(change, elsewhere, kept):
    found = allowed(replace(TRACED, **change), elsewhere=elsewhere)
    assert (found.asked is not None) is kept
    assert (found.said is not None) is kept


def test_an_mlflow_that_is_away_is_told_once_and_loses_no_request(file, tmp_path, inline):
    with serving(file, mlflow="http://127.0.0.1:9", traces="metadata") as live:
        for _ in range(2):
            body = {"model": "nano", "messages": QUESTION, "max_tokens": 4}
            assert post(live, "/v1/chat/completions", body).status_code == 200
    (told,) = [line for line in live.said if "MLflow" in line]
    assert told.startswith("traffic is not filed in MLflow: MLflow at http://127.0.0.1:9 can't be reached")


def test_a_trace_that_mlflow_loses_is_told(tmp_path, monkeypatch):
    """MLflow raises nothing where it can't write a trace."""
    from mlflow.tracing.client import TracingClient

    runs.fresh(tmp_path / "mlflow")
    machine = MachineConfig(mlflow=str(tmp_path / "mlflow"))
    place = TrafficPlace(machine, "x@champion")
    with monkeypatch.context() as patch:
        patch.setattr(TracingClient, "start_trace", lambda *_: 1 / 0)
        with pytest.raises(ServiceError, match="division by zero"):
            place.trace(TRACED)
    place.trace(TRACED)
    experiment, traces, _ = filed(tmp_path / "mlflow")
    assert TRACED.id in [trace.info.tags.get("gemma_ops.request") for trace in traces]
    place._tracking.client.delete_experiment(experiment.experiment_id)
    with pytest.raises(ConfigError, match="was deleted"):
        TrafficPlace(machine, "x@champion")


def test_traces_wait_for_no_room_and_are_counted(file, tmp_path, monkeypatch):
    monkeypatch.setattr(traffic, "_MOST", -1)
    runs.fresh(tmp_path / "mlflow")
    with serving(file, mlflow=tmp_path / "mlflow", traces="metadata") as live:
        assert post(live, "/v1/chat/completions", {"model": "nano", "messages": QUESTION}).status_code == 200
        assert 'gemma_ops_traces_total{outcome="dropped"} 1' in httpx2.get(f"{live.url}/metrics").text


def test_what_is_too_large_is_traced_without_content(monkeypatch):
    sent = []
    recorder = traffic.TrafficRecorder(MachineConfig(), server.ServeConfig(traces="full"), "x", print)
    monkeypatch.setattr(recorder, "_send", lambda line: not sent.append(line))
    recorder.add(replace(TRACED, asked={"messages": "x" * 300_000}))
    recorder.add(TRACED)
    assert [line["trace"]["asked"] for line in sent] == [None, {"messages": QUESTION}]


def test_traces_need_an_mlflow(file):
    with pytest.raises(ConfigError, match=r"machine\.mlflow is null"):
        server.traffic_of(None, MachineConfig(mlflow=None), server.ServeConfig(traces="full"), print)


def test_a_server_without_requests_files_nothing_but_its_counts(tmp_path):
    runs.fresh(tmp_path / "mlflow")
    told = []
    machine = MachineConfig(mlflow=str(tmp_path / "mlflow")).model_dump(mode="json")
    write_traffic([json.dumps({"machine": machine, "title": "x@champion"}), '{"counts": {"a": 1.0}}'], told.append)
    _, traces, (run,) = filed(tmp_path / "mlflow")
    assert (traces, told, run.data.metrics, run.info.run_name) == ([], [], {"a": 1.0}, "serve x@champion")
