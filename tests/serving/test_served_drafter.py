"""A version's drafter is used where it was measured with the very file and pays, and answers stay the model's own."""

from __future__ import annotations

import json
from dataclasses import replace

import httpx2
import pytest

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.drafting.drafter_gguf import write_drafter_gguf
from gemma_ops.errors import ConfigError, GateError
from gemma_ops.nano import DRAFTER, WEIGHTS
from gemma_ops.planning.vllm_environment import VllmEnvironment
from gemma_ops.runs import digest
from gemma_ops.serving import engines
from gemma_ops.serving.engines import make_engine
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.served_drafter import ServedDrafter, choose_drafter, is_drafter
from gemma_ops.serving.served_source import memory_of
from gemma_ops.serving.vllm_arguments import vllm_arguments
from tests.helpers.drafter_records import drafter_record
from tests.helpers.live_server import make_files, serving
from tests.serving.test_vllm_engine import MEMORY

QUESTION = "As JSON: name is Ivo Truson, code is K37519, item is tablet"
SCHEMA = {
    "type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "late": {"type": "boolean"}},
    "required": ["name", "late"], "additionalProperties": False,
}  # fmt: skip


def finish(step):
    """Write a step's manifest over what lies there."""
    files = {
        file.relative_to(step).as_posix(): {"sha256": digest.of_file(file)} for file in sorted(step.rglob("*"))
        if file.is_file() and file.name != "artifact.json"
    }  # fmt: skip
    (step / "artifact.json").write_text(json.dumps({"files": files, "digest": step.name, "metrics": {}}))


def make_run(root, *, recommended=True, sha256=None):
    """A run with nano's files and a drafter for them; its machine, and its folder."""
    folder = root / "runs" / "mine"
    make_files(folder / "quantize")
    (folder / "fetch").mkdir()
    (folder / "fetch" / "weights").symlink_to(WEIGHTS, target_is_directory=True)
    (folder / "fetch" / "artifact.json").write_text("{}")
    (folder / "draft" / "weights").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "draft" / "weights" / name).write_bytes((DRAFTER / name).read_bytes())
    write_drafter_gguf(DRAFTER, WEIGHTS, folder / "draft" / "drafter.gguf")
    known = sha256 or digest.of_file(folder / "quantize" / "q8_0" / "model.gguf")
    (folder / "draft" / "drafter.json").write_text(drafter_record({"q8_0": (known, recommended)}).text())
    for step in ("quantize", "draft"):
        finish(folder / step)
    return MachineConfig(runs=str(root / "runs")), folder


def answers(live):
    """Three answers of a live server: plain, streamed, and held to a schema."""

    def asked(**more):
        body = {
            "model": "mine",
            "temperature": 0,
            "max_tokens": 60,
            "messages": [{"role": "user", "content": QUESTION}],
            **more,
        }
        reply = httpx2.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        if more.get("stream"):
            parts = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
            return "".join(part["choices"][0]["delta"].get("content") or "" for part in parts if part["choices"])
        return reply.json()["choices"][0]["message"]["content"]

    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    return [asked(), asked(stream=True), asked(response_format=form)]


def test_served_answers_are_those_without_it(tmp_path):
    machine, _ = make_run(tmp_path)
    with serving("mine", machine=machine, drafter="off") as live:
        alone = answers(live)
        assert live.service.facts.drafter == "off: serve.drafter"
    with serving("mine", machine=machine) as live:
        assert live.service.facts.drafter == "on, 3 tokens ahead: routing: 1.50× (1.40 to 1.60) the tokens a second"
        assert answers(live) == alone
    with serving("mine", machine=machine, window_cache=True) as live:
        assert answers(live) == alone
    assert "Ivo Truson" in alone[0]
    assert set(json.loads(alone[2])) == {"name", "late"}


