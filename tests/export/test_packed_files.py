"""Checkpoints of compressed-tensors: our writer and reader, the audit, the step, and what stops it.

Tests that need the tool llm-compressor are skipped where it isn't installed (`GEMMA_OPS_TOOLS` says where it is).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import gguf
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gemma_ops.config import MachineConfig, QuantizeConfig
from gemma_ops.errors import GateError, MachineError, ModelError
from gemma_ops.export import quantize, quantizing
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_fit import is_calibrated
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.packed_audit import audit_packed
from gemma_ops.export.packed_tool import finish_folder
from gemma_ops.export.packed_writer import lattice_blocks, write_packed
from gemma_ops.export.redundant_kv import redundant_names
from gemma_ops.export.tensor_bytes import TensorBytes
from gemma_ops.family.formats import PACKED
from gemma_ops.ggml.packing import unpack_blocks
from gemma_ops.modeling.load import load_model
from gemma_ops.modeling.packed_weights import pack_codes, unpack_codes
from gemma_ops.privacy.classes import record_learned
from gemma_ops.toolenvs.install_tool import find_tool
from gemma_ops.toolenvs.tool_job import run_tool_job
from gemma_ops.toolenvs.tool_list import TOOLS
from tests.helpers import tiny_models

ROOT = Path(__file__).parents[2]
MACHINE = MachineConfig(device="cpu", workers=1)
FORM = PACKED["w4a16"]
TOOL = TOOLS["llm-compressor"]
needs_tool = pytest.mark.skipif(
    not find_tool(TOOL, MACHINE).installed, reason="the tool llm-compressor is not installed (GEMMA_OPS_TOOLS)"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function from a kind of tiny model to its checkpoint and its w4a16."""
    folder = tmp_path_factory.mktemp("packed")
    known = {}

    def make(kind, **options):
        key = (kind, *options.items())
        if key not in known:
            source = MergedCheckpoint(tiny_models.save(kind, folder / kind))
            out = folder / f"{kind}-{len(known)}"
            given = {"redundant_kv": False} | options
            write_packed(source, plan_tensors(source, FORM_GGUF), FORM, out, TensorBytes(), **given)
            known[key] = source, out
        return known[key]

    return make


FORM_GGUF = "q4_0"


