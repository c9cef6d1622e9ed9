"""Bytes on disk of what a drafter is tuned on: a target's states, and the keys and values that the drafter reads."""

from __future__ import annotations

from gemma_ops.config import DraftConfig
from gemma_ops.family import Shape

_NUMBER = 2
"""Bytes of a number: they are stored as bfloat16."""


def recorded_token_bytes(shape: Shape) -> int:
    """Return the bytes of one recorded token: its state, and the keys and values of the last layer of either kind that
    computes its own."""
    last = {layer.window is None: layer for layer in shape.layers if not layer.shares_kv}
    return _NUMBER * (shape.hidden + sum(2 * layer.kv_width for layer in last.values()))


def recorded_bytes(shape: Shape, settings: DraftConfig, prompt_tokens: float) -> float:
    """Return the most bytes that the answers to prompts of so many tokens on average can take."""
    return recorded_token_bytes(shape) * settings.rows * (prompt_tokens + settings.answer_tokens)
