"""Learning from rewards that are computed, not judged (`grpo`, `rloo`): what is rewarded, and how answers are drawn."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gemma_ops.config.section import ConfigSection, Share


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
    """How far the ratio to the drawing policy may leave 1 before it is clipped; matters when answers are used more than once."""
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
