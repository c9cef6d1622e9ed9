"""What a tool makes, known everywhere: answers of its jobs, what serves it, what a version carries, what is told
early."""

from __future__ import annotations

from typing import get_args

import pytest

from gemma_ops.answer import Prompt
from gemma_ops.config import MachineConfig, QuantizeConfig, RegisterConfig, RunConfig, ServeConfig
from gemma_ops.errors import ConfigError, MachineError
from gemma_ops.family import formats
from gemma_ops.recipes import preflight
from gemma_ops.recipes.finding import find_recipe
from gemma_ops.registry.card_usage import loading
from gemma_ops.registry.contents import content_problem
from gemma_ops.registry.staging import select_files
from gemma_ops.serving.choosing import choose_engine, choose_format
from gemma_ops.targets.checkpoint_target import CheckpointTarget
from gemma_ops.targets.made_target import open_made
from gemma_ops.targets.quantized_target import Quantized
from gemma_ops.targets.target import AskingMode
from gemma_ops.targets.tool_target import ToolTarget
from gemma_ops.toolenvs import tool_job
from gemma_ops.toolenvs.format_tools import making_tool, missing_tools
from gemma_ops.toolenvs.jobs.answer_checkpoint import ended
from tests.helpers.tiny_models import NANO

MACHINE = MachineConfig(device="cpu", workers=1)


def made(folder, form):
    file = folder / formats.QUANTIZED[form].path
    file.parent.mkdir(parents=True)
    file.write_bytes(b"LITERTLM" if form in formats.EDGE else b"x")
    return open_made(form, form, file, NANO, MACHINE, made_by=None, asked=AskingMode())


def test_formats_open_where_they_can_be_run_here(tmp_path):
    kinds = {form: type(made(tmp_path, form)) for form in (*formats.PACKED, *formats.EDGE, "bf16")}
    assert kinds.pop("bf16") is Quantized
    assert kinds.pop("w4a16") is CheckpointTarget
    assert set(kinds.values()) == {ToolTarget}


def test_answers_of_a_job_are_told_apart(tmp_path, monkeypatch):
    asked = []

    def run(tool, machine, job, request, folder, *, what):
        asked.append((tool.name, job, request, what))
        said = [
            {"text": '{"a": 1}', "stopped": True, "seconds": 0.5},
            {"text": "cut", "stopped": False, "seconds": 0.5},
            {"error": "other tokens", "seconds": 0.1},
        ]
        return {"answers": said}

    monkeypatch.setattr(tool_job, "run_tool_job", run)
    target = made(tmp_path, "litertlm_wi8")
    prompts = [Prompt([{"role": "user", "content": text}]) for text in ("a", "b", "c")]
    found = [each for batch in target.answer([prompts[:2], prompts[2:]], max_new_tokens=8) for each in batch]
    assert [(each.text, each.end) for each in found] == [('{"a": 1}', "stop"), ("cut", "length"), ("", "error")]
    assert found[2].reason == "other tokens"
    ((tool, job, request, what),) = asked
    assert (tool, job, what) == ("litert", "answer_edge", "target litertlm_wi8")
    assert request["limit"] == 8
    assert request["texts"][0] == "<bos><|turn>user\na<turn|>\n<|turn>model\n"
    assert target.asks(prompts[0], 8) == (request["prompts"][0], 8)
    assert target.reads == {"text"}
    other = made(tmp_path, "fp8")
    monkeypatch.setattr(tool_job, "run_tool_job", lambda *given, **_: {"answers": [
        {"ids": [406, 439], "stopped": True, "seconds": 1.0}]})  # fmt: skip
    ((reply,),) = other.answer([prompts[:1]], max_new_tokens=4)
    assert (reply.text, reply.end, reply.new_tokens) == ("Hi", "stop", 2)


def test_an_answer_ends_at_the_first_stop():
    assert ended([5, 6, 1, 7, 106], [1, 106]) == ([5, 6], True)
    assert ended([5, 6], [1]) == ([5, 6], False)


