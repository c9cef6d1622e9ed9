"""GGUF files: names, types, bytes, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from gemma_ops.data.prompt_record import Prompting, write_prompting
from gemma_ops.data.template import inference_template
from gemma_ops.errors import GateError, ModelError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_audit import audit_gguf
from gemma_ops.export.gguf_tensors import plan_tensors, tensor_type
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.family.formats import GgufName
from gemma_ops.runs import digest
from tests.helpers import tiny_models

FORMATS: tuple[GgufName, ...] = ("bf16", "q8_0", "q4_0")
Bases = Callable[[str], Path]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """A base checkpoint of each kind, made once."""
    made: dict[str, Path] = {}

    def base(kind: Any) -> Path:
        if kind not in made:
            made[kind] = tiny_models.save(kind, tmp_path_factory.mktemp("base") / kind)
        return made[kind]

    return base


def convert(base: Path, out: Path, form: GgufName) -> Path:
    source = MergedCheckpoint(base)
    write_gguf(source, plan_tensors(source, form), out, threads=2)
    return out


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def types(file: Path) -> dict[str, str]:
    return {name: tensor.tensor_type.name for name, tensor in tensors(file).items()}


@pytest.mark.parametrize("kind", tiny_models.KINDS)
@pytest.mark.parametrize("form", FORMATS)
def test_every_tensor_of_the_language_model_arrives(tmp_path: Path, bases: Bases, kind: str, form: GgufName) -> None:
    """Each value is the checkpoint's within the rounding of its type, and nothing is left out without a reason."""
    source = MergedCheckpoint(bases(kind))
    made = plan_tensors(source, form)
    write_gguf(source, made, tmp_path / "model.gguf", threads=2)
    found = audit_gguf(tmp_path / "model.gguf", made)
    assert found.bulk_share == 1.0
    left_out = [name for names in made.left_out.values() for name in names]
    used = [tensor.source.name for tensor in made.tensors if tensor.source]
    assert sorted(used + left_out) == sorted(source.entries)
    stored = tensors(tmp_path / "model.gguf")
    worst = {"F32": 0.0, "BF16": 0.0, "Q8_0": 0.01, "Q4_0": 0.15}
    for tensor in made.tensors:
        if tensor.source is None:
            continue
        data = gguf.quants.dequantize(stored[tensor.name].data, stored[tensor.name].tensor_type)
        original = source.read(tensor.source.name).float().numpy()
        error = np.linalg.norm(data.reshape(original.shape) - original) / np.linalg.norm(original)
        assert error <= worst[tensor.type], tensor.name


def test_left_out_are_towers_and_unused_keys(bases: Bases) -> None:
    left_out = plan_tensors(MergedCheckpoint(bases("multimodal")), "bf16").left_out
    assert {name.split(".")[1] for name in left_out["towers"]} == {
        "vision_tower", "audio_tower", "embed_vision", "embed_audio",
    }  # fmt: skip
    assert len(left_out["unused keys and values"]) == 9  # three shared layers, key, value and key norm each
    assert plan_tensors(MergedCheckpoint(bases("e2b")), "bf16").left_out == {}


def test_types_follow_the_policy(tmp_path: Path, bases: Bases) -> None:
    e2b = types(convert(bases("e2b"), tmp_path / "e2b.gguf", "q4_0"))
    moe = types(convert(bases("moe"), tmp_path / "moe.gguf", "q4_0"))
    assert e2b["token_embd.weight"] == e2b["per_layer_token_embd.weight"] == "Q8_0"
    assert e2b["blk.0.inp_gate.weight"] == e2b["blk.0.proj.weight"] == "Q8_0"
    assert e2b["per_layer_model_proj.weight"] == "BF16"
    assert e2b["blk.0.attn_q.weight"] == e2b["blk.5.ffn_down.weight"] == "Q4_0"
    assert e2b["blk.0.attn_norm.weight"] == e2b["blk.0.layer_output_scale.weight"] == e2b["rope_freqs.weight"] == "F32"
    assert moe["blk.0.ffn_gate_up_exps.weight"] == moe["blk.0.ffn_down_exps.weight"] == "Q4_0"
    assert {moe[f"blk.0.{name}"] for name in ("ffn_gate_inp.weight", "ffn_gate_inp.scale", "ffn_down_exps.scale")} == {
        "F32"
    }
    assert set(types(convert(bases("moe"), tmp_path / "q8.gguf", "q8_0")).values()) == {"F32", "Q8_0"}


