"""The comparison of own hardware with the prices of services: dollars per 1,000 answers, and the volume from which the
machine is cheaper.

A machine that is owned or rented costs the same idle or busy; a service costs per token. So below some volume the
service is cheaper and above it the machine, up to what the machine can answer. Everything here is arithmetic on figures
that are named in the result: measured speed and tokens, the machine's price an hour, and dated list prices.

    machine, per month      dollars per hour × 730
    machine, per answer     dollars per hour / 3,600 / (answers per second × share of hours busy)
    service, per answer     prompt tokens × input price + (new + thought) tokens × output price
    break-even, per month   machine per month / service per answer
    capacity, per month     answers per second × 3,600 × 730, when always busy
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Literal

from gemma_ops.errors import BudgetError
from gemma_ops.gemini import models, prices
from gemma_ops.gemini.prices import TokenRates

HOURS = 730
"""Hours in a month: 8,760 / 12."""
SCHEMA = "gemma-ops/cost-compare@1"
Kind = Literal["gemini", "hosted"]


@dataclass(frozen=True)
class Workload:
    """Tokens of one answer, and where the counts are from."""

    prompt: float
    new: float
    thoughts: float
    source: str
    rehearsed: bool = False
    """Whether an emulator made them up."""


@dataclass(frozen=True)
class Own:
    """Own machine: its price, speed and utilisation."""

    answers_per_second: float
    dollars_per_hour: float
    utilisation: float
    speed_from: str
    price_from: str

    @property
    def per_month(self) -> float:
        """Return the US dollars of a month."""
        return self.dollars_per_hour * HOURS

    @property
    def capacity(self) -> float:
        """Return the answers of a month when it is never idle."""
        return self.answers_per_second * 3600 * HOURS

    @property
    def per_thousand(self) -> float:
        """Return the dollars per 1,000 answers at the share of hours it is busy."""
        return 1000 * self.dollars_per_hour / 3600 / (self.answers_per_second * self.utilisation)

    @property
    def full(self) -> float:
        """Return the dollars per 1,000 answers when it is never idle: the least it can be."""
        return self.per_thousand * self.utilisation


@dataclass(frozen=True)
class Charge:
    """What one service takes for 1,000 answers from one day on. None where that tariff has no known price."""

    start: date
    standard: float
    batch: float | None
    cached: float | None
    """Dollars at the standard tier, with as much of the prompt from the cache as `Comparison.cached_share` says."""


@dataclass(frozen=True)
class Offer:
    """A service and its prices."""

    name: str
    kind: Kind
    charges: tuple[Charge, ...]
    """Charges of today, and those after the next known change of its prices."""
    work: Workload
    source: str

    @property
    def today(self) -> Charge:
        return self.charges[0]


@dataclass(frozen=True)
class CostComparison:
    """The machine and every service."""

    own: Own
    work: Workload
    offers: tuple[Offer, ...]
    cached_share: float
    at: datetime

    def break_even(self, per_thousand: float | None) -> float | None:
        """Return the answers a month from which the machine is cheaper; None when it never is, because one machine
        can't answer so many, or when the price is unknown."""
        if not per_thousand:
            return None
        volume = 1000 * self.own.per_month / per_thousand
        return volume if volume <= self.own.capacity else None

    def to_json(self) -> dict[str, Any]:
        own = asdict(self.own) | {
            "dollars_per_month": self.own.per_month,
            "answers_per_month_at_most": self.own.capacity,
            "dollars_per_1000": self.own.per_thousand,
            "dollars_per_1000_always_busy": self.own.full,
        }
        return {
            "schema": SCHEMA,
            "at": self.at.isoformat(timespec="seconds"),
            "prices_as_of": models.models_table().as_of.isoformat(),
            "own": own,
            "tokens": asdict(self.work),
            "cached_share": self.cached_share,
            "offers": [self._offer(offer) for offer in self.offers],
        }

    def _offer(self, offer: Offer) -> dict[str, Any]:
        charges = []
        for charge in offer.charges:
            body: dict[str, Any] = {"from": charge.start.isoformat()}
            for name in ("standard", "batch", "cached"):
                amount = getattr(charge, name)
                body[name] = {"dollars_per_1000": amount, "break_even_per_month": self.break_even(amount)}
            charges.append(body)
        head = {"name": offer.name, "kind": offer.kind, "source": offer.source, "tokens": asdict(offer.work)}
        return head | {"charges": charges}


