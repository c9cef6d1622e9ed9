"""Learning from answers that somebody compared or judged: pairs (`dpo`, `orpo`, `reward`) and single answers (`kto`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gemma_ops.config.section import ConfigSection

Loss = Literal[
    "sigmoid", "ipo", "robust", "hinge", "exo_pair", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "discopop", "sigmoid_norm", "kto", "apo_zero_unpaired",
]  # fmt: skip
UNPAIRED = ("kto", "apo_zero_unpaired")
"""Losses of `kto`, the method's own first; all others belong to `dpo`. TRL's `aot` losses sort the rows of a forward pass
and so depend on how many stand in one: they are left out."""


class PreferenceConfig(ConfigSection):
    """Learning from answers that somebody compared or judged."""

    loss: Loss | None = None
    """Form of the loss of `dpo` (`sigmoid`, `ipo`, `robust`, `hinge`, …) or `kto` (`kto`, `apo_zero_unpaired`); null takes the method's own."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How dear it is to leave the reference model (`dpo`, `kto`; tau of `ipo`), or weight of the odds ratio (`orpo`)."""
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
                "train.preference.label_smoothing is used by the losses robust and exo_pair only: set train.preference.loss"
            )
        if self.loss == "exo_pair" and not self.label_smoothing:
            raise ValueError(
                "train.preference.loss=exo_pair needs label_smoothing above 0 (its authors recommend 0.001)"
            )
        return self
