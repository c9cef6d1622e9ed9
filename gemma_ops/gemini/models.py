"""Facts about Gemini models: what they take, where they are offered, when they end. `models.yaml` holds them with dates and
sources; a model that is not in it is unknown, and unknown models are refused rather than guessed by the look of their name.
"""

from __future__ import annotations

import difflib
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gemma_ops.errors import ConfigError

Tier = Literal["standard", "flex", "priority", "batch"]
Thinking = Literal["minimal", "low", "medium", "high", "xhigh"]
Dollars = Annotated[Decimal, Field(ge=0)]
"""US dollars per million tokens."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Long(_Fact):
    """What a prompt of more than `above` tokens costs, all of it and its output."""

    above: int
    input: Dollars
    cached: Dollars
    output: Dollars


class Price(_Fact):
    """Standard prices from one day on; `cached` null where no source gives it."""

    start: Annotated[date, Field(alias="from")]
    input: Dollars
    output: Dollars
    cached: Dollars | None = None
    long: Long | None = None


class Multiplier(_Fact):
    """A tier relative to standard: `factor` for input and output, `cached` for the cached price unless its figure is given."""

    factor: Annotated[Decimal, Field(gt=0)]
    cached: Annotated[Decimal, Field(gt=0)] = Decimal(1)
    cached_price: Dollars | None = None


class ModelFacts(_Fact):
    """One model."""

    name: str
    as_of: date
    source: tuple[str, ...]
    context: int
    """Most tokens of input; of input and output together where `shared_context`."""
    shared_context: bool = False
    output: int | None = None
    """Most tokens of output, thoughts included; None where no source says."""
    thinking: tuple[Thinking, ...]
    """Levels it takes; any other is an error of the service. Empty: not verified, so no level is sent."""
    default_thinking: Thinking | None = None
    sampling: Literal["taken", "ignored"]
    """Whether temperature, top_p, top_k and seed do anything. `ignored` models answer the same request differently."""
    free_tier: bool | None = None
    """Offered without billing; None where no source says."""
    paid_tier: bool = True
    """False: only under unpaid terms, so only rows of class `any` may be sent, whatever tier the project has."""
    retires: date | None = None
    corrects: str | None = None
    """Why the prices here win over those of `genai-prices`."""
    prices: tuple[Price, ...]
    tiers: dict[Tier, Multiplier] = {}

    @model_validator(mode="after")
    def _in_order(self) -> ModelFacts:
        days = [price.start for price in self.prices]
        if days != sorted(set(days)):
            raise ValueError("prices must be in order of their days")
        if self.paid_tier != bool(self.prices):
            raise ValueError("a model has prices if it has a paid tier, and only then")
        return self

    def takes(self, thinking: str | None) -> bool:
        """Whether this thinking level may be sent; None, the model's default, always may."""
        return thinking is None or thinking in self.thinking


class Hosted(_Fact):
    """A Gemma 4 that somebody serves, under its name in `genai-prices`."""

    provider: str
    id: str
    size: str
    label: str


class Table(_Fact):
    """The whole file."""

    as_of: date
    sources: dict[str, str]
    models: dict[str, ModelFacts]
    hosted: tuple[Hosted, ...]

    @model_validator(mode="before")
    @classmethod
    def _named(cls, body: dict[str, object]) -> dict[str, object]:
        models = body.get("models")
        assert isinstance(models, dict)
        return body | {"models": {name: {"name": name, **facts} for name, facts in models.items()}}


@cache
def table(path: Path = Path(__file__).parent / "models.yaml") -> Table:
    """Read and check the file once."""
    import yaml

    return Table.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def facts(model: str) -> ModelFacts:
    """Facts of one model by its exact id. Raises ConfigError with close matches for any other.

    Aliases such as `gemini-flash-latest` are unknown on purpose: they change what answers and what it costs without a word.
    """
    known = table().models
    name = model.removeprefix("models/")
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise ConfigError(
        f"no facts about a Gemini model {model!r}, as of {table().as_of}",
        f"use an exact id, {'such as ' + ' or '.join(close) if close else 'one of ' + ', '.join(known)}",
    )
