"""Training methods: which there are of each kind, which rows each learns from, and the settings that only some of them
read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gemma_ops.config.section import ConfigSection, Share
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
    """Return the kinds of rows a method learns from."""
    return ROWS.get(method, ("conversation",))


def check_shown_rows(method: str, shown: Collection[str], where: str) -> None:
    """Raise ConfigError when rows have media (`image`, `audio`) and the method reads text only."""
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
"""Methods that read a key of `train.preference`, or one of `train.reinforce` that not both of its methods read."""


SUPERVISED = ("loss_on", "batch_tokens", "neftune")
"""Keys that only methods with given answers and a loss by token read."""


Loss = Literal[
    "sigmoid", "ipo", "robust", "hinge", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "sigmoid_norm", "kto", "apo_zero_unpaired",
]  # fmt: skip


UNPAIRED = ("kto", "apo_zero_unpaired")
"""Losses of `kto`, the method's own first; all others belong to `dpo`. TRL's `aot` losses sort the rows of a forward
pass and so depend on how many stand in one: they are left out."""


class PreferenceConfig(ConfigSection):
    """Learning from answers that somebody compared or judged."""

    loss: Loss | None = None
    """Form of the loss of `dpo` (`sigmoid`, `ipo`, `robust`, `hinge`, …) or `kto` (`kto`, `apo_zero_unpaired`); null
    takes the method's own."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How much it costs to leave the reference model (`dpo`, `kto`; tau of `ipo`), or weight of the odds ratio
    (`orpo`)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs believed to be the wrong way round, for the losses `robust` and `exo_pair`."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answers' own loss, averaged over their tokens, beside the preference (`dpo`)."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of wanted answers (`kto`); with many more of one kind, weigh the other one up."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of unwanted answers (`kto`)."""

    @model_validator(mode="after")
    def _smoothing(self) -> PreferenceConfig:
        smoothed = self.loss in ("robust", "exo_pair")
        if self.label_smoothing and not smoothed:
            raise ValueError(
                "train.preference.label_smoothing is used by the losses robust and exo_pair only: set "
                "train.preference.loss"
            )
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError(
                "train.preference.loss=exo_pair needs label_smoothing above 0 (its authors recommend 0.001)"
            )
        return self


class RewardConfig(ConfigSection):
    """One part of the reward: a metric, as evaluation tasks use it, of an answer against the row's own last answer."""

    metric: str
    """A metric's id, as in `task.yaml`: `exact_match`, `json_field_accuracy`, `numeric`, `regex`, `length`, …."""
    weight: float = 1.0
    """Factor of the metric's value (0 to 1); below zero it is a penalty."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The metric's options, as in `task.yaml`."""


class ReinforceConfig(ConfigSection):
    """Learning from rewards that are computed."""

    rewards: tuple[RewardConfig, ...] = ()
    """What an answer is worth: the weighted sum of these metrics; a bare id stands for `{metric: id}`."""
    generations: Annotated[int, Field(ge=2)] = 8
    """Answers drawn for each row of a step; they are compared with each other."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """An answer is cut after this many tokens."""
    cut: Literal["zero", "score", "mask"] = "zero"
    """What a cut answer is worth: nothing, what the metrics say of it, or it is left out of the loss."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Temperature of drawing; the loss is that of the same distribution."""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the model as it was at the start; 0 computes none."""
    clip: Share = 0.2
    """How far the ratio to the drawing policy may leave 1 before it is clipped; matters when answers are used more than
    once."""
    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"
    """How tokens are averaged (`grpo`): over all of a step, within each answer first, or by `max_new_tokens`."""
    scale: Literal["group", "batch", "none"] = "group"
    """By what standard deviation rewards are divided (`grpo`): their row's, the step's, or none."""

    @field_validator("rewards", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return (
            [{"metric": item} if isinstance(item, str) else item for item in value]
            if isinstance(value, (list, tuple))
            else value
        )
