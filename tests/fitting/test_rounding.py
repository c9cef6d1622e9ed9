"""Rounding with error feedback: what the layer says, not what its weights are, is kept."""

from __future__ import annotations

import pytest
import torch

from gemma_ops.family.formats import TensorType
from gemma_ops.fitting.fit_file import round_matrix
from gemma_ops.fitting.rounding import feedback_factors, round_with_feedback
from gemma_ops.ggml.encoding import encode_rows


def inputs(count: int = 600, width: int = 512, seed: int = 0) -> torch.Tensor:
    """Inputs that depend on each other, as a layer's do."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 40, generator=random) @ torch.randn(40, width, generator=random) + 0.3 * torch.randn(
        count, width, generator=random
    )


def matrix(seed: int = 1) -> torch.Tensor:
    return 0.05 * torch.randn(48, 512, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_0", "Q4_K", "Q6_K", "IQ4_XS"])
def test_the_output_moves_less_than_with_rounding_to_the_nearest(kind: TensorType) -> None:
    x, weight = inputs(), matrix()
    moments = x.t() @ x / len(x)
    ours = round_with_feedback(weight, moments, kind).decode()
    nearest = encode_rows(weight, kind, moments.diagonal()).decode()
    error, other = ((x @ (found - weight).t()).square().sum() for found in (ours, nearest))
    assert error < 0.6 * other


def test_independent_inputs_leave_nothing_to_feed_back() -> None:
    weight = matrix()
    found = round_with_feedback(weight, torch.eye(512), "Q4_0")
    assert torch.equal(found.codes, encode_rows(weight, "Q4_0").codes)


def test_columns_that_were_never_used_are_rounded_to_the_nearest() -> None:
    x, weight = inputs(), matrix()
    x[:, 100:140] = 0
    found = round_with_feedback(weight, x.t() @ x / len(x), "Q4_0").decode()
    assert found.isfinite().all()
    assert (found - weight)[:, 100:128].abs().max() < 0.05


def test_moments_of_too_few_tokens_are_damped_until_they_can_be_inverted() -> None:
    x = inputs(count=3)
    upper = feedback_factors(x.t() @ x / len(x))
    assert upper.isfinite().all()
    assert torch.equal(upper, upper.triu())
    assert feedback_factors(torch.zeros(32, 32)).isfinite().all()


def test_each_expert_is_rounded_for_its_own_tokens() -> None:
    stack = torch.stack([matrix(1), matrix(2)])
    moments = torch.stack([x.t() @ x / len(x) for x in (inputs(seed=3), inputs(seed=4))])
    both = round_matrix(stack, moments, "Q4_0")
    assert both.codes.shape == (96, 512)
    for expert in range(2):
        alone = round_with_feedback(stack[expert], moments[expert], "Q4_0")
        assert torch.equal(both.codes[48 * expert : 48 * (expert + 1)], alone.codes)
