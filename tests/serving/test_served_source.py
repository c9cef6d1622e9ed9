"""What is served: the best format by the verdict, the bytes that were made, and clear words for what is none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.errors import ConfigError, DataError, GateError
from gemma_ops.family import Shape
from gemma_ops.modeling.checkpoint_source import find_base, read_model_config
from gemma_ops.nano import WEIGHTS
from gemma_ops.runs import digest
from gemma_ops.serving.choosing import choose_format
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.served_source import memory_of
from gemma_ops.verdicts import Verdict
from tests.helpers.bare_verdict import bare_verdict
from tests.helpers.live_server import make_files


def verdict(**scores):
    """A verdict whose one task was scored so by target."""
    results = [
        {
            "task": "t", "target": name, "rows": 10, "ends": {"stop": 10}, "failed": 0,
            "metrics": {"exact_match": {"value": value, "low": value, "high": value, "n": 10}},
        }
        for name, value in scores.items()
    ]  # fmt: skip
    body = bare_verdict()
    body["tasks"] = {"t": {"digest": "d", "primary": "exact_match", "rows": 10, "privacy": {"any": 10}}}
    body["results"] = [{**_whole(), **one} for one in results]
    return Verdict.parse(body)


def _whole():
    return {"slices": {}, "speed": {}, "cost": {"usd_per_1k": None}}


@pytest.mark.parametrize(
    ("scores", "made", "best"),
    [
        ({"q8_0": 0.6, "q4_0": 0.7}, ["q8_0", "q4_0"], "q4_0"),
        ({"q8_0": 0.6, "q4_0": 0.6}, ["q8_0", "q4_0"], "q8_0"),
        ({"q8_0": 0.6, "tuned": 0.9}, ["q8_0", "q4_0"], "q8_0"),
        ({"base": 0.6}, ["q8_0", "q4_0"], "q8_0"),
        ({"q8_0": None, "q4_0": 0.1}, ["q8_0", "q4_0"], "q4_0"),
        ({"q8_0": 0.9}, ["q4_0", "bf16"], "q4_0"),
    ],
)
def test_the_best_format_by_its_verdict_is_served(scores, made, best):
    assert choose_format(ServeConfig(), made, verdict(**scores), "x") == best
    assert choose_format(ServeConfig(format=made[-1]), made, verdict(**scores), "x") == made[-1]


def test_a_format_that_was_not_made_is_told():
    with pytest.raises(ConfigError, match="x has no bf16") as caught:
        choose_format(ServeConfig(format="bf16"), ["q8_0", "q4_0"], None, "x")
    assert "q8_0, q4_0" in caught.value.fix
    with pytest.raises(ConfigError, match="no GGUF file"):
        choose_format(ServeConfig(), [], None, "x")


@pytest.fixture
def run(tmp_path):
    """A run as its steps leave it, with nano for a model."""
    folder = tmp_path / "runs" / "mine"
    (folder / "quantize").mkdir(parents=True)
    make_files(folder / "quantize")
    files = {
        f"{form}/model.gguf": {"sha256": digest.of_file(folder / "quantize" / form / "model.gguf")}
        for form in ("bf16", "q8_0", "q4_0")
    }
    (folder / "quantize" / "artifact.json").write_text(json.dumps({"files": files}))
    (folder / "fetch").mkdir()
    (folder / "fetch" / "weights").symlink_to(WEIGHTS)
    (folder / "fetch" / "artifact.json").write_text("{}")
    return MachineConfig(runs=str(tmp_path / "runs")), folder


def test_a_run_is_served_as_its_steps_left_it(run):
    machine, folder = run
    found = open_source("mine", machine, ServeConfig())
    assert (found.model, found.format, found.version, found.canary) == ("mine", "q8_0", "", None)
    assert found.file == folder / "quantize" / "q8_0" / "model.gguf"
    assert found.prompting.thinking == "off"
    assert found.sha256 == digest.of_file(found.file)
    assert found.defaults == json.loads((WEIGHTS / "generation_config.json").read_text())
    assert open_source("mine", machine, ServeConfig(format="q4_0")).format == "q4_0"


def test_a_file_of_a_run_that_was_changed_is_refused(run):
    machine, folder = run
    path = folder / "quantize" / "q8_0" / "model.gguf"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(GateError, match="was changed since it was made"):
        open_source("mine", machine, ServeConfig())


def test_a_run_without_a_model_is_told(run):
    machine, folder = run
    (folder / "fetch" / "artifact.json").unlink()
    with pytest.raises(DataError, match="holds no model"):
        open_source("mine", machine, ServeConfig())


@pytest.fixture
def unquantized(run, tmp_path):
    """The run with a merged checkpoint and an adapter instead of GGUF files."""
    machine, folder = run
    shutil.rmtree(folder / "quantize")
    shutil.copytree(WEIGHTS, folder / "merge" / "model")
    (folder / "train" / "adapter").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / "train" / "adapter" / name).write_text(name)
    for step in ("merge", "train"):
        files = {
            file.relative_to(folder / step).as_posix(): {"sha256": digest.of_file(file)}
            for file in sorted((folder / step).rglob("*"))
            if file.is_file()
        }
        (folder / step / "artifact.json").write_text(json.dumps({"files": files, "digest": f"{step}d"}))
    return machine, folder


def test_a_run_that_was_not_quantized_is_served_as_a_checkpoint(unquantized):
    machine, folder = unquantized
    found = open_source("mine", machine, ServeConfig())
    assert (found.format, found.target, found.base) == ("merged", "tuned", None)
    assert found.file == found.tokenizer == folder / "merge" / "model"
    listing = {f"model/{file.name}": digest.of_file(file) for file in found.file.iterdir()}
    assert found.sha256 == digest.of_listing(listing)
    tuned = open_source("mine", machine, ServeConfig(format="adapter"))
    assert (tuned.format, tuned.target) == ("adapter", "tuned")
    assert (tuned.file, tuned.base, tuned.tokenizer) == (folder / "train" / "adapter", WEIGHTS, WEIGHTS)


def test_a_checkpoint_that_changed_or_was_not_evaluated_is_refused(unquantized):
    machine, folder = unquantized
    body = bare_verdict()
    body["targets"] = {"tuned": {"identity": "i", "artifact": "another"}}
    (folder / "evaluate").mkdir()
    (folder / "evaluate" / "verdict.json").write_text(Verdict.parse(body).text())
    with pytest.raises(GateError, match="about another file of merged"):
        open_source("mine", machine, ServeConfig())
    for name in ("further.safetensors", "config.json"):
        (folder / "merge" / "model" / name).write_text("{}")
        with pytest.raises(GateError, match=rf"{name} was changed since it was made"):
            open_source("mine", machine, ServeConfig())
        (folder / "merge" / "model" / name).unlink()


def test_the_engine_that_is_asked_for_decides_the_format():
    made = ["q8_0", "bf16", "merged", "adapter"]
    for engine, wanted in (("auto", "q8_0"), ("llama.cpp", "q8_0"), ("transformers", "merged"), ("vllm", "merged")):
        assert choose_format(ServeConfig(engine=engine), made, None, "x") == wanted
    assert choose_format(ServeConfig(), ["adapter"], None, "x") == "adapter"
    assert choose_format(ServeConfig(format="adapter"), ["merged", "tuned"], None, "x") == "tuned"
    with pytest.raises(ConfigError, match="x has nothing that transformers runs") as caught:
        choose_format(ServeConfig(engine="transformers"), ["q8_0"], None, "x")
    assert "q8_0 (llama.cpp)" in caught.value.fix


def test_a_folder_and_an_adapter_on_its_base_are_served(tmp_path):
    machine = MachineConfig(runs=str(tmp_path / "runs"))
    found = open_source(str(WEIGHTS), machine, ServeConfig())
    assert (found.model, found.format, found.file, found.verdict) == ("weights", "merged", WEIGHTS, None)
    (tmp_path / "a").mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "a" / name).write_text("{}")
    tuned = open_source(f"{tmp_path / 'a'}@{WEIGHTS}", machine, ServeConfig())
    assert (tuned.format, tuned.base, tuned.tokenizer) == ("adapter", WEIGHTS, WEIGHTS)
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        open_source(f"{tmp_path / 'a'}@{tmp_path}", machine, ServeConfig())
    with pytest.raises(ConfigError, match="nothing that can be served"):
        open_source(str(tmp_path), machine, ServeConfig())


def test_what_a_checkpoint_takes_grows_with_slots_and_with_the_engine(tmp_path):
    source = open_source(str(WEIGHTS), MachineConfig(runs=str(tmp_path)), ServeConfig())
    one, two = (memory_of(source, ServeConfig(slots=slots, context=1024)) for slots in (1, 2))
    assert one.weights == 2 * Shape.from_config(read_model_config(WEIGHTS)).counts().text
    assert two.cache == 2 * one.cache == 2 * one.window_cache > 0
    other = memory_of(source, ServeConfig(slots=1, context=1024, engine="vllm", vllm_python="p"))
    assert other.total > one.total + 2e9
    tuned = replace(source, file=tmp_path, base=WEIGHTS, format="adapter")
    (tmp_path / "a.safetensors").write_bytes(bytes(1000))
    assert memory_of(tuned, ServeConfig(slots=1, context=1024)).weights == one.weights + 1000


def test_a_base_is_found_by_what_was_recorded_of_it():
    files = {"model.safetensors": digest.of_file(WEIGHTS / "model.safetensors")}
    assert find_base({"id": "nano", "files": files}, "x") == WEIGHTS
    with pytest.raises(GateError, match="is not that of the base that x was trained on"):
        find_base({"id": "nano", "files": {"model.safetensors": "other"}}, "x")
    with pytest.raises(ConfigError, match="where that lies is not recorded"):
        find_base({"id": "folder", "files": files}, "x")


def test_the_front_loads_no_weights_itself():
    """Whatever the engine, torch lives in its child."""
    code = (
        "import sys, gemma_ops.serving.server as server\nfrom gemma_ops.config import MachineConfig, ServeConfig\n"
        "source = server.open_source(sys.argv[1], MachineConfig(), ServeConfig())\n"
        "server.memory_of(source, ServeConfig())\nserver.make_engine(source, MachineConfig(), ServeConfig())\n"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, WEIGHTS], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