def tensors(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def test_codes_are_packed_eight_to_an_int_the_first_lowest():
    codes = torch.tensor([[-8, -7, 0, 7, 1, 2, 3, -1], [7] * 8])
    words = pack_codes(codes)
    assert words.dtype == torch.int32
    assert f"{words[0, 0].item() & 0xFFFFFFFF:08x}" == "7ba9f810"
    assert words[1, 0].item() == -1
    assert unpack_codes(words, 8).tolist() == codes.tolist()


@pytest.mark.parametrize("kind", ["e2b", "moe"])
def test_a_model_read_back_holds_the_decoded_weights(made, kind):
    source, out = made(kind)
    model = load_model(out, weights="fp32", packed=True)
    plan = plan_tensors(source, FORM_GGUF)
    checked = 0
    for tensor in plan.tensors:
        if tensor.source is None or tensor.type != FORM.lattice:
            continue
        blocks = lattice_blocks(source, tensor, TensorBytes())
        scale = blocks.scale.to(torch.bfloat16).float().repeat_interleave(32, 1)
        wanted = (blocks.codes.float() * scale).to(torch.bfloat16).float().view(tensor.source.shape)
        assert torch.equal(model.get_parameter(tensor.source.name), wanted), tensor.source.name
        checked += 1
    assert checked >= 30 if kind == "e2b" else checked >= 40
    kept = source.read("model.language_model.embed_tokens.weight")
    assert torch.equal(model.get_parameter("model.language_model.embed_tokens.weight"), kept.float())
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "model.language_model.layers.0.self_attn.q_proj" not in config["ignore"]
    routers = [name for name in config["ignore"] if "router" in name]
    assert bool(routers) == (kind == "moe")
    with pytest.raises(ModelError, match="is already quantized"):
        load_model(out)


def test_the_audit_counts_and_refuses_what_was_left(made, tmp_path):
    source, out = made("moe")
    audit = audit_packed(out, source, FORM)
    assert audit.bulk_share == 1
    assert audit.parameters.keys() == {"BF16", "I32"}
    whole = tensors(out)
    experts = {name for name in whole if ".experts." in name}
    stacks = {name: source.read(name) for name in source.entries if ".experts." in name}
    broken = tmp_path / "broken"
    broken.mkdir()

    def left(found):
        save_file(found, broken / "model.safetensors")
        audit_packed(broken, source, FORM)

    rest = {name: value for name, value in whole.items() if name not in experts}
    with pytest.raises(GateError, match=r"lacks \d+ of \d+ matrices, the first: .*experts.0.gate_proj"):
        left(rest | stacks)
    bf16 = {
        f"{name.removesuffix('.weight_packed')}.weight": torch.zeros(value.shape[0], value.shape[1] * 8).bfloat16()
        for name, value in whole.items()
        if name.endswith("weight_packed") and ".experts." in name
    }
    with pytest.raises(GateError, match=r"only \d+% of attention, MLP and experts is w4a16.*BF16 \d+%"):
        left(rest | bf16)
    router = next(name for name in whole if name.endswith("router.proj.weight"))
    with pytest.raises(GateError, match=r"holds .*router.proj as I8"):
        left(whole | {router: whole[router].to(torch.int8)})


def test_redundant_keys_and_values_are_dropped_or_kept(made):
    source, out = made("multimodal")
    names = redundant_names(source)
    assert len(names) == 9
    assert not set(names) & set(tensors(out))
    _, kept = made("multimodal", redundant_kv=True)
    assert {name: tensors(kept)[name].tolist() for name in names} == {
        name: source.read(name).tolist() for name in names
    }
    ignored = json.loads((kept / "config.json").read_text())["quantization_config"]["ignore"]
    assert "model.language_model.layers.3.self_attn.k_proj" in ignored
    towers = [name for name in source.entries if "vision_tower" in name]
    assert towers
    assert all(torch.equal(tensors(out)[name], source.read(name)) for name in towers)
    load_model(kept, packed=True)
    with pytest.raises(ModelError, match="saved by transformers, which drops them"):
        made("e2b", redundant_kv=True)


def test_what_a_tool_wrote_becomes_one_complete_folder(made, tmp_path):
    source, out = made("multimodal")
    whole = tensors(out)
    names = sorted(whole)
    shared = {name: source.read(name) for name in redundant_names(source)}
    save_file({name: whole[name] for name in names[::2]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({name: whole[name] for name in names[1::2]} | shared, tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text("x")
    (tmp_path / "config.json").write_text((out / "config.json").read_text())
    finish_folder(source, tmp_path, redundant_kv=False)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in names)
    assert {each.name for each in tmp_path.iterdir()} == {each.name for each in out.iterdir()}
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((out / "config.json").read_text())


def test_what_a_tool_dropped_is_written_back(made, tmp_path):
    source, out = made("multimodal")
    save_file(tensors(out), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((out / "config.json").read_text())
    finish_folder(source, tmp_path, redundant_kv=True)
    found = load_file(tmp_path / "model.safetensors")
    names = redundant_names(source)
    assert found.keys() == {*tensors(out), *names}
    assert all(torch.equal(found[name], source.read(name)) for name in names)
    ignored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["ignore"]
    assert "model.language_model.layers.5.self_attn.v_proj" in ignored


ROWS = [
    {"messages": [
        {"role": "user", "content": f"Order {number}: where is my parcel?"},
        {"role": "assistant", "content": f'{{"category": "shipping", "order": {number}}}'},
    ]}
    for number in range(100, 112)
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, rows in (("train", ROWS[4:]), ("valid", ROWS[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_step_writes_w4a16_with_the_codes_of_the_fitted_gguf_file(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = (ROOT / "eval" / "support_desk" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (data / "train.jsonl").write_text("".join(rows[4:28]))
    (data / "valid.jsonl").write_text("".join(rows[:2]))
    settings = QuantizeConfig(formats=(FORM_GGUF, "w4a16"), fit="importance", fidelity_rows=2)
    out = tmp_path / "q"
    out.mkdir()
    metrics = quantize(out, settings, MACHINE, model=tiny_models.NANO, data=data)
    report = json.loads((out / "report.json").read_text())["formats"]["w4a16"]
    assert report["made_by"] == {"writer": "gemma-ops", "method": "importance"}
    assert report["audit"]["bulk_share"] == 1
    assert report["fit"]["gain"]["every_token"]["kl_ratio"] == pytest.approx(metrics["w4a16/kl_ratio"], rel=1e-3)
    assert "vLLM has not run here" in report["not_run"][0]
    assert sorted(each.name for each in out.iterdir()) == ["bf16", "learned.json", FORM_GGUF, "report.json", "w4a16"]
    names = {each.name for each in (out / "w4a16").iterdir()}
    assert {"config.json", "learned.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    files = {each.name: each for each in gguf.GGUFReader(out / FORM_GGUF / "model.gguf").tensors}
    blocks = unpack_blocks(torch.from_numpy(files["blk.0.ffn_up.weight"].data.copy()), FORM.lattice)
    found = tensors(out / "w4a16")
    stem = "model.language_model.layers.0.mlp.up_proj"
    assert torch.equal(found[f"{stem}.weight_packed"], pack_codes(blocks.codes))
    assert torch.equal(found[f"{stem}.weight_scale"], blocks.scale.to(torch.bfloat16))


def test_what_is_measured_on_rows_is_as_private_as_they_are(made, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(made("e2b")[0].folder, model)
    record_learned(model, "any", ["made up"])
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0] | {"id": "a", "privacy": "local_only"}) + "\n")
    plain, gptq = QuantizeConfig(), QuantizeConfig(w4a16="gptq")
    assert [is_calibrated(plain, form) for form in ("nvfp4", "fp8", "w4a16", FORM_GGUF)] == [True, False, False, False]
    assert is_calibrated(gptq, "w4a16")
    assert quantizing._classes(model, tmp_path, ["fp8", "nvfp4"], ["nvfp4"]) == {"fp8": "any", "nvfp4": "local_only"}


def test_a_format_of_a_tool_that_is_not_here_is_refused(made, tmp_path):
    source, _ = made("e2b")
    machine = MachineConfig(device="cpu", workers=1, tools=str(tmp_path / "none"))
    with pytest.raises(MachineError, match="fp8 needs the tool llm-compressor, and it is not installed"):
        quantize(tmp_path, QuantizeConfig(formats=("fp8",), fidelity_rows=1), machine, model=source.folder)


@needs_tool
@pytest.mark.slow
def test_our_w4a16_is_read_by_compressed_tensors_as_by_us(made, tmp_path):
    from gemma_ops.export.fidelity import Conversation
    from gemma_ops.export.packed_files import weights_divergence
    from gemma_ops.export.packed_tool import diverge_in_tool

    source, out = made("e2b")
    chosen = [Conversation(list(range(3, 40)), [10])]
    here = weights_divergence(out, source, chosen, MACHINE)
    request = {
        "model": str(out), "reference": str(source.folder), "mixture": False, "dtype": "float32",
        "conversations": [chosen[0].ids],
    }  # fmt: skip
    run_tool_job(TOOL, MACHINE, "compare_checkpoint", request, tmp_path / "job", what="w4a16")
    import numpy as np

    there = np.load(tmp_path / "job" / "measured.npz")["kl0"]
    assert there.mean() == pytest.approx(here.kls[0].mean(), rel=0.02)
    missing = tmp_path / "missing"
    missing.mkdir()
    for file in out.iterdir():
        (missing / file.name).write_bytes(file.read_bytes())
    whole = {name: value for name, value in tensors(out).items() if "layers.0.mlp.up_proj" not in name}
    save_file(whole, missing / "model.safetensors")
    with pytest.raises(ModelError, match="has no value for"):
        diverge_in_tool(source, PACKED["fp8"], missing, chosen, MACHINE, tmp_path)


@needs_tool
@pytest.mark.slow
def test_gptq_runs_where_layers_share_keys_and_values_and_experts_are_quantized(made, data, tmp_path):
    source, _ = made("e2b")
    for name in "ab":
        (tmp_path / name).mkdir()
    settings = QuantizeConfig(formats=("w4a16",), w4a16="gptq", fidelity_rows=1)
    quantize(tmp_path / "a", settings, MACHINE, model=source.folder, data=data)
    report = json.loads((tmp_path / "a" / "report.json").read_text())["formats"]["w4a16"]
    assert report["audit"]["bulk_share"] == 1
    assert report["made_by"] == {"writer": "llm-compressor", "method": "gptq"}
    source, _ = made("moe")
    settings = QuantizeConfig(formats=("fp8",), fidelity_rows=1)
    quantize(tmp_path / "b", settings, MACHINE, model=source.folder, data=data)
    report = json.loads((tmp_path / "b" / "report.json").read_text())["formats"]["fp8"]
    assert report["audit"]["bulk_share"] == 1
    assert any("does not read the experts" in why for why in report["not_run"])
