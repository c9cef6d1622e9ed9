"""The low-rank adapter: its size, where it goes, how it starts and how its two factors learn."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.config.section import ConfigSection, Share


class LoraConfig(ConfigSection):
    """The low-rank adapter."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank r of the two factors."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale: the update is multiplied by alpha / rank (alpha / sqrt(rank) with `rslora`)."""
    dropout: Share = 0.0
    """Dropout before the first factor."""
    rslora: bool = False
    """Rank-stabilised scaling."""
    dora: bool = False
    """Learn magnitude and direction apart (DoRA)."""
    init: Literal["default", "pissa", "olora", "orthogonal"] = "default"
    """How the factors start: zero update, or from the base weights' principal parts (PiSSA, OLoRA)."""
    plus: Annotated[float, Field(ge=1)] = 1.0
    """LoRA+: the second factor learns this many times as fast as the first."""
    targets: str = "default"
    """`default` (attention and MLP of the language model) or one regular expression over module names."""
    experts: bool = False
    """Adapt the experts of a mixture too (26B-A4B): many more parameters."""
    towers: bool = False
    """Adapt the vision and audio towers too; they are frozen otherwise."""
