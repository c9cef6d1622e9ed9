"""Facts about Gemini models: what they take, where they are offered, when they end. `models.yaml` holds them with dates
and sources; a model that is not in it is unknown, and unknown models are refused rather than guessed by the look of
their name.
"""

from __future__ import annotations

import difflib
import os
import re
from datetime import date, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gemma_ops.config.gemini import MODELS
from gemma_ops.errors import ConfigError

Tier = Literal["standard", "flex", "priority", "batch"]
Thinking = Literal["minimal", "low", "medium", "high", "xhigh"]
Dollars = Annotated[Decimal, Field(ge=0)]
"""US dollars per million tokens."""


class _Fact(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Long(_Fact):
    """Prices of a prompt of more than `above` tokens, for all of it and its output."""

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
    """A tier relative to standard: `factor` for input and output, `cached` for the cached price unless its figure is
    given."""

    factor: Annotated[Decimal, Field(gt=0)]
    cached: Annotated[Decimal, Field(gt=0)] = Decimal(1)
    cached_price: Dollars | None = None


class Routed(_Fact):
    """The model that answers in place of a retired one, and since when."""

    since: date
    to: str


class ModelFacts(_Fact):
    """One model."""

    name: str
    as_of: date
    source: tuple[str, ...]
    context: int
    """Most tokens of input, or of input and output together where `shared_context`."""
    shared_context: bool = False
    output: int | None = None
    """Most tokens of output, thoughts included; None where no source says."""
    thinking: tuple[Thinking, ...]
    """Thinking levels that the model takes; any other is an error of the service. Empty: not verified, so no level is
    sent."""
    default_thinking: Thinking | None = None
    sampling: Literal["taken", "ignored"]
    """Whether temperature, top_p, top_k and seed do anything. `ignored` models answer the same request differently."""
    free_tier: bool | None = None
    """Whether it is offered without billing; None where no source says."""
    paid_tier: bool = True
    """Whether it is offered under paid terms; where not, only rows of class `any` may be sent, whatever tier the
    project has."""
    retires: date | None = None
    routed: Routed | None = None
    corrects: str | None = None
    """Reason why the prices here win over those of `genai-prices`."""
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
        """True if this thinking level may be sent; None, the model's default, always may."""
        return thinking is None or thinking in self.thinking


class Hosted(_Fact):
    """A Gemma 4 that somebody serves, under its name in `genai-prices`."""

    provider: str
    id: str
    size: str
    label: str


class Table(_Fact):
    """The whole file of facts."""

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


STALE = timedelta(days=30)
_DATED = re.compile(r"-(?:\d{3}|\d{2}-\d{2,4}|preview(?:-\d{2}-\d{2,4})?)$")
"""Pattern of a model's version as services spell it: `-001`, `-09-2026`, `-preview-09-2026`."""


def models_table() -> Table:
    """Return the shipped facts, overridden by those of the file that `MODELS` names. Raises ConfigError for one that is
    wrong."""
    return _table(own_file())


def own_file() -> Path | None:
    """Return the user's file of facts that overrides ours, if there is one."""
    own = os.environ.get(MODELS)
    return Path(own) if own else None


@cache
def _table(own: Path | None) -> Table:
    """Read and check the files once."""
    import yaml

    shipped = yaml.safe_load((Path(__file__).parent / "models.yaml").read_text(encoding="utf-8"))
    if own is None:
        return Table.model_validate(shipped)
    try:
        laid = yaml.safe_load(own.read_text(encoding="utf-8")) or {}
        models = shipped["models"]
        for name, facts in laid["models"].items():
            # What a person looked up wins over the library's data too.
            models[name] = models.get(name, {}) | {"corrects": f"{own.name} says so"} | facts
        return Table.model_validate(shipped)
    except (OSError, yaml.YAMLError, ValidationError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"machine.gemini.models: {own} can't be read as facts about models: {error}",
            "write `models: {NAME: {as_of: …, source: […], prices: […]}}`, with the keys of "
            "gemma_ops/gemini/models.yaml",
        ) from error


def answering_model(version: str) -> str | None:
    """Return the model behind a `modelVersion`, if it is a known one: `gemini-3.8-flash-001` is gemini-3.8-flash."""
    name = version.removeprefix("models/").rpartition("/")[2]
    known = models_table().models
    return next((one for one in (name, _DATED.sub("", name)) if one in known), None)


def is_expected(model: str, version: str) -> bool:
    """True if a `modelVersion` is the model that was asked, or if the reply names none."""
    name = model.removeprefix("models/")
    return not version or answering_model(version) == name or version.removeprefix("models/") == name


def routed_to(model: str, on: date) -> str | None:
    """Return the other model that answers for one on a day, as far as that is known."""
    routed = model_facts(model).routed
    return routed.to if routed and on >= routed.since else None


def stale(model: str, on: date) -> int | None:
    """Return how many days old the facts about a model are, if that is more than `STALE`."""
    age = on - model_facts(model).as_of
    return age.days if age > STALE else None


def model_facts(model: str) -> ModelFacts:
    """Return the facts of one model by its exact id. Raises ConfigError with close matches for any other.

    Aliases such as `gemini-flash-latest` are unknown on purpose: they change what answers and what it costs without a
    word.
    """
    known = models_table().models
    name = model.removeprefix("models/")
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise ConfigError(
        f"no facts about a Gemini model {model!r}, as of {models_table().as_of}",
        f"use an exact id, {'such as ' + ' or '.join(close) if close else 'one of ' + ', '.join(known)}",
    )
