"""Requests, tokens and dollars by lane, since the start."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from gemma_ops.routing.decision_log import Outcome
from gemma_ops.serving.prometheus import metric_lines


@dataclass(frozen=True)
class LaneSummary:
    """Content of the page about the lanes."""

    policy: str
    """Policy in force, access to Gemini and what is left today, in words."""
    rows: tuple[tuple[str, ...], ...]
    """Rows of lane, requests, share, tokens and dollars, as they are shown."""


@dataclass
class LaneTally:
    """Counts by lane."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Number of requests by lane, privacy class and HTTP status."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Number of tokens of prompts and replies, by lane."""
    dollars: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of requests whose lane failed, by that and the lane that answered instead; `refuse` where none did."""

    def add(self, privacy: str, outcome: Outcome) -> None:
        """Count a request that ended."""
        self.requests[outcome.lane, privacy, outcome.status] += 1
        self.tokens[outcome.lane] += outcome.prompt_tokens + outcome.reply_tokens + outcome.thought_tokens
        self.dollars[outcome.lane] += outcome.dollars or 0.0
        self.fallbacks.update((failed, outcome.lane) for failed in outcome.failed)

    def count(self, lane: str) -> int:
        """Return the requests that a lane answered."""
        return sum(count for (where, _, _), count in self.requests.items() if where == lane)

    def shares(self) -> dict[str, float]:
        """Return the share of all requests that each lane answered, from 0 to 1; empty before the first."""
        whole = sum(self.requests.values())
        return {lane: self.count(lane) / whole for lane in sorted({lane for lane, _, _ in self.requests})}

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Return lane, requests, share, tokens and dollars of each lane, in words."""
        return tuple(
            (
                lane,
                f"{self.count(lane):,}",
                f"{share:.0%}",
                f"{self.tokens[lane]:,}",
                f"${self.dollars.get(lane, 0.0):,.4f}",
            )
            for lane, share in self.shares().items()
        )

    def render(self, left: float) -> str:
        """Return the counts in Prometheus' text format; `left` are the dollars that may be spent today."""
        rows = {
            ("lane_requests_total", "counter", "Requests for the model auto, by where they were answered."): [
                (f'{{lane="{lane}",privacy="{privacy}",status="{status}"}}', float(count))
                for (lane, privacy, status), count in sorted(self.requests.items())
            ],
            ("lane_tokens_total", "counter", "Tokens of prompts, replies and thoughts, by lane."): [
                (f'{{lane="{lane}"}}', float(count)) for lane, count in sorted(self.tokens.items())
            ],
            ("lane_dollars_total", "counter", "Dollars that were billed, by lane."): [
                (f'{{lane="{lane}"}}', dollars) for lane, dollars in sorted(self.dollars.items())
            ],
            ("lane_fallbacks_total", "counter", "Requests whose lane failed, and where they were answered instead."): [
                (f'{{lane="{failed}",answered="{lane}"}}', float(count))
                for (failed, lane), count in sorted(self.fallbacks.items())
            ],
            ("gemini_budget_left_dollars", "gauge", "Dollars that may still be spent today."): [("", left)],
        }
        lines: list[str] = []
        for (name, kind, words), found in rows.items():
            lines += metric_lines(name, kind, words, [(suffix, f"{value:.9g}") for suffix, value in found])
        return "\n".join([*lines, ""])