def test_tables_may_have_six_bits_and_nothing_else_changes(tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "hidden_size_per_layer_input": 64, "num_hidden_layers": 8, "num_kv_shared_layers": 4}
    layers = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"] * 2
    source = MergedCheckpoint(tiny_models.save("e2b", tmp_path / "base", layer_types=layers, **wide))
    usual, smaller = plan_tensors(source, "q4_0"), plan_tensors(source, "q4_0", "Q6_K")
    changed = {one.name: (one.type, two.type) for one, two in zip(usual.tensors, smaller.tensors, strict=True)
               if one.type != two.type}  # fmt: skip
    assert changed == dict.fromkeys(("token_embd.weight", "per_layer_token_embd.weight"), ("Q8_0", "Q6_K"))
    assert plan_tensors(source, "q8_0", "Q6_K") == plan_tensors(source, "q8_0")
    write_gguf(source, smaller, tmp_path / "model.gguf", threads=1)
    audit_gguf(tmp_path / "model.gguf", smaller)
    mixed = {each.name: each.type for each in plan_tensors(source, "q4_k_m").tensors}
    assert [mixed[f"blk.{layer}.ffn_down.weight"] for layer in range(8)] == [
        "Q8_0", "Q5_0", "Q5_0", "Q8_0", "Q5_0", "Q5_0", "Q8_0", "Q8_0",
    ]  # fmt: skip


def test_rows_that_are_no_multiple_of_32_stay_bf16_and_too_many_of_them_are_refused(tmp_path: Path) -> None:
    assert tensor_type("blk.0.ffn_down.weight", (64, 48), "q4_0") == "BF16"
    some = tiny_models.save("dense31", tmp_path / "some", head_dim=20)  # o_proj of sliding layers has rows of 80
    source = MergedCheckpoint(some)
    made = plan_tensors(source, "q4_0")
    write_gguf(source, made, tmp_path / "some.gguf", threads=1)
    assert types(tmp_path / "some.gguf")["blk.0.attn_output.weight"] == "BF16"
    with pytest.raises(GateError, match=r"only \d+% .*row lengths \[80\]"):
        audit_gguf(tmp_path / "some.gguf", made)


def test_same_checkpoint_same_bytes_in_any_number_of_threads(tmp_path: Path, bases: Bases) -> None:
    copy = shutil.copytree(bases("moe"), tmp_path / "elsewhere")
    for form in FORMATS:
        source = MergedCheckpoint(bases("moe"))
        write_gguf(source, plan_tensors(source, form), tmp_path / "one.gguf", threads=1)
        convert(copy, tmp_path / "two.gguf", form)
        assert digest.of_file(tmp_path / "one.gguf") == digest.of_file(tmp_path / "two.gguf")


def test_q4_0_of_weights_on_its_lattice_is_exact(tmp_path: Path, bases: Bases) -> None:
    """Quantizing what Q4_0 gave changes nothing, so checkpoints trained for it (QAT) keep their values.

    The lattice is written in fp32: bf16 would round the products of scale and step.
    """
    from safetensors.torch import save_file

    source = MergedCheckpoint(bases("dense31"))
    first = convert(bases("dense31"), tmp_path / "first.gguf", "q4_0")
    stored = tensors(first)
    values = {}
    for tensor in plan_tensors(source, "q4_0").tensors:
        if tensor.source is not None:
            data = gguf.quants.dequantize(stored[tensor.name].data, stored[tensor.name].tensor_type)
            values[tensor.source.name] = torch.from_numpy(np.array(data)).reshape(tensor.shape)
    again = shutil.copytree(bases("dense31"), tmp_path / "lattice")
    save_file(values, again / "model.safetensors")
    second = tensors(convert(again, tmp_path / "second.gguf", "q4_0"))
    assert all(np.array_equal(stored[name].data, second[name].data) for name in stored)


