"""What types change, told from gradients: beside the divergence that is really found, on every kind of model."""

from __future__ import annotations

import pytest
import torch

from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.mixed_types import _is_choice
from gemma_ops.export.tensor_bytes import rounded_rows
from gemma_ops.fitting import sensitivity
from gemma_ops.fitting.fit_rows import FitRow
from gemma_ops.fitting.packed_rows import install_reading, packed_states
from gemma_ops.fitting.sensitivity import Candidate, measure_sensitivity
from gemma_ops.modeling.load import load_model
from tests.helpers import tiny_models

KINDS = ("Q8_0", "Q4_0")


def rows(count: int) -> list[FitRow]:
    drawn = torch.randint(10, 300, (count, 32), generator=torch.Generator().manual_seed(5))
    return [FitRow(ids, [True] * len(ids)) for ids in drawn.tolist()]


@pytest.fixture(scope="module", params=["e2b", "moe"])
def subject(request, tmp_path_factory):
    folder = tiny_models.save(request.param, tmp_path_factory.mktemp(request.param) / "model")
    model = load_model(folder, weights="fp32", device="cpu")
    install_reading(model, recompute=False)
    plan = plan_tensors(MergedCheckpoint(folder), "q8_0")
    candidates = [Candidate(each.source.name, each.name, KINDS) for each in plan.tensors if _is_choice(each)]
    return request.param, model, candidates, measure_sensitivity(model, candidates, rows(16), rounded_rows, 1)


def logprobs(model, row):
    states = packed_states(model, [row])
    cap = model.config.get_text_config().final_logit_softcapping
    return (cap * torch.tanh(states @ model.lm_head.weight.t() / cap)).log_softmax(-1)


def divergence(model, types, candidates):
    """The divergence per token that is found when the tensors are rounded for real."""
    with torch.no_grad():
        before = [logprobs(model, row) for row in rows(16)]
        kept = {}
        for each in candidates:
            if each.name in types:
                weight = model.get_parameter(each.parameter)
                kept[each.parameter] = weight.clone()
                rounded = rounded_rows(weight.view(-1, weight.shape[-1]), types[each.name])
                weight.copy_(rounded.view(weight.shape))
        after = [logprobs(model, row) for row in rows(16)]
        for name, weight in kept.items():
            model.get_parameter(name).copy_(weight)
    found = [(old.exp() * (old - new)).sum(-1) for old, new in zip(before, after, strict=True)]
    return float(torch.cat(found).mean())


def test_a_whole_file_diverges_as_told(subject):
    base, model, candidates, found = subject
    for kind in KINDS:
        types = {each.name: kind for each in candidates}
        told, real = found.divergence(types), divergence(model, types, candidates)
        if base == "moe":  # random experts: which ones answer changes, and is not told
            assert 0.1 < told / real < 4, kind
        else:
            assert told == pytest.approx(real, rel=0.35), kind


def test_each_tensor_alone_diverges_as_told(subject):
    base, model, candidates, found = subject
    pairs = []
    for each in candidates[::4]:
        told, at_most = found.alone(each.name, "Q4_0")
        pairs.append((told, divergence(model, {each.name: "Q4_0"}, candidates)))
        assert told < at_most
        assert base == "moe" or 0.4 < told / pairs[-1][1] < 2.5, each.name
    logs = torch.tensor(pairs).log()
    assert torch.corrcoef(logs.t())[0, 1] > (0.6 if base == "moe" else 0.9)
    assert base == "moe" or float((logs[:, 0] - logs[:, 1]).mean()) == pytest.approx(0, abs=0.2)


def test_tables_and_projections_are_told_too(subject):
    _, _, candidates, _ = subject
    names = {each.name for each in candidates}
    assert "token_embd.weight" in names
    if any("per_layer" in name for name in names):
        assert {"per_layer_token_embd.weight", "blk.0.inp_gate.weight"} <= names


def test_the_model_is_left_as_it_was(subject):
    _, model, *_ = subject
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not any(module.sparse for module in model.modules() if isinstance(module, torch.nn.Embedding))


def test_several_passes_tell_what_one_tells(subject, monkeypatch):
    _, model, candidates, found = subject
    monkeypatch.setattr(sensitivity, "_ROOM", 1)
    again = measure_sensitivity(model, candidates[:2], rows(16), rounded_rows, 1)
    for each in candidates[:2]:
        torch.testing.assert_close(again.shifts[each.name, "Q4_0"], found.shifts[each.name, "Q4_0"])
