"""The section of Gemini: what it may be shown, under which terms, and what it may cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from gemma_ops.config.section import ConfigSection

MODELS = "GEMMA_OPS_GEMINI_MODELS"
"""Environment variable with the file of a user's own facts about models."""


def _address(url: str) -> str:
    """Return the address, if requests can be sent there: what is mistyped would fail only after money was reserved for
    it."""
    parts = urlsplit(url)  # which raises ValueError itself for broken brackets, and `port` for what is no number
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or any(map(str.isspace, url)):
        raise ValueError("an address such as http://127.0.0.1:8765 or https://gemini.example.com is needed")
    return url


class GeminiConfig(ConfigSection):
    """The door to Gemini. Nothing is sent before `accept_terms` and `budget_usd` are set."""

    accept_terms: str | None = None
    """Date of the Gemini API terms you have read and accept, as the refusal shows it; recorded with every result."""
    tier: Literal["unpaid", "paid"] = "unpaid"
    """`paid` when billing is linked to the key's project: only then may rows of class `paid` be sent."""
    region: Literal["eea_uk_ch", "other"] = "other"
    """Where you and your users are; in the EEA, the UK and Switzerland the paid data terms apply to all use."""
    enterprise: bool = False
    """Use the enterprise API (Google Cloud project and location) instead of the Developer API."""
    project: str | None = None
    """Google Cloud project, for `enterprise`."""
    location: str | None = None
    """Google Cloud location, for `enterprise`: `global`, `eu`, `us`, or a region."""
    budget_usd: Annotated[float, Field(ge=0)] | None = None
    """Hard cap in dollars for this run, endpoints with prices included, held under concurrency and across kills."""
    project_budget_usd: Annotated[float, Field(ge=0)] | None = None
    """Hard cap in dollars for everything in one ledger; null leaves only the cap of the run."""
    service_tier: Literal["standard", "flex", "priority"] = "standard"
    """`flex` is half the price and may wait; `priority` costs more."""
    batch: Literal["auto", "always", "never"] = "auto"
    """The batch API is half the price and answers within a day; `auto` takes it on the paid tier for 200 requests and
    more that need no time to the first token."""
    pii: Literal["off", "report", "refuse"] = "report"
    """What to do about personal data and secrets, found by checksummed patterns in what would be sent; `report` counts
    them in the log."""
    base_url: Annotated[str, AfterValidator(_address)] | None = None
    """Another address, without `/v1`. An emulator of ours on this machine proves itself and is a rehearsal; any other
    server counts as the service."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests under way at once; lowered by itself when the service says it is too many."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest wait for one reply; a reply that comes later may be billed all the same. `flex` needs minutes."""
    attempts: Annotated[int, Field(ge=1)] = 6
    """Tries per request when the service is busy or fails. After the last one the request ends in `error`."""
    models: str | None = None
    """A file of your own facts about models (prices, levels of thinking), laid over the shipped
    `gemma_ops/gemini/models.yaml`."""
    cache: bool = True
    """Answer a request that was answered before from the store, at no cost. Off, a killed run pays again for what it
    had."""


def lay_over(settings: GeminiConfig) -> None:
    """Let this process and its children read the user's own facts about models, if the settings name a file."""
    if settings.models:
        os.environ[MODELS] = str(Path(settings.models).expanduser().absolute())
