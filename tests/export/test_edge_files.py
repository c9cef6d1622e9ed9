"""Files for LiteRT-LM: memory said before, gates, and, where the tool litert is installed, each cure of what goes wrong
by default, a file from nano, and a graft.

`GEMMA_OPS_TOOLS` says where the tool is; without it those tests are skipped.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_ops.answer import Prompt
from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import ConfigError, GateError, MachineError, ModelError
from gemma_ops.export import edge_graphs, quantize
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.edge_files import check_float_parity
from gemma_ops.export.edge_graphs import make_base_graphs
from gemma_ops.export.redundant_kv import redundant_names
from gemma_ops.family import SIZES, Shape
from gemma_ops.family.sizes import CONFIGS
from gemma_ops.planning.edge_memory import check_conversion, conversion_bytes, grafted_bytes
from gemma_ops.targets.checkpoint_target import CheckpointTarget
from gemma_ops.targets.made_target import open_made
from gemma_ops.targets.target import AskingMode
from gemma_ops.toolenvs.install_tool import find_tool
from gemma_ops.toolenvs.jobs.edge_audit import checkpoint_weights, place_weights
from gemma_ops.toolenvs.jobs.edge_bundle import runtime_template
from gemma_ops.toolenvs.jobs.edge_constants import FLOAT32, INT4, INT8, GraphConstant, nibble_codes
from gemma_ops.toolenvs.jobs.edge_graft import changed_tensors
from gemma_ops.toolenvs.jobs.edge_runtime import check_prompt, check_tokens
from gemma_ops.toolenvs.tool_job import run_tool_job
from gemma_ops.toolenvs.tool_list import TOOLS
from tests.helpers import patience, tiny_models

MACHINE = MachineConfig(device="cpu", workers=1)
TOOL = TOOLS["litert"]
CONTEXT = 512
needs_tool = pytest.mark.skipif(
    not find_tool(TOOL, MACHINE).installed, reason="the tool litert is not installed (GEMMA_OPS_TOOLS)"
)


@pytest.mark.parametrize(("size", "low", "high"), [("E2B", 45, 55), ("E4B", 70, 82)])
def test_memory_is_said_before_anything_is_converted(size, low, high):
    shape = Shape.from_config(CONFIGS[size])
    assert low < conversion_bytes(shape) / 1e9 < high
    assert 0.8 < grafted_bytes(shape) / conversion_bytes(shape) < 0.9
    with pytest.raises(MachineError, match=r"takes about \d+ GB of memory, and 16.0 GB are free") as error:
        check_conversion(shape, 16e9, grafted=False)
    assert "gemma-ops tools edge-graphs" in error.value.fix
    check_conversion(shape, 100e9, grafted=False)


def test_only_models_with_per_layer_embeddings_are_converted():
    for size in SIZES:
        if size not in ("E2B", "E4B"):
            with pytest.raises(ModelError, match="E2B and E4B"):
                check_conversion(Shape.from_config(CONFIGS[size]), 1e15, grafted=False)


def test_a_step_refuses_before_it_makes_anything(tmp_path, monkeypatch):
    machine = MachineConfig(device="cpu", tools=str(tmp_path / "none"))
    with pytest.raises(MachineError, match="litertlm_wi8 needs the tool litert"):
        quantize(tmp_path, QuantizeConfig(formats=("litertlm_wi8",)), machine, model=tiny_models.NANO)
    assert not (tmp_path / "bf16").exists()


def test_the_template_is_told_in_words_that_the_runtime_knows():
    text = "{% generation %}{{ x.get('a') }}{{- (part['text'] | trim) + ' ' -}}{% endgeneration %}"
    assert runtime_template(text) == "{{ x['a'] }}{{- (part['text'] | trim) -}}"
    assert runtime_template("{{ item['text'] | trim + ' ' }}{{ a + ' ' }}") == "{{ item['text'] | trim  }}{{ a + ' ' }}"


def test_gates_name_what_differs():
    check_tokens([{"text": "a", "ids": [1]}], lambda text: [1])
    with pytest.raises(GateError, match=r"reads '😀' as \[7\], the checkpoint's tokenizer as \[1, 2\]"):
        check_tokens([{"text": "😀", "ids": [1, 2]}], lambda text: [7])
    check_prompt("<bos>a", "a")
    with pytest.raises(GateError, match="asks 'b', and the model was trained on '<bos>a'"):
        check_prompt("<bos>a", "b")
    check_float_parity(9e-5)
    for largest in (2e-4, float("nan")):
        with pytest.raises(GateError, match="differ by"):
            check_float_parity(largest)


def constant(value, name="c", **options):
    data = np.asarray(value, np.float32).tobytes()
    return GraphConstant("model", name, FLOAT32, np.shape(value), 0, len(data), **options), data


def test_the_audit_follows_scalars_too():
    held, data = constant([0.25])
    found, folded = place_weights(iter([("s", np.array([0.25]))]), [held], {"model": data})
    assert (list(found), folded) == (["s"], 0)
    assert place_weights(iter([("one", np.array([1.0]))]), [held], {"model": data}) == ({}, 1)
    with pytest.raises(GateError, match="1 weights of the checkpoint stand in no graph, the first: s"):
        place_weights(iter([("s", np.array([0.5]))]), [held], {"model": data})


def test_what_no_model_reads_is_no_weight(tmp_path):
    model = tiny_models.save("multimodal", tmp_path / "model")
    names = dict(checkpoint_weights(model))
    assert len(redundant_names(MergedCheckpoint(model))) == 9
    assert not [name for name in names if "vision" in name or "audio" in name or "layers.4.self_attn.k_" in name]
    assert len(names) == len(dict(checkpoint_weights(tiny_models.save("e2b", tmp_path / "text"))))


def test_codes_are_read_with_their_steps():
    codes = np.array([-8, 7, 1, -1], np.int8)
    packed = np.array([(codes[1] & 15) << 4 | codes[0] & 15, (codes[3] & 15) << 4 | codes[2] & 15], np.uint8)
    assert nibble_codes(packed).tolist() == codes.tolist()
    blocks = GraphConstant("model", "w", INT4, (1, 4), 0, 2, scale=np.array([[0.5, 2.0]]))
    assert blocks.held(packed.tobytes()).tolist() == [[-4.0, 3.5, 2.0, -2.0]]
    rows = GraphConstant("model", "w", INT8, (2, 2), 0, 4, scale=np.array([1.0, 0.5]))
    assert rows.held(codes.tobytes()).tolist() == [[-8.0, 7.0], [0.5, -0.5]]


def test_a_graft_knows_what_training_changed(tmp_path):
    base = tiny_models.save("e2b", tmp_path / "base")
    tuned = tmp_path / "tuned"
    shutil.copytree(base, tuned)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    state = load_file(base / "model.safetensors")
    save_file(state | {name: state[name] + 1}, tuned / "model.safetensors")
    ((found, before, after),) = changed_tensors(base, tuned)
    assert found == name
    assert np.allclose(after - before, 1, atol=0.05)
    assert len(dict(checkpoint_weights(base))) == len(state)
    save_file({key: value for key, value in state.items() if key != name}, tuned / "model.safetensors")
    with pytest.raises(GateError, match="is in one of"):
        list(changed_tensors(base, tuned))


@pytest.mark.parametrize(
    ("record", "words"),
    [(None, "no float graphs that are whole"), ({"context": 1}, "another context"), ({"lock": "x"}, "another lock")],
)
def test_graphs_of_something_else_are_refused(tmp_path, record, words):
    settings = QuantizeConfig(formats=("litertlm_wi8",), edge_graphs=str(tmp_path), edge_context=CONTEXT)
    if record is not None:
        body = {"context": CONTEXT, "lock": TOOL.digest, "base": str(tmp_path), "versions": {}} | record
        (tmp_path / "graphs.json").write_text(json.dumps(body))
    with pytest.raises(ConfigError, match=words):
        edge_graphs._read_record(tmp_path, settings)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Float graphs of nano, made once."""
    folder = tmp_path_factory.mktemp("edge") / "graphs"
    make_base_graphs("nano", folder, MACHINE, context=CONTEXT)
    return folder


