"""Training methods: which there are of each kind, and which rows each learns from."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from gemma_ops.errors import ConfigError

Kind = Literal["conversation", "pair", "judged", "text"]
"""Rows by what stands in them: a conversation with its answers; a wanted and an unwanted answer to the same prompt; an
answer that is wanted, or one that is not; a text without turns."""

Method = Literal["sft", "pretrain", "dft", "distill", "dpo", "kto", "orpo", "grpo", "rloo", "reward"]

PREFERENCE = ("dpo", "kto", "orpo", "reward")
REINFORCE = ("grpo", "rloo")
ROWS: dict[str, tuple[Kind, ...]] = {
    "dpo": ("pair",),
    "orpo": ("pair",),
    "reward": ("pair",),
    "kto": ("judged", "pair"),
    "pretrain": ("text",),
}
"""Kinds of rows by method; every other method learns from conversations. Of a pair `kto` takes each side by itself."""

SHOWN = ("sft", "dft")
"""Methods that learn from conversations with images and sounds."""


def rows_of_method(method: str) -> tuple[Kind, ...]:
    """The kinds of rows a method learns from."""
    return ROWS.get(method, ("conversation",))


def check_shown_rows(method: str, shown: Collection[str], where: str) -> None:
    """Raises ConfigError when rows show something (`image`, `audio`) and the method reads text only."""
    if shown and method not in SHOWN:
        raise ConfigError(
            f"{where} show {' and '.join(sorted(shown, reverse=True))}, and train.method {method} reads text only",
            f"use {' or '.join(SHOWN)}, or rows without images and audio",
        )


READERS: dict[str, tuple[str, ...]] = {
    "preference.loss": ("dpo", "kto"),
    "preference.beta": ("dpo", "kto", "orpo"),
    "preference.label_smoothing": ("dpo",),
    "preference.sft_weight": ("dpo",),
    "preference.desirable_weight": ("kto",),
    "preference.undesirable_weight": ("kto",),
    "reinforce.loss": ("grpo",),
    "reinforce.scale": ("grpo",),
}
"""Who reads a key of `train.preference`, or one of `train.reinforce` that not both of its methods read."""


SUPERVISED = ("loss_on", "batch_tokens", "neftune")
"""Keys that only methods with given answers and a loss by token read."""
