"""What a request costs, against figures worked out by hand from the price page; and what is known of each model."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import genai_prices
import pytest

from gemma_ops.errors import BudgetError, ConfigError
from gemma_ops.gemini import models, prices
from gemma_ops.gemini.usage import Usage

NOVEMBER = datetime(2026, 11, 23, 12, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
JANUARY = datetime(2027, 1, 1, tzinfo=UTC)
EDGE = timedelta(microseconds=1)
NEW = {"gemini-4-carbon", "gemini-4-neon", "gemini-4-hydrogen"}
"""Models that genai-prices 0.2.3 does not know."""

# Nanodollars by hand: tokens × dollars per million × 1,000.
BILLS = [
    # Thinking tokens: 10 in, 1 out, 1,000 thoughts: 10×0.75 + 1,001×3.75 = 7.5 + 3,753.75
    ("gemini-3.8-flash", Usage(prompt=10, output=1, thoughts=1000), "standard", NOVEMBER, 3_761_250),
    # The same without the thoughts would be 830 times cheaper on the output side.
    ("gemini-3.8-flash", Usage(prompt=0, output=1), "standard", NOVEMBER, 3_750),
    ("gemini-3.8-flash", Usage(prompt=0, output=0, thoughts=1001), "standard", NOVEMBER, 3_753_750),
    # 300 pairs × 2 orders at 1,200 in and 600 out: 600 × (1,200×0.75 + 600×3.75) = $1.89, $0.945, $3.78
    ("gemini-3.8-flash", Usage(prompt=720_000, output=60_000, thoughts=300_000), "standard", NOVEMBER, 1_890_000_000),
    ("gemini-3.8-flash", Usage(prompt=720_000, output=60_000, thoughts=300_000), "batch", NOVEMBER, 945_000_000),
    ("gemini-3.8-flash", Usage(prompt=720_000, output=60_000, thoughts=300_000), "flex", NOVEMBER, 945_000_000),
    ("gemini-3.8-flash", Usage(prompt=720_000, output=60_000, thoughts=300_000), "standard", JANUARY, 3_780_000_000),
    # Priority is 1.8 times standard: 1,000×1.35 + 100×6.75
    ("gemini-3.8-flash", Usage(prompt=1000, output=100), "priority", NOVEMBER, 2_025_000),
    # The day a price changes, to the microsecond.
    ("gemini-4-argon", Usage(prompt=1000, output=100), "standard", DECEMBER - EDGE, 3_000_000),
    ("gemini-4-argon", Usage(prompt=1000, output=100), "standard", DECEMBER, 6_000_000),
    ("gemini-4-argon", Usage(prompt=1000, output=100), "batch", DECEMBER - EDGE, 1_500_000),
    ("gemini-4-argon", Usage(prompt=1000, output=100), "batch", DECEMBER, 3_000_000),
    ("gemini-4-carbon", Usage(prompt=1000, output=100), "standard", DECEMBER - EDGE, 3_000_000),
    ("gemini-4-carbon", Usage(prompt=1000, output=100), "standard", DECEMBER, 6_000_000),
    ("gemini-3.8-flash", Usage(prompt=1000, output=100), "standard", JANUARY - EDGE, 1_125_000),
    ("gemini-3.8-flash", Usage(prompt=1000, output=100), "standard", JANUARY, 2_250_000),
    ("gemini-3.7-flash", Usage(prompt=1000, output=100), "flex", JANUARY, 1_125_000),
    # Days are counted in UTC: 19:00 in New York on 31 December is January there.
    (
        "gemini-3.8-flash", Usage(prompt=1000, output=100), "standard",
        datetime(2026, 12, 31, 19, tzinfo=timezone(timedelta(hours=-5))), 2_250_000,
    ),
    # Cached input: 900 of 1,000 tokens. 100×2 + 900×0.10, 100×0.75 + 900×0.075
    ("gemini-4-argon", Usage(prompt=1000, cached=900), "standard", NOVEMBER, 290_000),
    ("gemini-3.8-flash", Usage(prompt=1000, cached=900), "standard", NOVEMBER, 142_500),
    ("gemini-3.8-flash", Usage(prompt=1000, cached=900), "standard", JANUARY, 285_000),
    # ... on batch: half for Argon and 3.8 Flash, as in standard for 3.1 Pro and 3 Flash, $0.02 for 3.5 Flash-Lite
    ("gemini-4-argon", Usage(prompt=1000, cached=900), "batch", NOVEMBER, 145_000),
    ("gemini-3.8-flash", Usage(prompt=1000, cached=900), "batch", NOVEMBER, 71_250),
    ("gemini-3.1-pro-preview", Usage(prompt=1000, cached=900), "batch", NOVEMBER, 280_000),
    ("gemini-3-flash-preview", Usage(prompt=1000, cached=900), "batch", NOVEMBER, 70_000),
    ("gemini-3.5-flash-lite", Usage(prompt=1000, cached=900), "batch", NOVEMBER, 33_000),
    # ... Carbon's is Argon's; 100×1.5 + 900×0.075; 100×3 + 900×0.15
    ("gemini-4-carbon", Usage(prompt=1000, cached=900), "standard", NOVEMBER, 290_000),
    ("gemini-4-carbon", Usage(prompt=1000, cached=900), "standard", DECEMBER, 580_000),
    ("gemini-4-hydrogen", Usage(prompt=1000, cached=900), "standard", NOVEMBER, 217_500),
    ("gemini-4-neon", Usage(prompt=1000, cached=900, output=100, thoughts=50), "standard", NOVEMBER, 2_685_000),
    ("gemini-4-neon", Usage(prompt=1000, output=100), "priority", NOVEMBER, 8_100_000),
    # What tools add is input: (1,000 + 500)×0.75
    ("gemini-3.8-flash", Usage(prompt=1000, tool=500), "standard", NOVEMBER, 1_125_000),
    # More than 200,000 tokens: all of the prompt and all of the output are dearer.
    ("gemini-3.1-pro-preview", Usage(prompt=200_000, output=1000), "standard", NOVEMBER, 412_000_000),
    ("gemini-3.1-pro-preview", Usage(prompt=200_001, output=1000), "standard", NOVEMBER, 818_004_000),
    ("gemini-3.1-pro-preview", Usage(prompt=200_001, output=1000), "batch", NOVEMBER, 409_002_000),
    ("gemini-3.1-pro-preview", Usage(prompt=200_001, output=1000), "flex", NOVEMBER, 409_002_000),
    # 100,001×4 + 150,000×0.40 + 500×18: cached tokens count towards the size
    ("gemini-3.1-pro-preview", Usage(prompt=250_001, cached=150_000, thoughts=500), "standard", NOVEMBER, 469_004_000),
    ("gemini-3.5-flash", Usage(prompt=300_000, output=1000), "standard", NOVEMBER, 459_000_000),
    ("gemini-3.5-flash", Usage(prompt=1000, output=100), "batch", NOVEMBER, 1_200_000),
    ("gemini-3.5-flash-lite", Usage(prompt=1000, output=100), "standard", NOVEMBER, 550_000),
    ("gemini-3.1-flash-lite", Usage(prompt=1000, output=100), "batch", NOVEMBER, 200_000),
    ("gemini-3.6-flash", Usage(prompt=1000, output=100), "standard", NOVEMBER, 1_125_000),
    ("gemini-4-hydrogen", Usage(prompt=1000, output=100), "standard", NOVEMBER, 2_250_000),
    # Rounded up to a whole nanodollar: one cached token on batch is 37.5, three output tokens there 5,625
    ("gemini-3.8-flash", Usage(prompt=1, cached=1), "batch", NOVEMBER, 38),
    ("gemini-3.8-flash", Usage(output=3), "batch", NOVEMBER, 5_625),
    ("gemma-4-31b-it", Usage(prompt=1000, output=100), "standard", NOVEMBER, 0),
]  # fmt: skip


@pytest.mark.parametrize("model, usage, tier, at, nano", BILLS)
def test_a_request_costs_what_the_price_page_says(model, usage, tier, at, nano):
    assert prices.request_price(model, usage, tier=tier, at=at) == nano


def test_every_known_model_has_a_bill_in_the_table():
    assert {bill[0] for bill in BILLS} | {"gemma-4-26b-a4b-it"} == set(models.models_table().models)


@pytest.mark.parametrize(
    "model, tier, at",
    [
        ("gemini-9-neon", "standard", NOVEMBER),
        ("gemini-3.8-flash-002", "standard", NOVEMBER),  # genai-prices would take the price of gemini-3.8-flash
        ("gemini-flash-latest", "standard", NOVEMBER),
        ("gemini-3.6-flash", "priority", NOVEMBER),
        ("gemini-3.8-flash", "express", NOVEMBER),
        ("gemini-4-hydrogen", "standard", datetime(2026, 11, 1, tzinfo=UTC)),  # before it was there
        ("gemini-3.8-flash", "standard", datetime(2025, 1, 1, tzinfo=UTC)),  # a wrong clock: the library has a price
        ("gemini-4-argon", "batch", datetime(2026, 9, 29, 23, 59, tzinfo=UTC)),
    ],
)
def test_an_unknown_price_is_refused(model, tier, at):
    with pytest.raises(BudgetError) as caught:
        prices.request_price(model, Usage(prompt=1), tier=tier, at=at)
    assert "price" in caught.value.what
    with pytest.raises(BudgetError):
        prices.worst(model, 1, 1, tier=tier, at=at)


def test_a_moment_without_a_time_zone_has_no_price():
    with pytest.raises(ValueError, match="time zone"):
        prices.request_price("gemini-3.8-flash", Usage(prompt=1), tier="standard", at=datetime(2026, 11, 23))


@pytest.mark.parametrize("model", [name for name, facts in models.models_table().models.items() if facts.paid_tier])
@pytest.mark.parametrize("at", [NOVEMBER, DECEMBER - EDGE, DECEMBER, JANUARY])
def test_the_library_and_our_table_agree_where_both_know(model, at):
    """Of the twelve priced models genai-prices 0.2.3 knows nine; for those the two never differ, batch included."""
    known = models.model_facts(model)
    ours = prices._ours(known, at.date())
    library = {tier: prices._library(model, tier, at.date()) for tier in prices.TIERS}
    assert (library["standard"] is None) == (model in NEW)
    if library["standard"]:
        assert prices._figures(library["standard"]) == prices._figures(ours)
    if library["batch"]:
        assert prices._figures(library["batch"]) == prices._figures(ours.scaled(known.tiers["batch"], ""))
    # What it lacks, and would answer with the standard price if asked:
    assert library["flex"] is None
    assert library["priority"] is None
    assert (library["batch"] is None) == (model in {*NEW, "gemini-3.7-flash", "gemini-3.5-flash"})


def test_where_a_price_comes_from_is_said():
    def source(model, tier="standard"):
        return prices.token_rates(model, tier=tier, at=NOVEMBER).source

    library = f"genai-prices {genai_prices.__version__}"
    assert source("gemini-3.8-flash") == source("gemini-3.8-flash", "batch") == library
    assert source("gemini-3.8-flash", "flex") == f"{library}, models.yaml 2026-11-13"
    assert source("gemini-4-carbon", "flex") == "models.yaml 2026-11-22"


def test_a_model_marked_as_corrected_is_priced_by_our_table(monkeypatch):
    known = models.model_facts("gemini-3.5-flash")
    price = known.prices[0].model_copy(update={"input": Decimal("1.25")})
    corrected = known.model_copy(update={"prices": (price,), "corrects": "the page says 1.25"})
    body = models.models_table()
    changed = body.model_copy(update={"models": body.models | {known.name: corrected}})
    monkeypatch.setattr(models, "models_table", lambda: changed)
    prices._found.cache_clear()
    try:
        found = prices.token_rates(known.name, tier="standard", at=NOVEMBER)
        assert (found.input, found.source) == (Decimal("1.25"), "models.yaml 2026-11-13")
    finally:
        prices._found.cache_clear()


def test_prices_of_a_library_that_fetched_others_are_not_used():
    """Something else in the process may let genai-prices update itself; what a run costs must not depend on it."""
    from genai_prices import data_snapshot
    from genai_prices.data_snapshot import DataSnapshot

    data_snapshot.set_custom_snapshot(DataSnapshot(providers=[], from_auto_update=True))
    prices._found.cache_clear()
    try:
        assert prices.token_rates("gemini-3.8-flash", tier="standard", at=NOVEMBER).source.startswith("genai-prices")
    finally:
        data_snapshot.set_custom_snapshot(None)


def test_pricing_opens_no_socket():
    code = """