def test_formats_of_tools_agree_with_their_table():
    assert set(get_args(formats.QuantizedName)) == set(formats.QUANTIZED)
    assert set(get_args(formats.PackedName)) == set(formats.PACKED)
    assert set(get_args(formats.EdgeName)) == set(formats.EDGE)
    every = formats.QUANTIZED.values()
    assert len({each.css for each in every}) == len({each.path for each in every}) == len(every)
    assert len({colour for each in every for colour in each.colours}) == 2 * len(every)
    settings = QuantizeConfig()
    assert making_tool("w4a16", settings) is None
    assert making_tool("w4a16", QuantizeConfig(w4a16="gptq")).name == "llm-compressor"
    assert making_tool("nvfp4", settings).name == "llm-compressor"
    assert making_tool("litertlm_wi4", settings).name == "litert"


def test_a_missing_tool_is_told_before_a_run_begins(tmp_path):
    asked = {"formats": ("fp8", "nvfp4", "litertlm_wi8", "q8_0")}
    config = RunConfig.model_validate({
        "name": "x", "model": {"base": "nano"}, "quantize": asked,
        "machine": {"tools": str(tmp_path), "runs": str(tmp_path / "runs")},
        "evaluate": {"targets": ["base"], "tasks": ["support_desk"]}, "register": {"artifacts": ["adapter"]},
    })  # fmt: skip
    told = missing_tools(config.quantize, config.machine)
    assert [error.fix for error in told] == ["gemma-ops tools install llm-compressor", "gemma-ops tools install litert"]
    with pytest.raises((ConfigError, MachineError), match="fp8 needs the tool llm-compressor"):
        preflight.check_ahead(config, find_recipe("lora"), until="quantize")


def test_a_server_runs_what_it_can():
    plain, vllm = ServeConfig(), ServeConfig(vllm_python="/v/bin/python")
    assert choose_engine("w4a16", plain) == "transformers"
    assert choose_engine("w4a16", vllm) == choose_engine("fp8", vllm) == "vLLM"
    with pytest.raises(ConfigError, match="vLLM is to run fp8"):
        choose_engine("fp8", plain)
    with pytest.raises(ConfigError, match="litertlm_wi8 is run by LiteRT-LM, on the device itself"):
        choose_engine("litertlm_wi8", plain)
    made = ("litertlm_wi8", "fp8", "w4a16")
    assert choose_format(plain, made, None, "x") == "w4a16"
    assert choose_format(vllm, made, None, "x") == "fp8"
    with pytest.raises(ConfigError, match="nothing that auto runs"):
        choose_format(plain, ("litertlm_wi8",), None, "x")


def test_a_version_carries_them_and_its_card_says_how_they_are_run(tmp_path):
    folder = tmp_path / "litertlm_wi8"
    folder.mkdir()
    (folder / "model.litertlm").write_bytes(b"LITERTLM and more")
    (folder / "learned.json").write_text("{}")
    chosen = select_files(RegisterConfig(artifacts=("litertlm_wi8",)), quantized=tmp_path)
    assert sorted(chosen) == ["quantized/litertlm_wi8/learned.json", "quantized/litertlm_wi8/model.litertlm"]
    assert content_problem(folder / "model.litertlm") is None
    (folder / "other.litertlm").write_bytes(b"PK\x03\x04")
    assert content_problem(folder / "other.litertlm") == "it is no file of LiteRT-LM"
    files = {formats.QUANTIZED[name].place: {"bytes": 5_070_000_000} for name in ("litertlm_wi8", "w4a16", "fp8")}
    words = loading({"name": "m", "files": files, "adapter": None}, ["litertlm_wi8", "w4a16", "fp8"])
    assert "It needs 5.07 GB of storage" in words
    assert "nobody has measured speed, memory, heat" in words
    assert "vllm serve quantized/w4a16" in words
    assert "no evidence about vLLM's kernels" in words