@pytest.mark.parametrize(
    ("made", "settings", "words"),
    [
        ({}, {}, "on, 3 tokens ahead: routing"),
        ({}, {"format": "q4_0"}, "off: it was not measured with q4_0"),
        ({"sha256": "another"}, {}, "off: it was measured with another file of q8_0"),
        ({"recommended": False}, {}, "off: routing: slower"),
        ({"recommended": False}, {"drafter": "on"}, "on, 3 tokens ahead: serve.drafter"),
        ({}, {"drafter": "off"}, "off: serve.drafter"),
    ],
)
def test_it_is_used_where_it_was_measured_and_pays(tmp_path, made, settings, words):
    machine, folder = make_run(tmp_path, **made)
    given = ServeConfig(slots=1, context=256, **settings)
    source = open_source("mine", machine, given)
    assert source.drafting.words.startswith(words)
    assert (source.drafting.drafter is not None) == words.startswith("on")
    engine = make_engine(source, machine, given)
    wanted = str(folder / "draft" / "drafter.gguf") if words.startswith("on") else ""
    assert engine._drafter == wanted
    if source.drafting.drafter:
        plain = replace(source, drafting=type(source.drafting)())
        size = (folder / "draft" / "drafter.gguf").stat().st_size
        assert memory_of(source, given).weights == memory_of(plain, given).weights + size


def test_a_drafter_that_was_changed_is_refused(tmp_path):
    machine, folder = make_run(tmp_path)
    with (folder / "draft" / "drafter.gguf").open("ab") as file:
        file.write(b"x")
    with pytest.raises(GateError, match=r"drafter.gguf was changed"):
        open_source("mine", machine, ServeConfig())


def test_what_can_not_be_used_is_refused_where_it_is_asked_for(tmp_path):
    machine, folder = make_run(tmp_path)
    on = ServeConfig(drafter="on")
    source = open_source(f"{folder / 'quantize' / 'q8_0' / 'model.gguf'}@{WEIGHTS}", machine, on)
    with pytest.raises(ConfigError, match="has no drafter"):
        make_engine(source, machine, on)
    draft, sha256 = folder / "draft", "s"
    with pytest.raises(ConfigError, match="x has no drafter"):
        choose_drafter(None, "q8_0", sha256, on, shows=False, asked="x")
    with pytest.raises(ConfigError, match="images or sounds"):
        choose_drafter(draft, "q8_0", sha256, on, shows=True, asked="x")
    with pytest.raises(ConfigError, match="one token at a time"):
        choose_drafter(draft, "merged", sha256, on, shows=False, asked="x")
    auto = choose_drafter(draft, "q8_0", sha256, ServeConfig(), shows=True, asked="x")
    assert auto.words == "off: llama.cpp takes no drafter where images or sounds can be shown"


def test_vllm_takes_the_checkpoint_of_one_that_is_asked_for(tmp_path):
    _, folder = make_run(tmp_path)
    vllm = {"engine": "vllm", "vllm_python": "python"}
    auto = choose_drafter(folder / "draft", "merged", "s", ServeConfig(**vllm), shows=True, asked="x")
    assert auto.words == "off: it was measured in llama.cpp, and not in vLLM"
    on = choose_drafter(folder / "draft", "merged", "s", ServeConfig(drafter="on", **vllm), shows=True, asked="x")
    assert on.drafter == ServedDrafter(folder / "draft" / "weights", 3)
    (tmp_path / "config.json").write_text('{"model_type": "gemma4"}')
    given = vllm_arguments(
        tmp_path, changed=None, slots=3, context=99, memory=MEMORY, gpu=20e9, drafter=on.drafter
    )  # fmt: skip
    told = json.loads(given[given.index("--speculative-config") + 1])
    assert told == {"method": "mtp", "model": str(folder / "draft" / "weights"), "num_speculative_tokens": 3}
    assert is_drafter("drafter/weights/model.safetensors", "vLLM")
    assert not is_drafter("drafter/drafter.gguf", "vLLM")
    assert is_drafter("drafter/drafter.gguf", "llama.cpp")


def test_vllm_for_the_cpu_runs_no_clusters(tmp_path, monkeypatch):
    machine, folder = make_run(tmp_path)
    given = ServeConfig(engine="vllm", vllm_python="python", drafter="on")
    source = open_source(str(WEIGHTS), machine, given)
    drafting = choose_drafter(folder / "draft", "merged", "s", given, shows=False, asked="x")
    assert drafting.drafter
    assert drafting.drafter.clustered
    monkeypatch.setattr(engines, "find_vllm", lambda _: VllmEnvironment("python", "0.32.0", cpu=True))
    with pytest.raises(ConfigError, match="no drafter with clusters of tokens"):
        make_engine(replace(source, drafting=drafting), machine, given)
    config = folder / "draft" / "weights" / "config.json"
    config.write_text(config.read_text().replace('"use_ordered_embeddings": true', '"use_ordered_embeddings": false'))
    engine = make_engine(replace(source, drafting=drafting), machine, given)
    assert "--speculative-config" in engine._arguments
