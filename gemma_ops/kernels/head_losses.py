"""Losses of a language model's head that never hold its logits and form their gradient in the forward pass.

All of them stand on `token_nll`: minus the log-probability of each label, differentiable by the hidden states (and by
the head where it trains). Because the derivative of every token is kept, [N, H] in all, whatever is done with the N
numbers afterwards (a mean, weights of rows, DFT's own probability, the ratio of a policy) costs nothing more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import head_tiles


def labelled(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states that predict a labelled token, and those tokens: `[B, T, H], [B, T] -> [N, H], [N]`.

    The state at t predicts the label at t + 1. In a packed row the first token of each document must carry no label
    (-100), or the document before would be asked for it.
    """
    targets = labels[:, 1:].reshape(-1)
    keep = (targets != -100).nonzero()[:, 0]
    # Positions of the rows without their last token, in the rows with it: no copy of the hidden states is made.
    length = labels.shape[1] - 1
    return hidden.reshape(-1, hidden.shape[-1]).index_select(0, keep + keep // length), targets[keep]


def token_nll(hidden: Tensor, weight: Tensor, labels: Tensor, *, softcap: float | None) -> Tensor:
    """Return minus the log-probability of each label, [N] float32, for `hidden [N, H]`, `weight [V, H]`, `labels [N]`.

    Differentiable. A label outside the vocabulary gives infinity, not a guess. `softcap` is the model's
    `final_logit_softcapping`. Raises TypeError for float16, ValueError for a cap beyond float32's exponent.
    """
    return _scored(hidden, weight, labels, softcap, top=False)[0]


def token_scores(hidden: Tensor, weight: Tensor, labels: Tensor, *, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Return `token_nll`, and [N] booleans: whether the label had the largest logit (one per cent slower)."""
    nll, top = _scored(hidden, weight, labels, softcap, top=True)
    assert top is not None
    return nll, top


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    softcap: float | None,
    divisor: float | Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return `sum(weights * nll) / divisor` over labelled tokens, a scalar in float32.

    `hidden [N, H]` predicts `labels [N]` (see `labelled`); `weight [V, H]` is the head; `divisor` is the number of
    labelled tokens (or the sum of weights) of the whole optimizer step, not of this pass; `weights [N]` are factors of
    tokens.
    """
    nll = token_nll(hidden, weight, labels, softcap=softcap)
    return (nll if weights is None else nll * weights).sum() / divisor


def linear_dft(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    softcap: float | None,
    divisor: float | Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the loss of dynamic fine-tuning: each token's loss times its own probability, which is not differentiated.

    Source: "On the Generalization of SFT" (arXiv 2508.05629), as TRL's `dft_loss`. Arguments as `linear_cross_entropy`.
    """
    nll = token_nll(hidden, weight, labels, softcap=softcap)
    likely = torch.exp(-nll.detach())
    return (nll * (likely if weights is None else likely * weights)).sum() / divisor


def _scored(
    hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None, *, top: bool
) -> tuple[Tensor, Tensor | None]:
    if hidden.dtype != weight.dtype:
        hidden = hidden.to(weight.dtype)
    if weight.dtype == torch.float16:
        raise TypeError("float16 overflows in Gemma 4: load the model in bfloat16 or float32")
    if softcap is not None and not 0 < softcap <= head_tiles.LARGEST_CAP:
        raise ValueError(f"a cap of {softcap} on the logits leaves float32: at most {head_tiles.LARGEST_CAP}")
    if not torch.is_grad_enabled() or not (hidden.requires_grad or weight.requires_grad):
        scores = head_tiles.score_tiles(hidden.detach(), weight.detach(), labels, softcap, gradient=False, top=top)
        return scores.nll, scores.top
    nll, best = _TokenNll.apply(hidden, weight, labels, softcap, top)
    return nll, best


class _TokenNll(torch.autograd.Function):  # type: ignore[misc]
    """The loss `head_tiles.score_tiles` with its derivative."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None, top: bool
    ) -> tuple[Tensor, Tensor | None]:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        scores = head_tiles.score_tiles(hidden, weight, labels, softcap, gradient=needs_hidden, top=top)
        ctx.softcap = softcap
        ctx.shift = None if isinstance(scores.shift, Tensor) else scores.shift
        kept = (hidden, weight, labels, scores.total, scores.shift if ctx.shift is None else None)
        ctx.save_for_backward(scores.gradient, *(kept if needs_weight else ()))
        if scores.top is not None:
            ctx.mark_non_differentiable(scores.top)
        return scores.nll, scores.top

    @staticmethod
    def backward(ctx: Any, outer: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        gradient, *kept = ctx.saved_tensors
        by_hidden = by_weight = None
        if gradient is not None:
            by_hidden = (gradient * outer[:, None]).to(gradient.dtype)
        if kept:
            hidden, weight, labels, total, shift = kept
            scores = head_tiles.Scores(total, total, ctx.shift if shift is None else shift, None, None)
            by_weight = head_tiles.weight_gradient(hidden, weight, labels, ctx.softcap, scores, outer)
        return by_hidden, by_weight, None, None, None
