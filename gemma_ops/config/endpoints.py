"""OpenAI-compatible endpoints that need more than their address: a key, prices, or the right to see private rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.config.section import ConfigSection, Privacy


class EndpointConfig(ConfigSection):
    """What is known of one endpoint. An endpoint that isn't listed has no key and no prices; on this machine it may see
    every row, elsewhere only rows of class `any`."""

    url: str
    """Its base address, as it stands in a target: `https://llm.example.com/v1`."""
    privacy: Privacy = "any"
    """The strictest class it may see: `local_only` for a server of your own, `paid` where terms protect the rows."""
    learned: Privacy | None = None
    """Strictest class of the rows that its model learned from: `any` for a stock model. Null takes `privacy`: who may see
    private rows may have learned them."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself is never written down."""
    dollars_in: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million prompt tokens; null is unknown, and unknown is told."""
    dollars_out: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million tokens of the reply."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest wait for the next piece of a reply."""
    limit_key: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """How it wants the longest answer called. `auto` begins with max_tokens and follows a refusal that names the other."""
    temperature: Literal["auto", "sent", "left_out"] = "auto"
    """Whether a temperature is sent. `auto` sends 0, and leaves it out where the server refuses it: its answers are then
    drawn at random, and `evaluate.repeats` says how much they differ."""
    think_blocks: Literal["text", "apart"] = "text"
    """Where a reply's leading `<think>…</think>` belongs: to the text that is scored, or stored apart as its thought."""
