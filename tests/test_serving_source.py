"""What is served: the best format by the verdict, the bytes that were made, and clear words for what is none."""

from __future__ import annotations

import json

import pytest
from bare_verdict import bare_verdict
from serving import make_files

from gemma_ops import digest
from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.errors import ConfigError, DataError, GateError
from gemma_ops.nano import WEIGHTS
from gemma_ops.serving.choosing import choose_format
from gemma_ops.serving.source import open_source
from gemma_ops.verdicts import Verdict


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