def tuned_nano(folder):
    """Nano with two matrices of another model."""
    shutil.copytree(tiny_models.NANO, folder)
    state = load_file(folder / "model.safetensors")
    for name in ("layers.1.mlp.down_proj.weight", "layers.4.self_attn.q_proj.weight"):
        key = f"model.language_model.{name}"
        state[key] = state[key] * 1.25 + torch.roll(state[key], 1, 0) * 0.5
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@needs_tool
@pytest.mark.slow
def test_nano_becomes_a_file_by_graft_and_answers(graphs, tmp_path):
    """One export, then everything that is made of it: softcap and tokens, prompts and stops are the gates' own."""
    model = tuned_nano(tmp_path / "tuned")
    settings = QuantizeConfig(
        formats=("litertlm_wi8", "litertlm_wi4"), edge_graphs=str(graphs), edge_context=CONTEXT, fidelity_rows=2
    )
    out = tmp_path / "q"
    out.mkdir()
    metrics = quantize(out, settings, MACHINE, model=model)
    report = json.loads((out / "report.json").read_text())["formats"]
    wi8, wi4 = report["litertlm_wi8"], report["litertlm_wi4"]
    assert wi8["made_by"]["way"] == "grafted"
    assert wi8["made_by"]["laid"] == 2
    assert wi8["audit"]["weights"] + wi8["audit"]["folded_scalars"] == len(load_file(model / "model.safetensors"))
    assert 0.49 < wi8["audit"]["worst_steps"] < 0.51
    assert set(wi4["audit"]["parameters"]) == {"float32", "int4", "int8"}
    assert metrics["litertlm_wi8/every_token_kl"] < 0.01 < metrics["litertlm_wi4/every_token_kl"] < 1
    assert wi8["runtime"]["equal"] is True
    first = (out / "litertlm_wi8" / "model.litertlm").read_bytes()
    assert first.startswith(b"LITERTLM")
    request = {"graphs": str(graphs), "quantized": "", "recipe": "", "model": str(model), "context": CONTEXT}
    made = []
    for name in "ab":  # the same content has the same bytes, whenever it is packed
        file = tmp_path / f"{name}.litertlm"
        run_tool_job(TOOL, MACHINE, "edge_bundle", request | {"out": str(file)}, tmp_path / "j", what="x")
        made.append(file.read_bytes())
    assert made[0] == made[1]
    assert b"prefer_activation_type" in made[0][:16384]
    assert b"fp32" in made[0][:16384]
    assert said_of(model) == {
        "kind": "gemma4", "quote": '<|"|>', "fence": "<|tool_call>", "response": "<|tool_response>", "bos": [2],
        "stops": [1, 106, 50], "channel": "<|channel>thought\n",
    }  # fmt: skip
    target = open_made(
        "litertlm_wi8", "litertlm_wi8", out / "litertlm_wi8" / "model.litertlm", model, MACHINE, asked=AskingMode()
    )
    plain = CheckpointTarget("tuned", model, MACHINE)
    asked = [[Prompt([{"role": "user", "content": "Route this ticket as JSON: the kettle leaks 😀."}])]]
    ((said,),), ((wanted,),) = (each.answer(asked, max_new_tokens=12) for each in (target, plain))
    assert said.text[:4] == wanted.text[:4]
    assert said.prompt_tokens == wanted.prompt_tokens
    wrong = run_edge_logits(graphs, model, tmp_path)
    assert wrong > 1e-2  # the base's graphs are not the tuned model's
    with pytest.raises(GateError, match="stand in no graph"):
        run_tool_job(
            TOOL, MACHINE, "edge_audit", {"model": str(model), "graphs": str(graphs), "quantized": {}}, tmp_path / "a",
            what="x",
        )  # fmt: skip


