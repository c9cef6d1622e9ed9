"""The fused mixture computes what transformers' experts do, dense and in 4 bits, and keeps less of it."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextExperts

from gemma_ops.kernels import ops_reference
from gemma_ops.kernels.mixture import mixture
from gemma_ops.kernels.ops_runner import EAGER
from gemma_ops.modeling import experts as stacks
from gemma_ops.modeling.load import load_model
from tests.helpers.checkpoints import tiny
from tests.helpers.kernel_models import build, kept_bytes, relative


def world(dtype=torch.float32):
    """Experts of a tiny mixture, hidden states, and a choice that leaves some experts without a token."""
    model = build("moe", dtype).requires_grad_(False)
    experts = model.model.language_model.layers[0].experts
    torch.manual_seed(0)
    hidden = torch.randn(37, experts.gate_up_proj.shape[-1], dtype=dtype, requires_grad=True)
    index = torch.stack([torch.randperm(experts.num_experts - 1)[:2] for _ in range(37)])
    weights = torch.rand(37, 2, requires_grad=True)
    return experts, hidden, index, weights


def gradients(out, *leaves):
    return torch.autograd.grad(out, leaves, torch.sin(torch.arange(out.numel())).view_as(out).to(out.dtype))


@pytest.mark.parametrize("recompute", [False, True])
def test_it_is_transformers_mixture(recompute):
    experts, hidden, index, weights = world()
    theirs = experts(hidden, index, weights)
    ours = mixture(experts, hidden, index, weights, EAGER, recompute=recompute)
    assert relative(ours, theirs) < 1e-6
    for a, b in zip(gradients(ours, hidden, weights), gradients(theirs, hidden, weights), strict=True):
        assert relative(a, b) < 1e-5


def test_in_bfloat16_it_is_as_near_the_truth():
    experts, hidden, index, weights = world()
    truth = gradients(experts(hidden, index, weights), hidden, weights)
    experts, low = experts.to(torch.bfloat16), hidden.detach().bfloat16().requires_grad_()
    ours = gradients(mixture(experts, low, index, weights, EAGER, recompute=False), low, weights)
    theirs = gradients(experts(low, index, weights), low, weights)
    for a, b, c in zip(ours, theirs, truth, strict=True):
        assert relative(a.float(), c) < 1.2 * relative(b.float(), c) + 1e-4


def test_four_bit_stacks_are_their_dequantized_selves():
    packed = load_model(tiny("moe"), weights="nf4").model.language_model.layers[0]
    own = Gemma4TextExperts(packed.config).to(torch.bfloat16).requires_grad_(False)
    for name in stacks.STACKS:
        getattr(own, name).data = stacks.dense(packed.experts, name)
    _, hidden, index, weights = world(torch.bfloat16)
    ours, theirs = (
        mixture(one, hidden, index % own.num_experts, weights, EAGER, recompute=False) for one in (packed.experts, own)
    )
    assert torch.equal(ours, theirs)
    for a, b in zip(gradients(ours, hidden, weights), gradients(theirs, hidden, weights), strict=True):
        assert torch.equal(a, b)


def test_it_keeps_less():
    experts, hidden, index, weights = world()
    theirs = kept_bytes(lambda: experts(hidden, index, weights), experts)
    kept, least = (
        kept_bytes(lambda again=again: mixture(experts, hidden, index, weights, EAGER, recompute=again), experts)
        for again in (False, True)
    )
    assert kept < 0.6 * theirs
    assert least < 0.5 * kept


def test_experts_that_learn_or_are_watched_run_by_themselves():
    experts, *rest = world()
    hook = experts.register_forward_hook(lambda *_: None)
    assert mixture(experts, *rest, EAGER, recompute=False) is None
    hook.remove()
    experts.down_proj.requires_grad_()
    assert mixture(experts, *rest, EAGER, recompute=False) is None


def test_rows_are_added_where_their_token_is():
    rows, back = torch.arange(12.0).view(6, 2), torch.tensor([5, 0, 1, 4, 3, 2])
    weights = torch.tensor([[1.0, 2.0], [0.5, 0.0], [1.0, 1.0]])
    assert ops_reference.weighed_sum(rows, back, weights, 2).tolist() == [[10, 13], [1, 1.5], [10, 12]]
    assert ops_reference.weighed_sum(rows, back, None, 2)[0].tolist() == [10, 12]
