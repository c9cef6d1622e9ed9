"""The losses that share the supervised trainer, each against its formula; row weights; NEFTune; LoRA+."""

from __future__ import annotations

import math
import types

import pytest
import torch

from gemma_ops.config import TrainConfig
from gemma_ops.errors import ConfigError
from gemma_ops.modeling.load import load_model
from gemma_ops.nano import WEIGHTS
from gemma_ops.training import head
from gemma_ops.training.arguments import sft_arguments
from gemma_ops.training.forward_inputs import BOUNDS, Collate
from gemma_ops.training.neftune import Noise

IDS = [[2, 105, 200, 300, 400, 500], [2, 110, 210, 310]]


def rows(weights=(1.0, 1.0)):
    return [
        {"input_ids": ids, "labels": [-100, -100, *ids[2:]], "weight": weight}
        for ids, weight in zip(IDS, weights, strict=True)
    ]


def model_for(**settings):
    model = load_model(WEIGHTS, weights="fp32")
    config = TrainConfig(weights="fp32", **settings)
    head.install_head(model, config)
    return model


def asked(model, given, divisor, **more):
    (one,) = Collate(packing=True, bounds=True)([[given], divisor, 0]).passes
    one.pop(BOUNDS)  # transformers' own attention tells documents apart by their positions
    return model(**one, divisor=divisor, **more).loss


def log_probabilities(model):
    """Of each scored token, document by document, from the model's own logits."""
    found = []
    for ids in IDS:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 1:-1]
        found.append(logits.log_softmax(-1).gather(-1, torch.tensor(ids[2:])[:, None])[:, 0])
    return found


def test_answers_are_scored_by_cross_entropy():
    model = model_for()
    each = torch.cat(log_probabilities(model))
    assert asked(model, rows(), 6.0).item() == pytest.approx(-each.sum().item() / 6, rel=1e-5)


def test_a_weight_counts_a_row_that_often():
    model = model_for()
    first, second = log_probabilities(model)
    loss = asked(model, rows((1.0, 3.0)), 10.0)
    assert loss.item() == pytest.approx(-(first.sum() + 3 * second.sum()).item() / 10, rel=1e-5)


def test_dft_weighs_each_token_by_its_own_probability():
    """arXiv 2508.05629, equation 9: the weight carries no gradient."""
    model = model_for(method="dft")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    norm = model.model.language_model.norm.weight.requires_grad_()
    each = torch.cat(log_probabilities(model))
    reference = -(each * each.exp().detach()).sum() / 6
    (expected,) = torch.autograd.grad(reference, norm)
    loss = asked(model, rows(), 6.0)
    (found,) = torch.autograd.grad(loss, norm)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("mix", [1.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_follows_the_teachers_distribution(mix, temperature):
    teacher = load_model(WEIGHTS, weights="fp32")
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.02)
    model = model_for(method="distill", distill={"teacher": "./larger", "mix": mix, "temperature": temperature})
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    norm = model.model.language_model.norm.weight.requires_grad_()
    reference = 0.0
    for ids in IDS:
        given = torch.tensor([ids])
        own = model(input_ids=given, use_cache=False).logits[0, 1:-1]
        shown = teacher(input_ids=given, use_cache=False).logits[0, 1:-1].detach()
        q, p = (own / temperature).log_softmax(-1), (shown / temperature).log_softmax(-1)
        divergence = (p.exp() * (p - q)).sum() * temperature**2
        answer = -own.log_softmax(-1).gather(-1, torch.tensor(ids[2:])[:, None]).sum()
        reference = reference + mix * divergence + (1 - mix) * answer
    reference = reference / 6
    (expected,) = torch.autograd.grad(reference, norm)
    loss = asked(model, rows(), 6.0, teacher=teacher)
    (found,) = torch.autograd.grad(loss, norm)
    assert loss.item() == pytest.approx(reference.item(), rel=1e-4)
    assert (found - expected).norm() / expected.norm() < 1e-3


@pytest.mark.parametrize("method", ["sft", "dft"])
def test_trls_tiles_agree(method):
    ours, theirs = model_for(method=method), model_for(method=method, kernels={"head": "trl"})
    assert asked(ours, rows(), 6.0).item() == pytest.approx(asked(theirs, rows(), 6.0).item(), rel=1e-5)


def test_a_pass_without_a_scored_token_still_reaches_every_parameter():
    model = model_for()
    (one,) = Collate(packing=True, bounds=False)([[[]], 6.0, 0]).passes
    loss = model(**one, divisor=6.0).loss
    loss.backward()
    assert loss.item() == 0.0
    assert model.model.language_model.norm.weight.grad.abs().sum() == 0.0


def test_without_targets_the_model_is_what_it_was():
    plain, model = load_model(WEIGHTS, weights="fp32"), model_for()
    ids = torch.tensor([IDS[0]])
    assert torch.equal(plain(input_ids=ids).logits, model(input_ids=ids).logits)


def test_noise_is_scaled_by_the_document_whatever_it_is_packed_with():
    embedding = torch.nn.Embedding(10, 16)
    model = types.SimpleNamespace(get_input_embeddings=lambda: embedding)
    noise = Noise(model, alpha=5.0)
    ids = torch.zeros(1, 1000, dtype=torch.long)
    embedding.train()
    noise.documents({"input_ids": ids, BOUNDS: [0, 100, 1000]})
    moved = embedding(ids) - embedding.weight[0]
    assert moved[:, :100].abs().max().item() == pytest.approx(5 / math.sqrt(100 * 16), rel=0.02)
    assert moved[:, 100:].abs().max().item() == pytest.approx(5 / math.sqrt(900 * 16), rel=0.02)
    places = torch.cat([torch.arange(100), torch.arange(900)])[None]
    noise.documents({"input_ids": ids, "position_ids": places})
    assert (embedding(ids) - embedding.weight[0])[:, :100].abs().max() > 5 / math.sqrt(900 * 16)
    embedding.eval()
    assert torch.equal(embedding(ids)[0, 0], embedding.weight[0])


def test_lora_plus_lets_the_second_factors_learn_faster():
    from gemma_ops.training.plus import lora_plus_groups

    a, b = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2, 2))
    model = types.SimpleNamespace(
        named_parameters=lambda: [("q.lora_A.default.weight", a), ("q.lora_B.default.weight", b)]
    )
    optimizer = torch.optim.AdamW([a, b], lr=1e-3)
    lora_plus_groups(optimizer, model, 16.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates == {id(a): 1e-3, id(b): 16e-3}
    assert all(group["weight_decay"] == 0.01 for group in optimizer.param_groups)


def test_eight_bit_optimizers_need_a_gpu(tmp_path):
    settings = TrainConfig(optimizer="adamw_8bit")
    with pytest.raises(ConfigError, match="needs a GPU"):
        sft_arguments(settings, tmp_path, has_valid=False, rate=1e-4, device="cpu")
