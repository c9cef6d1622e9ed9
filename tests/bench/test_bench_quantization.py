"""The comparison with llama.cpp's own quantizer: same models, same importance, same rows."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from gemma_ops import family
from gemma_ops.bench.quantization import llamacpp_files, quantization_record, twins
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.family import Shape
from gemma_ops.family.formats import BLOCKS
from tests.helpers import ggml_peer


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return twins.make_twin("26B-A4B", tmp_path_factory.mktemp("twin") / "model", print, steps=1)


@pytest.mark.parametrize("size", family.CONFIGS)
def test_a_twin_has_the_mechanisms_of_its_size_and_rows_of_whole_blocks(size):
    whole = family.CONFIGS[size]
    shape = Shape.from_config({"model_type": whole["model_type"], "text_config": twins.twin_text_config(size)})
    true = Shape.from_config(whole)
    for fact in ("per_layer_dim", "experts", "softcap"):
        assert bool(getattr(shape, fact)) == bool(getattr(true, fact)), fact
    for fact in ("shares_kv", "k_eq_v"):
        assert any(getattr(each, fact) for each in shape.layers) == any(getattr(each, fact) for each in true.layers)
    for layer in shape.layers:
        assert not {shape.hidden, layer.query_width, layer.ffn} - {count * BLOCKS["Q4_K"] for count in range(1, 9)}


def test_the_peers_file_is_llamacpps_own_encoding_with_each_experts_importance(tmp_path, moe):
    source = MergedCheckpoint(moe)
    plan = llamacpp_files.llamacpp_plan(source, "q4_k_m")
    named = {each.name: each for each in plan.tensors}
    assert named["token_embd.weight"].type == "Q6_K"
    assert {named[f"blk.{layer}.ffn_down_exps.weight"].type for layer in range(6)} == {"Q4_K", "Q6_K"}
    name = "blk.0.ffn_gate_up_exps.weight"
    columns = {name: torch.rand(8, 256, generator=torch.Generator().manual_seed(0))}
    llamacpp_files.write_llamacpp(source, "q4_k_m", tmp_path / "model.gguf", columns, 1)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = source.read("model.language_model.layers.0.experts.gate_up_proj").float().numpy()
    expected = [ggml_peer.encode(weights[expert], "Q4_K", columns[name][expert].numpy()) for expert in range(8)]
    np.testing.assert_array_equal(np.array(stored[name].data).reshape(-1), np.concatenate(expected).reshape(-1))


def test_the_record_compares_every_way_at_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(
        quantization_record, "make_twin", lambda size, folder, tell: twins.make_twin(size, folder, tell, 2)
    )
    monkeypatch.setattr(quantization_record, "FORMATS", ("q4_k_m",))
    monkeypatch.setattr(quantization_record, "_HELD_OUT", 4)
    monkeypatch.setattr(quantization_record, "_FIT_ROWS", 8)
    told = []
    body = quantization_record.measure_quantization(["E2B"], None, tmp_path, 2, told.append)
    assert [line["way"] for line in body["lines"]] == [*quantization_record.WAYS, "llama.cpp, imatrix"]
    plain, *_, peer = body["lines"]
    assert {line["bytes"] for line in body["lines"][:-1]} == {plain["bytes"]}
    assert plain["task"]["gain"]["every_token"]["kl_ratio"] == 1.0
    assert 0 < peer["task"]["every_token"]["kl"] < 1
    assert peer["bytes"] < plain["bytes"]  # its per-layer projections have 4 bits
    told.clear()
    again = quantization_record.measure_quantization(["E2B"], None, tmp_path, 2, told.append)
    assert again == body
    assert told == [], "what is finished is kept"
    assert len(quantization_record.quantization_lines(body)) == len(body["lines"]) + 3
