"""The head's losses are those of whole logits in float64, with their gradients, and hold no logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from gemma_ops import kernels
from gemma_ops.kernels import head_distill, head_tiles
from tests.helpers.kernel_models import relative

DIVISOR = 123.0


def capped(logits, cap):
    return logits if cap is None else cap * torch.tanh(logits / cap)


def made(dtype, tokens=300, entries=1501, width=32, scale=1.0):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = (torch.randn(entries, width) * scale / width**0.5).to(dtype).requires_grad_()
    labels = torch.randint(0, entries, (tokens,))
    with torch.no_grad():
        labels[:100] = (hidden @ weight.t()).argmax(1)[:100]  # some confident tokens
    return hidden, weight, labels, torch.rand(tokens)


def truth(hidden, weight, labels, cap, weights, dft=False):
    nll = functional.cross_entropy(capped(hidden.double() @ weight.double().t(), cap), labels, reduction="none")
    if dft:
        nll = nll * torch.exp(-nll.detach())
    return (nll if weights is None else nll * weights).sum() / DIVISOR


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [30.0, None])
@pytest.mark.parametrize("dft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_are_those_of_whole_logits(dtype, cap, dft, weighted):
    hidden, weight, labels, weights = made(dtype, scale=3.0)
    weights = weights if weighted else None
    want = truth(hidden, weight, labels, cap, weights, dft)
    form = kernels.linear_dft if dft else kernels.linear_cross_entropy
    got = form(hidden, weight, labels, softcap=cap, divisor=DIVISOR, weights=weights)
    loose = dtype == torch.bfloat16
    assert abs(float(got - want)) / abs(float(want)) < (5e-3 if loose else 1e-5)
    leaves = (hidden, weight)
    for ours, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        assert relative(ours, theirs) < (2e-2 if loose else 2e-5)
    if cap is not None and not loose:
        assert relative(got, truth(hidden, weight, labels, None, weights, dft)) > 1e-4  # a forgotten cap would show


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_label_far_below_the_largest_logit_has_a_finite_loss(dtype):
    """200 and 120 nats below: e^-120 is no number of float32."""
    hidden = torch.tensor([[200.0, 0.0], [120.0, 1.0], [0.0, 120.0]], dtype=dtype).requires_grad_()
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.25]], dtype=dtype).requires_grad_()
    labels = torch.tensor([1, 1, 0])
    want = functional.cross_entropy(hidden.double() @ weight.double().t(), labels, reduction="none")
    got, top = kernels.token_scores(hidden, weight, labels, softcap=None)
    assert torch.allclose(got.double(), want)
    assert not top.any()
    for ours, theirs in zip(
        torch.autograd.grad(got.sum(), (hidden, weight)), torch.autograd.grad(want.sum(), (hidden, weight)), strict=True
    ):
        assert relative(ours, theirs) < 1e-2


def test_a_label_outside_the_vocabulary_is_no_guess():
    hidden, weight, labels, _ = made(torch.float32)
    labels[3] = len(weight)
    assert kernels.token_scores(hidden.detach(), weight.detach(), labels, softcap=None)[0].isinf().tolist() == [
        index == 3 for index in range(len(labels))
    ]


def test_a_frozen_head_gets_no_gradient_and_the_states_the_same():
    hidden, weight, labels, _ = made(torch.float32)
    both = torch.autograd.grad(
        kernels.linear_cross_entropy(hidden, weight, labels, softcap=30.0, divisor=1.0), (hidden, weight)
    )
    frozen = weight.detach()
    (alone,) = torch.autograd.grad(
        kernels.linear_cross_entropy(hidden, frozen, labels, softcap=30.0, divisor=1.0), (hidden,)
    )
    assert torch.equal(alone, both[0])


def test_scores_say_where_the_label_is_on_top():
    hidden, weight, labels, _ = made(torch.float32)
    nll, top = kernels.token_scores(hidden, weight, labels, softcap=30.0)
    assert torch.equal(top, (hidden @ weight.t()).argmax(1) == labels)
    assert torch.allclose(nll, kernels.token_nll(hidden, weight, labels, softcap=30.0))


def test_labels_move_by_one_and_unlabelled_states_are_left_out():
    hidden = torch.arange(2 * 4 * 3.0).view(2, 4, 3)
    labels = torch.tensor([[-100, 7, -100, 8], [-100, -100, 9, -100]])
    states, targets = kernels.labelled(hidden, labels)
    assert targets.tolist() == [7, 8, 9]
    assert torch.equal(states, torch.stack([hidden[0, 0], hidden[0, 2], hidden[1, 1]]))


def test_what_is_refused():
    hidden, weight, labels, _ = made(torch.float32, tokens=3)
    with pytest.raises(TypeError, match="float16"):
        kernels.token_nll(hidden, weight.half(), labels, softcap=30.0)
    with pytest.raises(ValueError, match="cap"):
        kernels.token_nll(hidden, weight, labels, softcap=1000.0)
    with torch.no_grad():
        assert torch.isinf(kernels.token_nll(hidden, weight, torch.tensor([0, 1, 99999]), softcap=30.0)[2])


def test_no_tile_is_the_whole_of_the_logits():
    tokens, entries = head_tiles.tile_of(torch.device("cpu"))
    assert tokens * entries * 4 <= 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mix", "heat"), [(1.0, 1.0), (0.3, 2.0), (0.0, 1.0)])
def test_distillation_is_that_of_whole_logits(monkeypatch, dtype, mix, heat):
    hidden, weight, labels, weights = made(dtype, tokens=90, entries=5001)
    monkeypatch.setattr(head_distill, "_CHUNK", 40 * 5001 * 8)
    shown, teacher = torch.randn(90, 48).to(dtype), (torch.randn(5001, 48) / 7).to(dtype)
    student = capped(hidden.double() @ weight.double().t(), 30.0)
    larger = (capped(shown.double() @ teacher.double().t(), 30.0) / heat).log_softmax(1)
    divergence = (larger.exp() * (larger - (student / heat).log_softmax(1))).sum(1)
    nll = functional.cross_entropy(student, labels, reduction="none")
    want = (weights * (mix * heat**2 * divergence + (1 - mix) * nll)).sum() / DIVISOR
    got = kernels.linear_distillation(
        hidden, weight, shown, teacher, labels, softcap=30.0, teacher_softcap=30.0, temperature=heat, mix=mix,
        divisor=DIVISOR, weights=weights,
    )  # fmt: skip
    loose = dtype == torch.bfloat16
    assert abs(float(got - want)) / abs(float(want)) < (1e-2 if loose else 1e-5)
    pairs = zip(torch.autograd.grad(got, (hidden, weight)), torch.autograd.grad(want, (hidden, weight)), strict=True)
    for ours, theirs in pairs:
        assert relative(ours, theirs) < (3e-2 if loose else 2e-5)
