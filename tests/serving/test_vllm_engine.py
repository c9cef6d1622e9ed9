"""vLLM as an engine, over its own wire: what is sent, what comes back, how its child lives, and when it is refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import replace

import pytest

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.errors import ConfigError, GateError, MachineError, ModelError
from gemma_ops.modeling.checkpoint_source import read_model_config
from gemma_ops.nano import WEIGHTS
from gemma_ops.planning import devices, doctor
from gemma_ops.planning.serving_bytes import ServingBytes
from gemma_ops.runs.processes import Birth
from gemma_ops.serving.choosing import choose_engine
from gemma_ops.serving.engine import EngineGoneError, EngineRefusedError, Sampling
from gemma_ops.serving.engines import make_engine
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.server import opened_server
from gemma_ops.serving.vllm_arguments import vllm_arguments, vllm_variables
from tests.helpers import patience
from tests.helpers.live_server import record
from tests.helpers.vllm_wire import make_environment

STOP = 106
MACHINE = MachineConfig(workers=1)
MEMORY = ServingBytes(10e9, 2e9, 2e9, 1e9)


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return make_environment(tmp_path_factory.mktemp("vllm"))


@pytest.fixture
def settings(python):
    return ServeConfig(vllm_python=str(python), engine="vllm", slots=2, context=256)


@pytest.fixture
def folder(tmp_path):
    """nano's checkpoint, with what the wire answers beside it."""
    found = tmp_path / "model"
    shutil.copytree(WEIGHTS, found)
    (found / "replies.json").write_text(
        json.dumps({"5,6": [7, 8, STOP, 9], "1,1": [4] * 50, "2,2": ["dies"], "3,3": ["breaks"]})
    )
    return found


async def started(folder, settings, work):
    engine = make_engine(open_source(str(folder), MACHINE, settings), MACHINE, settings)
    await engine.start()
    try:
        return await work(engine)
    finally:
        await engine.stop()


async def reply(engine, prompt, sampling):
    return [part async for part in engine.complete(prompt, sampling)]


def asked(folder):
    return [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]


def test_ids_go_and_come_as_vllm_spells_them(folder, settings):
    async def work(engine):
        assert (engine.name, engine.slots, engine.context) == ("vLLM 0.32.0", 2, 256)
        return (
            await reply(engine, [5, 6], Sampling(9)),
            await reply(engine, [1, 1], Sampling(3, None, seed=5, logprobs=2)),
            await reply(engine, [5, 6], Sampling(9, 0.5, 0.9, 7, schema={"type": "object"})),
            await reply(engine, [5, 6], Sampling(9, calls=("f", "g"))),
        )

    plain, drawn, _, _ = asyncio.run(started(folder, settings, work))
    assert [token for part in plain for token in part.ids] == [7, 8, STOP]
    assert [part.end for part in plain] == [None, None, None, "stop"]
    assert (plain[-1].prompt_tokens, plain[-1].cached_tokens) == (2, 16)
    assert ([part.ids for part in drawn], drawn[-1].end) == ([(4,), (4,), (4,), ()], "length")
    (chance,) = drawn[0].chances
    assert (chance.id, chance.logprob) == (4, -3.5)
    assert [(one.id, one.logprob) for one in chance.likeliest] == [(300, -0.5), (301, -1.5)]
    greedy, own, narrow, called = asked(folder)
    assert greedy["temperature"] == 0
    assert {"seed", "structured_outputs", "logprobs"}.isdisjoint(greedy)
    defaults = json.loads((WEIGHTS / "generation_config.json").read_text())
    assert greedy["stop_token_ids"] == defaults["eos_token_id"]
    assert (own["temperature"], own["top_k"], own["top_p"], own["seed"]) == (
        defaults.get("temperature", 1.0), defaults.get("top_k", 0), defaults.get("top_p", 1.0), 5,
    )  # fmt: skip
    assert (narrow["temperature"], narrow["top_p"], narrow["top_k"]) == (0.5, 0.9, 7)
    assert narrow["structured_outputs"]["json"]["type"] == "object"
    assert narrow["structured_outputs"]["json"]["x-guidance"]["item_separator"] == ", "
    assert '("call:f{" | "call:g{")' in called["structured_outputs"]["grammar"]


