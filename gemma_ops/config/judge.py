"""Who judges, how, and on what it may be believed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.config.section import LOCATION, ConfigSection


class JudgeConfig(ConfigSection):
    """A panel of models that compares answers, for what no metric can score."""

    judges: tuple[str, ...] = ()
    """Targets that judge; none means that nobody does. Best from families that neither wrote nor learned the answers."""
    mode: Literal["pairwise", "pointwise"] = "pairwise"
    """`pairwise` compares two answers in both orders; `pointwise` scores each alone by the rubric's criteria."""
    first: str = "tuned"
    """The target whose answers are judged."""
    versus: tuple[str, ...] = ("base",)
    """Targets it is compared with, one comparison each."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Judge only this many rows of each task, the first by hash of their id."""
    repeats: Annotated[int, Field(ge=1, le=10)] = 1
    """Times each question is put; two or more measure how far a judge agrees with itself."""
    max_new_tokens: Annotated[int, Field(ge=64)] = 1024
    """Longest verdict."""
    calibration: Annotated[str | None, LOCATION] = None
    """A `calibration.json` made by `gemma-ops judge calibrate`; without a matching one judges report but don't gate."""