def compare_costs(
    own: Own, work: Workload, *, at: datetime, cached_share: float = 1.0,
    measured: Mapping[str, tuple[str, Workload]] | None = None,
    priced: Mapping[str, tuple[float, float]] | None = None,
) -> CostComparison:  # fmt: skip
    """Compare the machine with every priced Gemini model, with Gemma where others serve it, and with `priced`.

    `measured` are Gemini targets of an evaluation, {target: (model, tokens)}: they are priced at the tokens they used
    themselves, thoughts included. `priced` are services by name with dollars per million tokens, input and output.
    """
    used = measured or {}
    asked = [(name, model, tokens) for name, (model, tokens) in used.items()]
    others = set(models.models_table().models) - {model for _, model, _ in asked}
    asked += [(model, model, work) for model in models.models_table().models if model in others]
    priced_now = (_gemini(name, model, tokens, cached_share, at) for name, model, tokens in asked)
    offers = [offer for offer in priced_now if offer]
    today = at.astimezone(UTC).date()
    for host, rates in prices.hosted(at):
        name = f"Gemma 4 {host.size}, {host.label}"
        offers.append(Offer(name, "hosted", (_charge(today, rates, None, work, cached_share),), work, rates.source))
    for name, (fresh, output) in (priced or {}).items():
        rates = TokenRates(Decimal(str(fresh)), Decimal(str(fresh)), Decimal(str(output)), "given")
        offers.append(Offer(name, "hosted", (_charge(today, rates, None, work, cached_share),), work, "as given"))
    offers.sort(key=lambda offer: offer.today.standard)
    return CostComparison(own, work, tuple(offers), cached_share, at)


def _gemini(name: str, model: str, work: Workload, cached_share: float, at: datetime) -> Offer | None:
    """Return a Gemini model today and after its next change; None for one that can't be paid for or has no price
    today."""
    today = at.astimezone(UTC).date()
    change = prices.next_change(model, after=at)
    charges, source = [], ""
    for day in [today, *([change] if change else [])]:
        moment = datetime.combine(day, time(), UTC) if day != today else at
        try:
            standard = prices.token_rates(model, tier="standard", at=moment)
        except BudgetError:
            return None
        if standard is None:
            return None
        source = source or standard.source
        charges.append(_charge(day, standard, prices.token_rates(model, tier="batch", at=moment), work, cached_share))
    return Offer(name, "gemini", tuple(charges), work, source)


def _charge(start: date, standard: TokenRates, batch: TokenRates | None, work: Workload, cached_share: float) -> Charge:
    known = standard.cached < standard.input
    return Charge(
        start,
        _dollars(standard, work, 0.0),
        _dollars(batch, work, 0.0) if batch else None,
        _dollars(standard, work, cached_share) if known else None,
    )


def _dollars(rates: TokenRates, work: Workload, cached_share: float) -> float:
    """Return the dollars per 1,000 answers. The prompt's mean decides whether it counts as long."""
    chosen = rates.at(round(work.prompt))
    fresh = work.prompt * (1 - cached_share)
    millionths = (
        fresh * float(chosen.input)
        + (work.prompt - fresh) * float(chosen.cached)
        + (work.new + work.thoughts) * float(chosen.output)
    )
    return millionths / 1000


def cheapest(offers: Sequence[Offer], kind: Kind) -> Offer | None:
    return min((offer for offer in offers if offer.kind == kind), key=lambda offer: offer.today.standard, default=None)
