"""Learning from the probabilities of a larger Gemma 4 (`train.method: distill`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gemma_ops.config.section import ConfigSection, Share


class DistillConfig(ConfigSection):
    """The teacher of a distillation."""

    teacher: str | None = None
    """A larger Gemma 4 with the same vocabulary: a local folder (with a `/` in it) or a Hub id."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Softens both distributions before they are compared."""
    mix: Share = 0.5
    """Share of the loss that is the teacher's distribution; the rest is the row's own answer."""