SAID = """
import json, sys, types
package = types.ModuleType("gemma_ops")
package.__path__ = [sys.argv[1]]
sys.modules["gemma_ops"] = package
from pathlib import Path
from gemma_ops.toolenvs.jobs.edge_bundle import edge_metadata
found = edge_metadata(Path(sys.argv[2]), 512)
gemma = found.llm_model_type.gemma4
print(json.dumps({
    "kind": found.llm_model_type.WhichOneof("model_type"), "quote": gemma.open_quote, "fence": gemma.code_fence_start,
    "response": gemma.function_response_start, "bos": list(found.start_token.token_ids.ids),
    "stops": [number for stop in found.stop_tokens for number in stop.token_ids.ids],
    "channel": found.channels[0].start}))
"""


def said_of(model):
    """What a file's metadata says of a checkpoint, as the tool's own library reads it."""
    python = find_tool(TOOL, MACHINE).python
    package = Path(edge_graphs.__file__).parents[1]
    done = patience.run([str(python), "-I", "-c", SAID, str(package), str(model)], seconds=120)
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_edge_logits(graphs, model, folder):
    request = {
        "model": str(model), "graphs": {"g": str(graphs)}, "prefilled": ["g"], "threads": 1,
        "conversations": [list(range(3, 150))],
    }  # fmt: skip
    return run_tool_job(TOOL, MACHINE, "edge_logits", request, folder / "l", what="x")["largest"]["g"]


@needs_tool
@pytest.mark.slow
def test_graphs_say_what_transformers_says_beyond_a_piece_of_a_prompt(graphs, tmp_path):
    """The softcap is in them, the first 128 tokens are read at once, and the window of 64 tokens is passed."""
    assert run_edge_logits(graphs, tiny_models.NANO, tmp_path) < 1e-4