def test_refusals_and_failures_are_told_apart(folder, settings):
    async def work(engine):
        for prompt, sampling, error, match in (
            ([1] * 256, Sampling(1), EngineRefusedError, "maximum context length is 256"),
            ([1, 2], Sampling(1, schema={"type": "nonsense"}), EngineRefusedError, "Invalid type: nonsense"),
            ([3, 3], Sampling(1), EngineGoneError, "EngineCore encountered an issue"),
            ([2, 2], Sampling(9), EngineGoneError, "in the middle"),
        ):
            with pytest.raises(error, match=match):
                await reply(engine, prompt, sampling)
        await asyncio.to_thread(patience.until, lambda: engine.restarts and engine.alive(), 30)
        assert [token for part in await reply(engine, [5, 6], Sampling(2)) for token in part.ids] == [7, 8]

    asyncio.run(started(folder, settings, work))


def test_it_is_started_offline_and_ends_with_all_that_it_started(folder, settings, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somewhere")

    async def work(engine):
        began = json.loads((folder / "began.json").read_text())
        family = Birth.of(engine.pid), Birth.of(began["worker"])
        assert all(family)
        return began, family

    began, family = asyncio.run(started(folder, settings, work))
    patience.until(lambda: not any(one.alive() for one in family), 20)
    wanted = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    assert began["environment"].items() >= (wanted | {"OMP_NUM_THREADS": "1"}).items()
    assert "PYTHONPATH" not in began["environment"]
    given = began["arguments"]
    assert given[given.index("--hf-overrides") + 1] == '{"architectures": ["Gemma4ForCausalLM"]}'
    assert "--enforce-eager" in given
    assert "--gpu-memory-utilization" not in given


def test_what_it_can_not_load_is_told(folder, settings):
    (folder / "replies.json").unlink()
    with pytest.raises(ModelError, match=r"vLLM can't serve it: ValueError: .* holds no weights"):
        asyncio.run(started(folder, settings, reply))


def recorded(model, path, said):
    """What an evaluation records of two questions, which the tuned model answered with `said`."""
    rows = []
    for text in ("one", "two"):
        messages = [{"role": "user", "content": text}]
        prompt = model._encoders[False](type("P", (), {"messages": messages, "tools": (), "media": ()})())
        rows.append({"messages": messages, "ids": prompt, "max_new_tokens": 8, "answers": {"tuned": said, "base": "x"}})
    return record(path, rows), {",".join(map(str, row["ids"])): row["ids"] for row in rows}


def test_the_canary_sings_on_vllm_too(folder, settings, tmp_path):
    source = open_source(str(folder), MACHINE, settings)

    async def run():
        service = await opened_server(source, MACHINE, settings)
        await service.model.engine.stop()
        tokenizer = service.model.tokenizer
        ids = [*tokenizer.encode("good", add_special_tokens=False).ids, STOP]
        path, prompts = recorded(service.model, tmp_path / "canary.json", "good")
        (folder / "replies.json").write_text(json.dumps(dict.fromkeys(prompts, ids)))
        sings = replace(source, canary=path)
        service = await opened_server(sings, MACHINE, settings)
        await service.model.engine.stop()
        assert service.facts.canary == "2 of 2 recorded answers came back word for word"
        ids = [*tokenizer.encode("x", add_special_tokens=False).ids, STOP]
        (folder / "replies.json").write_text(json.dumps(dict.fromkeys(prompts, ids)))
        with pytest.raises(GateError, match=r"0 of 2 .* 2 what only its base says"):
            await opened_server(sings, MACHINE, settings)

    asyncio.run(run())


def test_an_adapter_is_run_behind_a_canary_only(folder, settings, tmp_path):
    source = replace(open_source(str(folder), MACHINE, settings), format="adapter", base=WEIGHTS)
    (folder / "adapter_config.json").write_text('{"r": 12, "rank_pattern": {"q_proj": 20}}')
    sings = record(tmp_path / "canary.json", [{"answers": {"tuned": "good"}}])
    silent = record(tmp_path / "other.json", [{"answers": {"q8_0": "good"}}])
    with pytest.raises(ConfigError, match="no canary would notice"):
        make_engine(replace(source, canary=silent), MACHINE, settings)
    for one in (source, replace(source, canary=sings)):
        held = settings.model_copy(update={"canary": "reported"}) if one.canary else settings
        with pytest.raises(ConfigError, match="no canary would notice"):
            make_engine(one, MACHINE, held)
    engine = make_engine(replace(source, canary=sings), MACHINE, settings)
    given = " ".join(engine._arguments)
    assert f"--enable-lora --max-loras 1 --max-lora-rank 32 --lora-modules adapter={folder}" in given
    assert f"--model {WEIGHTS} " in given
    assert engine._body([1], Sampling(1))["model"] == "adapter"
    least = engine._body([1], Sampling(1, 1.0, 0.0))
    assert (least["temperature"], least["top_p"]) == (0.0, 1.0)  # vLLM refuses a top_p of 0


def test_what_is_planned_is_what_it_may_take(tmp_path):
    body = read_model_config(WEIGHTS) | {"vision_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(body))
    given = vllm_arguments(tmp_path, changed=None, slots=3, context=99, memory=MEMORY, gpu=20e9)
    assert "--language-model-only" in given
    assert "--hf-overrides" not in given
    assert given[given.index("--gpu-memory-utilization") + 1] == "0.65"
    assert given[given.index("--max-num-seqs") + 1] == "3"
    assert given[given.index("--max-model-len") + 1] == "99"
    full = vllm_arguments(tmp_path, changed=None, slots=3, context=99, memory=MEMORY, gpu=13e9)
    assert full[full.index("--gpu-memory-utilization") + 1] == "0.95"
    assert vllm_variables(MEMORY, gpu=None, threads=None)["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert "VLLM_CPU_KVCACHE_SPACE" not in vllm_variables(MEMORY, gpu=20e9, threads=None)


@pytest.mark.parametrize(
    ("form", "engine", "python", "wanted"),
    [
        ("q8_0", "auto", None, "llama.cpp"), ("", "auto", "p", "llama.cpp"), ("merged", "auto", None, "transformers"),
        ("merged", "auto", "p", "vLLM"), ("adapter", "auto", "p", "transformers"), ("adapter", "vllm", "p", "vLLM"),
        ("merged", "transformers", "p", "transformers"), ("tuned", "auto", "p", "transformers"),
    ],
)  # fmt: skip
def test_the_table_of_formats_says_what_runs_them(form, engine, python, wanted):
    assert choose_engine(form, ServeConfig(engine=engine, vllm_python=python)) == wanted


@pytest.mark.parametrize(
    ("form", "engine", "match"),
    [
        ("q8_0", "transformers", "transformers can't run q8_0: llama.cpp can"),
        ("", "vllm", "vllm can't run a GGUF file"),
        ("merged", "llama.cpp", "llama.cpp can't run merged: transformers or vLLM can"),
        ("tuned", "vllm", "vllm can't run tuned"),
        ("merged", "vllm", "serve.vllm_python doesn't say where vLLM is installed"),
    ],
)
def test_an_engine_that_can_not_run_it_is_refused(form, engine, match):
    with pytest.raises(ConfigError, match=match):
        choose_engine(form, ServeConfig(engine=engine))


def test_an_environment_without_vllm_or_a_gpu_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "present_devices", list)
    built = make_environment(tmp_path / "gpu", package="vllm", version="0.33.0")
    for python, match in (
        (tmp_path / "nowhere", "is not a working Python"),
        (os.sys.executable, "has no vLLM"),
        (built, "was built for a GPU, and none is used here"),
    ):
        settings = ServeConfig(vllm_python=str(python), engine="vllm")
        with pytest.raises(MachineError, match=match):
            make_engine(open_source(str(folder), MACHINE, settings), MACHINE, settings)
    (found,) = [check for check in doctor.examine(str(built)).checks if check.name == "vllm"]
    assert (found.status, "vLLM 0.33.0" in found.what) == ("warn", True)
    (found,) = [check for check in doctor.examine(str(tmp_path)).checks if check.name == "vllm"]
    assert (found.status, "not a working Python" in found.what) == ("bad", True)


def test_doctor_tells_of_the_environment(python, cli):
    done = cli("doctor", "--set", f"serve.vllm_python={python}")
    assert f"vLLM 0.32.0, for the CPU, in {python}" in done.stdout
    assert "vllm" not in {check.name for check in doctor.examine().checks}