import socket
def refuse(*args, **kwargs): raise SystemExit("a socket was opened")
socket.socket.connect = socket.getaddrinfo = refuse
from datetime import UTC, datetime
from gemma_ops.gemini import prices
from gemma_ops.gemini.usage import Usage
at = datetime(2026, 11, 23, tzinfo=UTC)
print(prices.request_price("gemini-3.8-flash", Usage(prompt=1000), tier="standard", at=at))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "750000\n"


class TestWorst:
    def test_it_is_the_dearest_a_request_can_be(self):
        # 1,000×0.75 + 2,048×3.75: everything fresh, all of the output used
        assert prices.worst("gemini-3.8-flash", 1000, 2048, tier="standard", at=NOVEMBER) == 8_430_000

    def test_a_prompt_that_may_be_long_is_priced_as_long(self):
        assert prices.worst("gemini-3.1-pro-preview", 200_001, 0, tier="standard", at=NOVEMBER) == 800_004_000

    def test_a_rise_that_may_come_before_the_reply_counts(self):
        now, dear = (prices.worst("gemini-4-argon", 1000, 100, tier="standard", at=at) for at in (NOVEMBER, DECEMBER))
        assert dear == 2 * now
        minutes, day = timedelta(minutes=30), timedelta(hours=30)
        assert prices.worst("gemini-4-argon", 1000, 100, tier="standard", at=DECEMBER - minutes) == dear
        assert prices.worst("gemini-4-argon", 1000, 100, tier="standard", at=DECEMBER - day) == now
        assert prices.worst("gemini-4-argon", 1000, 100, tier="batch", at=DECEMBER - day) == dear // 2

    def test_bytes_of_a_request_bound_its_tokens(self):
        body = {"contents": [{"role": "user", "parts": [{"text": "漢字 and 🙂"}]}]}
        assert prices.prompt_bound(body) >= len("漢字 and 🙂".encode())
        with pytest.raises(BudgetError, match="inlineData"):
            prices.prompt_bound({"contents": [{"parts": [{"inlineData": {"data": "AAAA", "mimeType": "image/png"}}]}]})


