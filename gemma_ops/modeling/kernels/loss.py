"""Losses from hidden states and the output head."""

from __future__ import annotations

from typing import Any


def _log_probabilities(hidden: Any, weight: Any, softcap: float | None) -> Any:
    import torch

    logits = (hidden @ weight.to(hidden.dtype).t()).float()
    return torch.log_softmax(torch.tanh(logits / softcap) * softcap if softcap else logits, -1)


def linear_cross_entropy(
    hidden: Any, weight: Any, labels: Any, *, softcap: float | None, divisor: float, weights: Any = None
) -> Any:
    """Sum of weighted cross-entropies over `divisor`; hidden [N, H], weight [V, H], labels [N]."""
    each = -_log_probabilities(hidden, weight, softcap).gather(-1, labels[:, None])[:, 0]
    return (each if weights is None else each * weights).sum() / divisor


def linear_dft(
    hidden: Any, weight: Any, labels: Any, *, softcap: float | None, divisor: float, weights: Any = None
) -> Any:
    """The same with each term weighted by the label's own probability, without gradient (arXiv 2508.05629)."""
    found = _log_probabilities(hidden, weight, softcap).gather(-1, labels[:, None])[:, 0]
    each = -found * found.exp().detach()
    return (each if weights is None else each * weights).sum() / divisor
