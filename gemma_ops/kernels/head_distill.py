"""Distillation from a larger model's logits, without ever holding those of all tokens.

A chunk of tokens at a time gets the logits of student and teacher, in the type of their heads; everything else happens
on tiles of the vocabulary. The gradient is formed in the forward pass as one difference of probabilities in float32:
near the end of a distillation the two are nearly equal, and subtracting them after rounding would leave noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK = 256 * 2**20
"""Bytes for the logits of student and teacher together."""
_TILE = 4096
"""Vocabulary entries whose float32 copies exist at once."""


@dataclass(frozen=True)
class Mixture:
    """Loss of the student: divergence from the teacher, mixed with cross-entropy."""

    temperature: float
    """Divisor of both models' logits; the divergence is multiplied by its square, so that gradients keep their size."""
    mix: float
    """Share of the divergence; the rest is the cross-entropy of the labels."""
    softcap: float | None
    """The student's `final_logit_softcapping`."""
    teacher_softcap: float | None
    """The teacher's `final_logit_softcapping`."""


def linear_distillation(
    hidden: Tensor,
    weight: Tensor,
    shown: Tensor,
    teacher_weight: Tensor,
    labels: Tensor,
    *,
    softcap: float | None,
    teacher_softcap: float | None,
    temperature: float,
    mix: float,
    divisor: float | Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """Return `sum(weights * (mix * t^2 * KL(teacher || student) + (1 - mix) * nll)) / divisor`, a scalar in float32.

    `hidden [N, H]` and `weight [V, H]` are the student's states and head, `shown [N, G]` and `teacher_weight [V, G]`
    the teacher's, `labels [N]` the tokens of the data. Differentiable by the student's states and head.
    """
    factors = torch.ones(len(labels), dtype=torch.float32, device=hidden.device) if weights is None else weights.float()
    mixture = Mixture(temperature, mix, softcap, teacher_softcap)
    shown = shown.detach().to(teacher_weight.dtype)
    loss: Tensor = _Distill.apply(
        hidden.to(weight.dtype), weight, shown, teacher_weight.detach(), labels, factors / divisor, mixture
    )
    return loss


class _Distill(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        shown: Tensor,
        teacher_weight: Tensor,
        labels: Tensor,
        factors: Tensor,
        mixture: Mixture,
    ) -> Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        by_hidden = torch.empty_like(hidden) if needs_hidden else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        chunk = max(16, _CHUNK // (len(weight) * (weight.element_size() + teacher_weight.element_size())))
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            own, other = hidden[rows] @ weight.t(), shown[rows] @ teacher_weight.t()
            loss += _chunk(own, other, labels[rows], factors[rows], mixture, slopes=needs_hidden or needs_weight)
            if by_hidden is not None:
                by_hidden[rows] = own @ weight
            if by_weight is not None:
                for tile in _tiles(len(weight)):
                    by_weight[tile] += own[:, tile].t() @ hidden[rows]
        ctx.save_for_backward(by_hidden, None if by_weight is None else by_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if each is None else (each * outer).to(each.dtype) for each in ctx.saved_tensors]
        return (*found, None, None, None, None, None)


def _chunk(own: Tensor, other: Tensor, labels: Tensor, factors: Tensor, mixture: Mixture, *, slopes: bool) -> Tensor:
    """Return the loss of a chunk from the raw logits of both, `[n, V]`; with `slopes`, `own` becomes its derivative."""
    heat, mix = mixture.temperature, mixture.mix
    own_top, other_top = (
        capped(logits.amax(1).float(), cap)[:, None]
        for logits, cap in ((own, mixture.softcap), (other, mixture.teacher_softcap))
    )
    sums = torch.zeros(4, len(own), dtype=torch.float32, device=own.device)
    for tile in _tiles(own.shape[1]):
        student, teacher = capped(own[:, tile], mixture.softcap), capped(other[:, tile], mixture.teacher_softcap)
        likely = ((teacher - other_top) / heat).exp_()
        sums[0] += ((student - own_top) / heat).exp_().sum(1)
        sums[1] += likely.sum(1)
        sums[2] += likely.mul_(teacher - student).sum(1)
        sums[3] += (student - own_top).exp_().sum(1)
    own_sum, other_sum, crossed, plain_sum = sums
    divergence = (
        crossed / other_sum / heat + own_sum.log() - other_sum.log() + ((own_top - other_top) / heat).squeeze(1)
    )
    label = capped(own.gather(1, labels[:, None]), mixture.softcap)
    nll = plain_sum.log() + (own_top - label).squeeze(1)
    loss = (factors * (mix * heat * heat * divergence + (1 - mix) * nll)).sum()
    if slopes:
        for tile in _tiles(own.shape[1]):
            student, teacher = capped(own[:, tile], mixture.softcap), capped(other[:, tile], mixture.teacher_softcap)
            slope = ((student - own_top) / heat).exp_().div_(own_sum[:, None])
            slope -= ((teacher - other_top) / heat).exp_().div_(other_sum[:, None])
            slope *= mix * heat
            if mix < 1:
                slope += (student - own_top).exp_().mul_((1 - mix) / plain_sum[:, None])
                inside = (labels >= tile.start) & (labels < tile.stop)
                column = (labels - tile.start).clamp(0, slope.shape[1] - 1)[:, None]
                slope.scatter_add_(1, column, (inside * (mix - 1.0))[:, None])
            if mixture.softcap is not None:
                slope *= 1 - (student / mixture.softcap).square_()
            own[:, tile] = slope.mul_(factors[:, None])
    return loss


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Return soft-capped logits, `softcap * tanh(logits / softcap)` in float32."""
    return logits.float() if softcap is None else (logits.float() / softcap).tanh_().mul_(softcap)


def _tiles(size: int) -> Iterator[slice]:
    for start in range(0, size, _TILE):
        yield slice(start, min(start + _TILE, size))