class TestUsage:
    def test_both_spellings_are_read(self):
        camel = {
            "promptTokenCount": 10, "cachedContentTokenCount": 4, "candidatesTokenCount": 3, "thoughtsTokenCount": 7,
            "toolUsePromptTokenCount": 2, "totalTokenCount": 22, "trafficType": "ON_DEMAND_FLEX",
        }  # fmt: skip
        snake = {
            "prompt_token_count": 10, "cached_content_token_count": 4, "candidates_token_count": 3,
            "thoughts_token_count": 7, "tool_use_prompt_token_count": 2, "total_token_count": 22, "traffic_type": None,
        }  # fmt: skip
        assert Usage.of_metadata(camel) == Usage.of_metadata(snake) == Usage(10, 4, 3, 7, 2)
        found = Usage(10, 4, 3, 7, 2)
        assert (found.fresh, found.cached, found.generated) == (8, 4, 10)

    def test_missing_usage_is_unknown_and_missing_counts_are_zero(self):
        assert Usage.of_metadata(None) is None
        assert Usage.of_metadata({}) is None
        assert Usage.of_metadata({"traffic_type": "ON_DEMAND", "prompt_token_count": None}) is None
        assert Usage.of_metadata({"promptTokenCount": 5}) == Usage(prompt=5)

    def test_tokens_that_only_the_total_shows_are_billed_as_output(self):
        assert Usage.of_metadata({"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 1007}) == Usage(
            prompt=5, output=2, thoughts=1000
        )


class TestFacts:
    def test_every_model_has_a_date_and_a_source_that_is_named(self):
        table = models.models_table()
        for known in table.models.values():
            assert known.as_of <= table.as_of
            assert known.source
            assert set(known.source) <= set(table.sources)

    @pytest.mark.parametrize(
        "name, close", [("gemini-3.8-flsh", "gemini-3.8-flash"), ("gemini-4-argo", "gemini-4-argon")]
    )
    def test_an_unknown_model_is_refused_with_close_names(self, name, close):
        with pytest.raises(ConfigError, match="no facts") as caught:
            models.model_facts(name)
        assert close in caught.value.fix

    def test_levels_of_thinking(self):
        assert not models.model_facts("gemini-3.8-flash").takes("minimal")
        assert not models.model_facts("gemini-4-argon").takes("minimal")
        assert models.model_facts("gemini-3.5-flash-lite").takes("minimal")
        assert models.model_facts("gemini-4-hydrogen").takes("xhigh")
        assert models.model_facts("gemini-4-carbon").takes("low")
        assert not models.model_facts("gemini-4-carbon").takes("xhigh")
        assert models.model_facts("gemini-4-neon").default_thinking == "high"
        assert all(known.takes(None) for known in models.models_table().models.values())

    def test_gemma_on_the_api_is_free_and_never_paid(self):
        for name in ("gemma-4-31b-it", "gemma-4-26b-a4b-it"):
            known = models.model_facts(name)
            assert (known.free_tier, known.paid_tier, known.prices) == (True, False, ())
            assert prices.worst(name, 10**6, 10**6, tier="standard", at=NOVEMBER) == 0

    def test_sampling_parameters_are_known_to_be_ignored_by_newer_models(self):
        ignoring = {name for name, known in models.models_table().models.items() if known.sampling == "ignored"}
        assert {"gemini-3.6-flash", "gemini-3.5-flash-lite", "gemini-3.8-flash", "gemini-4-argon"} <= ignoring
        assert "gemini-3.1-pro-preview" not in ignoring


@pytest.mark.parametrize(
    "model, day",
    [
        ("gemini-4-argon", date(2026, 12, 1)),
        ("gemini-4-carbon", date(2026, 12, 1)),
        ("gemini-3.8-flash", date(2027, 1, 1)),
        ("gemini-3.5-flash", None),
        ("gemma-4-31b-it", None),
    ],
)
def test_the_next_change_of_a_price_is_known(model, day):
    assert prices.next_change(model, after=NOVEMBER) == day
    assert day is None or prices.next_change(model, after=datetime(day.year, day.month, day.day, tzinfo=UTC)) is None


def test_a_price_that_only_the_date_changes_is_no_change():
    """genai-prices has an entry for 3 Flash that differs in the price of searches alone."""
    assert prices.next_change("gemini-3-flash-preview", after=datetime(2025, 12, 20, tzinfo=UTC)) is None


def test_dollars_are_read_and_written_exactly():
    assert prices.nanodollars(0.1) == 100_000_000
    assert prices.nanodollars(2.5) == 2_500_000_000
    assert [prices.dollars(nano) for nano in (0, 1_890_000_000, 3_761_250, 38)] == [
        "$0.00",
        "$1.89",
        "$0.0038",
        "$0.000000038",
    ]
