"""Divergence of one model's next-token distributions from another's, position by position."""

from __future__ import annotations

import numpy as np


def position_divergences(reference: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return KL(reference || other) in nats, and whether the likeliest token is the same, at each position,
    (positions,), from logits over the whole vocabulary, (positions, vocabulary)."""
    kls = np.empty(len(reference))
    for place, (first, second) in enumerate(zip(reference, other, strict=True)):
        p, q = _log_softmax(first), _log_softmax(second)
        kls[place] = max(float(np.exp(p) @ (p - q)), 0.0)
    return kls, reference.argmax(-1) == other.argmax(-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    values -= values.max()
    found: np.ndarray = values - np.log(np.exp(values).sum())
    return found
