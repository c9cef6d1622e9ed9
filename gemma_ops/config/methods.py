"""Which settings a training method reads, and which rows it learns from.

A setting that says nothing to the method is refused instead of being forgotten.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Literal

from gemma_ops.config.preference import UNPAIRED
from gemma_ops.errors import ConfigError

if TYPE_CHECKING:
    from gemma_ops.config.training import TrainConfig

Kind = Literal["conversation", "pair", "judged", "text"]
"""Rows by what stands in them: a conversation with its answers; a wanted and an unwanted answer to the same prompt; an
answer that is wanted, or one that is not; a text without turns."""

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

_READERS: dict[str, tuple[str, ...]] = {
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
_SUPERVISED = ("loss_on", "batch_tokens", "neftune")
"""Keys that only methods with given answers and a loss by token read."""


def rows(method: str) -> tuple[Kind, ...]:
    """The kinds of rows a method learns from."""
    return ROWS.get(method, ("conversation",))


def check_shown(method: str, shown: Collection[str], where: str) -> None:
    """Raises ConfigError when rows show something (`image`, `audio`) and the method reads text only."""
    if shown and method not in SHOWN:
        raise ConfigError(
            f"{where} show {' and '.join(sorted(shown, reverse=True))}, and train.method {method} reads text only",
            f"use {' or '.join(SHOWN)}, or rows without images and audio",
        )


def problems(train: TrainConfig) -> Iterator[str]:
    """What does not fit together in `train`, one line each."""
    method = train.method
    for name, section in (("preference", train.preference), ("reinforce", train.reinforce)):
        users = PREFERENCE if name == "preference" else REINFORCE
        for key, field in type(section).model_fields.items():
            if getattr(section, key) == field.get_default(call_default_factory=True):
                continue
            if method not in _READERS.get(f"{name}.{key}", users):
                yield f"train.{name}.{key} says nothing to train.method {method}"
    loss = train.preference.loss
    if loss and method in ("dpo", "kto") and (loss in UNPAIRED) != (method == "kto"):
        yield f"train.preference.loss {loss} is not a loss of {method}"
    if method != "distill":
        for key, field in type(train.distill).model_fields.items():
            if getattr(train.distill, key) != field.default:
                yield f"train.distill.{key} says nothing to train.method {method}"
    if train.tune == "full" and method in (*PREFERENCE, *REINFORCE):
        yield f"train.method {method} trains adapters: leave train.tune out, or set it to lora"
    if method == "pretrain":
        for key in ("loss_on", "thinking"):
            if getattr(train, key) != type(train).model_fields[key].default:
                yield f"train.{key} says nothing to train.method pretrain: every token of a text is learned"
    if method in (*PREFERENCE, *REINFORCE):
        for key in _SUPERVISED:
            if getattr(train, key) != type(train).model_fields[key].default:
                yield f"train.{key} says nothing to train.method {method}"
    if method in REINFORCE:
        if not train.reinforce.rewards:
            yield f"train.method {method} needs a reward, for example train.reinforce.rewards=[exact_match]"
        if train.micro_tokens:
            yield f"train.micro_tokens says nothing to train.method {method}: its forward passes are of train.micro_batch answers"
        answers = train.batch * train.reinforce.generations
        if answers % train.micro_batch:
            yield f"train.micro_batch ({train.micro_batch}) must divide the {answers} answers of a step (batch × reinforce.generations)"
        if train.lora.dropout:
            yield f"train.lora.dropout would make train.method {method} learn from another model than the one that answered"