def test_metadata(tmp_path: Path, bases: Bases) -> None:
    def fields(kind: str) -> dict[str, Any]:
        file = convert(bases(kind), tmp_path / f"{kind}.gguf", "q8_0")
        return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}

    e2b, moe = fields("e2b"), fields("moe")
    tokens = e2b["tokenizer.ggml.tokens"]
    assert tokens[e2b["tokenizer.ggml.eot_token_id"]] == "<turn|>"
    assert tokens[e2b["tokenizer.ggml.eos_token_id"]] == "<eos>"
    assert "<|turn>" in e2b["tokenizer.chat_template"]
    assert e2b["gemma4.feed_forward_length"] == [96, 96, 96, 192, 192, 192]
    assert e2b["gemma4.attention.shared_kv_layers"] == 3
    assert e2b["gemma4.attention.sliding_window_pattern"] == [True, True, False, True, True, False]
    assert moe["gemma4.attention.head_count_kv"] == [2, 2, 1, 2, 2, 1]
    assert (moe["gemma4.expert_count"], moe["gemma4.expert_used_count"]) == (8, 2)
    assert (moe["gemma4.attention.key_length"], moe["gemma4.attention.key_length_swa"]) == (64, 32)
    assert e2b["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
    assert not any("path" in name or "date" in name or "url" in name for name in e2b)


def test_sampling_and_the_mode_of_thinking_go_along(tmp_path: Path) -> None:
    base = tiny_models.save("e2b", tmp_path / "base")
    settings = json.loads((base / "generation_config.json").read_text())
    settings |= {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "do_sample": True}
    (base / "generation_config.json").write_text(json.dumps(settings))
    write_prompting(base, Prompting.of("on", inference_template()))
    file = convert(base, tmp_path / "model.gguf", "q8_0")
    found = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    assert (found["general.sampling.temp"], found["general.sampling.top_k"]) == (1.0, 64)
    assert found["general.sampling.top_p"] == pytest.approx(0.95)
    assert "general.sampling.min_p" not in found
    assert found["gemma_ops.thinking"] == "on"


def test_audit_refuses_a_file_that_is_not_what_was_asked(tmp_path: Path, bases: Bases) -> None:
    source = MergedCheckpoint(bases("moe"))
    file = convert(bases("moe"), tmp_path / "model.gguf", "q8_0")
    with pytest.raises(GateError, match=r"differs .* in \d+ tensors, first blk.0.attn_k.weight"):
        audit_gguf(file, plan_tensors(source, "q4_0"))
    with pytest.raises(GateError, match=r"in \d+ tensors"):
        audit_gguf(file, plan_tensors(MergedCheckpoint(bases("e2b")), "q8_0"))
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(GateError, match="cut short"):
        audit_gguf(file, plan_tensors(source, "q8_0"))


def test_full_disk_leaves_no_file(tmp_path: Path, bases: Bases) -> None:
    (tmp_path / "model.gguf.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        convert(bases("e2b"), tmp_path / "model.gguf", "bf16")
    assert list(tmp_path.iterdir()) == []


def test_sharing_that_would_abort_llama_cpp_is_refused(tmp_path: Path) -> None:
    base = tiny_models.save("e2b", tmp_path / "base", num_kv_shared_layers=2)
    with pytest.raises(ModelError, match="not a sliding and then a full-attention one"):
        plan_tensors(MergedCheckpoint(base), "bf16")


def test_unknown_tensors_are_refused(tmp_path: Path, bases: Bases) -> None:
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(bases("dense31"), tmp_path / "base")
    state = load_file(base / "model.safetensors")
    state["model.language_model.layers.0.self_attn.gate.weight"] = torch.zeros(4, 64)
    save_file(state, base / "model.safetensors")
    with pytest.raises(ModelError, match="no place for model"):
        plan_tensors(MergedCheckpoint(base), "bf16")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda body: body["model"].update(byte_fallback=False), "byte fallback"),
        (lambda body: body.update(normalizer=None), "normalizes"),
        (lambda body: body.update(pre_tokenizer={"type": "Whitespace"}), "before merging"),
        (lambda body: body["model"]["vocab"].update({"a\nb": 999_999}), "embedding"),
        (lambda body: body["model"]["vocab"].update({":\n": body["model"]["vocab"].pop("er")}), "line break"),
    ],
)
def test_tokenizers_llama_cpp_would_read_otherwise_are_refused(
    tmp_path: Path, bases: Bases, change: Callable[[dict[str, Any]], Any], what: str
) -> None:
    base = shutil.copytree(bases("dense31"), tmp_path / "base")
    body = json.loads((base / "tokenizer.json").read_text())
    change(body)
    (base / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(ModelError, match=what):
        convert(base, tmp_path / "model.gguf", "q8_0")
    assert not (tmp_path / "model.gguf").exists()
