"""The cost of requests in nanodollars (10^-9 dollars): integers, so that sums are exact, and rounded up, so that none
is short.

Prices come from the data shipped inside `genai-prices`, which knows dates and prompt sizes, and from `models.yaml`
where that lacks a model, a date or a tier, or is marked as corrected. `genai-prices` may fetch newer data when asked
to, and finds models by the beginning of their names; neither is used here: the shipped data alone is read, only for a
model whose facts are known, and an answer about another model or with an empty price is no answer. A price nobody knows
is refused, never counted as zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from functools import cache
from pathlib import Path
from typing import Any, get_args

from gemma_ops.errors import BudgetError, ConfigError
from gemma_ops.gemini import models
from gemma_ops.gemini.models import Hosted, ModelFacts, Tier
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.usage import Usage

NANO = 1_000_000_000
"""Nanodollars in a dollar."""
TIERS: tuple[Tier, ...] = get_args(Tier)
IMAGE_TOKENS = 2240
"""Most tokens that an image becomes, at the highest resolution there is
(https://ai.google.dev/gemini-api/docs/media-resolution)."""
_TURN = 16
"""Upper bound, in bytes, for the control tokens around a turn."""
_PER_TOKEN = 1000
"""Nanodollars per token of one dollar per million tokens."""
_LONGEST = {"batch": timedelta(hours=48)}
"""Longest time after it was sent that a request may still be priced: a batch job runs for up to two days, others within
the hour."""


@dataclass(frozen=True)
class TokenRates:
    """Dollars per million tokens on one tier on one day. `long` replaces them all for a prompt of more than `above`
    tokens."""

    input: Decimal
    cached: Decimal
    output: Decimal
    source: str
    """Source of the rates: `genai-prices VERSION`, `models.yaml DATE`, or both where one gives the price and the other
    the tier."""
    above: int | None = None
    long: TokenRates | None = None

    def at(self, size: int) -> TokenRates:
        """Return the rates of a request with `size` input tokens."""
        return self.long if self.long and self.above is not None and size > self.above else self

    def scaled(self, tier: models.Multiplier, source: str) -> TokenRates:
        cached = self.cached * tier.cached if tier.cached_price is None else tier.cached_price
        long = self.long.scaled(tier, source) if self.long else None
        fresh = self.input * tier.factor
        return TokenRates(fresh, min(cached, fresh), self.output * tier.factor, source, self.above, long)


def request_price(model: str, usage: Usage, *, tier: str, at: datetime) -> int:
    """Return what this usage cost, in nanodollars. Free-tier projects are counted at the list price too: whether a
    project is billed is its owner's word, and a cap must not rest on it. Raises BudgetError where no price is known."""
    known = token_rates(model, tier=tier, at=at)
    if known is None:
        return 0
    chosen = known.at(usage.size)
    total = usage.fresh * chosen.input + usage.cached * chosen.cached + usage.generated * chosen.output
    return _nano(total)


def worst(model: str, prompt_tokens: int, max_output_tokens: int, *, tier: str, at: datetime) -> int:
    """Return an upper bound of what a request can cost, in nanodollars, to be reserved before it is sent.

    It is one because every part is: `prompt_tokens` is a bound of the caller's (see `prompt_bound`), all of it is
    counted as fresh input, thoughts and visible tokens share `max_output_tokens`, and the more expensive day counts if
    the price changes while the request may be under way, and the more expensive model if another one answers. Raises
    BudgetError where no price is known.
    """
    usage = Usage(prompt=prompt_tokens, output=max_output_tokens)
    later = at + _LONGEST.get(tier, timedelta(hours=1))
    own = max(request_price(model, usage, tier=tier, at=moment) for moment in (at, later))
    # A retired model is billed as the one that answers for it.
    others = filter(None, (models.routed_to(model, moment.date()) for moment in (at, later)))
    return max(own, *(request_price(name, usage, tier=tier, at=later) for name in others), 0)


def prompt_bound(body: Mapping[str, Any]) -> int:
    """Return an upper bound of a prompt's tokens, the bytes of its request: a token stands for at least one byte of the
    text, and the JSON around each turn is longer than the control tokens it becomes. Raises BudgetError for images and
    files, whose tokens don't follow from their bytes."""
    if found := _media(body):
        raise BudgetError(f"no bound is known for what {found} in a request costs", "send text only")
    return len(json.dumps(body, ensure_ascii=False).encode())


def request_bound(request: Request) -> int:
    """Return the upper bound of a whole request's tokens, before it is spelled for the wire. What is shown counts apart
    from the texts: an image as the most tokens that one becomes, anything else, and what a tool of the service looks
    up, as all that the model takes. Raises ConfigError for an unknown model."""
    shown = [str(part["mime"]) for part in request.media()]
    if request.grounding() or any(not mime.startswith("image/") for mime in shown):
        return models.model_facts(request.model).context
    said = [*request.texts(), json.dumps([list(request.tools), request.schema], ensure_ascii=False)]
    turns = sum(_TURN + 2 * _TURN * len(message.get("tool_calls") or ()) for message in request.messages)
    return sum(len(text.encode(errors="replace")) for text in said) + turns + IMAGE_TOKENS * len(shown)


def token_rates(model: str, *, tier: str, at: datetime) -> TokenRates | None:
    """Return the rates that hold at this moment; None for a model that is free of charge and can't be paid for.

    Raises BudgetError for an unknown model, tier or day.
    """
    if at.tzinfo is None:
        raise ValueError("a moment without a time zone has no price")
    try:
        known = models.model_facts(model)
    except ConfigError as error:
        raise BudgetError(f"no price is known for {model!r}", error.fix) from error
    if not known.paid_tier:
        return None
    return _rates(known.name, tier, at.astimezone(UTC).date())


def next_change(model: str, *, after: datetime) -> date | None:
    """Return the first day after this moment on which a known price of the model differs."""
    known = models.model_facts(model)
    if not known.paid_tier:
        return None
    today = after.astimezone(UTC).date()
    now = _rates(known.name, "standard", today)
    for day in sorted({price.start for price in known.prices} | set(_library_days(known.name))):
        if day > today and _figures(_rates(known.name, "standard", day)) != _figures(now):
            return day
    return None


def hosted(at: datetime) -> list[tuple[Hosted, TokenRates]]:
    """Return what Gemma 4 costs where others serve it; an offer without a known price is left out."""
    day = at.astimezone(UTC).date()
    found = ((offer, _library(offer.id, "standard", day, offer.provider)) for offer in models.models_table().hosted)
    return [(offer, known) for offer, known in found if known]


def dollars(nano: int) -> str:
    """Return an amount for people: cents, and as many digits as a small amount needs."""
    amount = Decimal(nano) / NANO
    if amount == 0 or abs(amount) >= Decimal("0.1"):
        return f"${amount:,.2f}"
    return f"${amount:.2g}" if abs(amount) >= Decimal("0.000001") else f"${amount:.9f}"


def usd_of(amount: float) -> str:
    """Return dollars for people, as `dollars` writes them."""
    return dollars(nanodollars(amount))


def nanodollars(amount: float) -> int:
    """Return a cap in dollars, as written in a config, as exact nanodollars."""
    return int(Decimal(str(amount)) * NANO)


def _rates(name: str, tier: str, day: date) -> TokenRates:
    """Return the rates of a tier, which may be any text of a caller; only the four with a known price have rates."""
    return _found(name, tier, day, models.own_file())


@cache
def _found(name: str, tier: str, day: date, _own: Path | None) -> TokenRates:
    """Return the rates, looked up once for each file that may override ours."""
    known = models.model_facts(name)
    if tier not in TIERS:
        raise BudgetError(f"no price is known for the service tier {tier!r}", f"one of {', '.join(TIERS)}")
    if day < known.prices[0].start:  # the library would answer with the oldest price that it has
        first = known.prices[0].start
        raise BudgetError(f"no price of {name} is known for {day}", f"prices are known from {first}; check the clock")
    found = None if known.corrects else _library(known.name, tier, day)
    if found:
        return found
    standard = (None if known.corrects else _library(known.name, "standard", day)) or _ours(known, day)
    assert standard is not None
    if tier == "standard":
        return standard
    if tier not in known.tiers:
        raise BudgetError(
            f"no price is known for {known.name} on the {tier} tier, as of {known.as_of}",
            f"one of {', '.join(['standard', *known.tiers])}",
        )
    ours = f"models.yaml {known.as_of}"
    return standard.scaled(known.tiers[tier], ours if standard.source == ours else f"{standard.source}, {ours}")


def _ours(known: ModelFacts, day: date) -> TokenRates | None:
    """Return standard rates out of `models.yaml`."""
    valid = [price for price in known.prices if price.start <= day]
    if not valid:
        return None
    last, source = valid[-1], f"models.yaml {known.as_of}"
    long = TokenRates(last.long.input, last.long.cached, last.long.output, source) if last.long else None
    cached = last.input if last.cached is None else last.cached
    return TokenRates(last.input, cached, last.output, source, last.long.above if last.long else None, long)


@cache
def _snapshot() -> Any:
    """Return the data inside the package, even if something else in this process let `genai-prices` fetch another."""
    from genai_prices.data import providers
    from genai_prices.data_snapshot import DataSnapshot

    return DataSnapshot(providers=providers, from_auto_update=False)


def _library_model(name: str, provider: str = "google") -> Any:
    """Return what `genai-prices` holds under exactly this name, or None."""
    try:
        _, found = _snapshot().find_provider_model(name, None, provider, None)
    except LookupError:
        return None
    return found if found.id == name else None


def _library(name: str, tier: str, day: date, provider: str = "google") -> TokenRates | None:
    """Return the rates of `genai-prices`; None where it has no price of its own for this model and tier on this day."""
    found = _library_model(name, provider)
    if found is None:
        return None
    moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
    context = {"standard": None, "batch": {"processing": "batch"}}.get(tier, {"service_tier": tier})
    if context is not None and not any(_covers(variant, context, moment) for variant in found.price_variants or ()):
        return None  # it would answer with the standard price
    body = found.get_prices(moment, context)
    if body.input_mtok is None or body.output_mtok is None:
        return None
    import genai_prices

    cached = body.input_mtok if body.cache_read_mtok is None else body.cache_read_mtok
    return _tiered(body.input_mtok, cached, body.output_mtok, f"genai-prices {genai_prices.__version__}")


def _covers(variant: Any, context: Mapping[str, str], moment: datetime) -> bool:
    dated = variant.constraint is None or variant.constraint.active(moment)
    return dated and all(context.get(key) == value for key, value in variant.when.items())


def _tiered(fresh: Any, cached: Any, output: Any, source: str) -> TokenRates | None:
    """Return rates from figures that may depend on the prompt's size; None for more steps than one, which no model
    has."""
    steps = {tier.start for field in (fresh, cached, output) for tier in getattr(field, "tiers", ())}
    if len(steps) > 1:
        return None
    low = [getattr(field, "base", field) for field in (fresh, cached, output)]
    above = steps.pop() if steps else None
    if above is None:
        return TokenRates(low[0], low[1], low[2], source)
    high = [field.tiers[0].price if getattr(field, "tiers", None) else field for field in (fresh, cached, output)]
    return TokenRates(low[0], low[1], low[2], source, above, TokenRates(high[0], high[1], high[2], source))


def _library_days(name: str) -> list[date]:
    found = _library_model(name)
    if found is None or not isinstance(found.prices, list):
        return []
    return [entry.constraint.start_date for entry in found.prices if hasattr(entry.constraint, "start_date")]


def _figures(known: TokenRates) -> tuple[Any, ...]:
    return (known.input, known.cached, known.output, known.long and _figures(known.long))


def _nano(total: Decimal) -> int:
    """Return dollars per million tokens times tokens, as whole nanodollars, rounded up."""
    return int((total * _PER_TOKEN).to_integral_value(ROUND_CEILING))


def _media(body: Any) -> str | None:
    if isinstance(body, Mapping):
        for key, value in body.items():
            if (
                key in {"inlineData", "inline_data", "fileData", "file_data", "cachedContent", "cached_content"}
                and value
            ):
                return str(key)
            if found := _media(value):
                return found
    elif isinstance(body, list | tuple):
        for value in body:
            if found := _media(value):
                return found
    return None
