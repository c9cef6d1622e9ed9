"""The page at `/`: what runs since when, and why it may; how it is asked; its traffic so far."""

from __future__ import annotations

import time
from pathlib import Path

from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.lanes import LaneSummary
from gemma_ops.serving.serving_state import TrafficTally
from gemma_ops.words.markup import Templates

_PAGES = Templates(Path(__file__).parent / "templates")


def render_page(deployment: Deployment, url: str, *, keys: bool = False, lanes: LaneSummary | None = None) -> str:
    """Return the page as HTML, with nothing from elsewhere; `url` is where it is served, `keys` whether a key is
    needed, `lanes` what the router did where there is one."""
    service = deployment.current
    facts, tally = service.facts, service.tally
    rows = [
        ("Source", facts.source), ("Version", facts.version or "no registered version"), ("Format", facts.format),
        ("Engine", f"{facts.engine}: {service.model.engine.slots} slots of {service.model.engine.context:,} tokens"),
        ("Thinking", "on" if service.model.thinks else "off"), ("SHA-256", facts.digest),
        ("Since", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(service.began))), ("Canary", facts.canary),
    ]  # fmt: skip
    asked, good, mean = _counts(tally)
    numbers = [
        ("requests", asked), ("answered", good), ("mean time", mean), ("under way", str(service.slots.running)),
        ("waiting", str(service.slots.waiting)), ("tokens written", f"{tally.reply_tokens + tally.thought_tokens:,}"),
    ]  # fmt: skip
    return _PAGES.page(
        "page.html", "page", facts=facts, rows=[row for row in rows if row[1]], numbers=numbers, keys=keys, url=url,
        versions=_versions(deployment), trouble=list(deployment.trouble.values()), lanes=lanes,
    )  # fmt: skip


def _counts(tally: TrafficTally) -> tuple[str, str, str]:
    """Return requests, those that were answered, and the mean seconds of an answer."""
    good = sum(count for (_, status), count in tally.requests.items() if status == 200)
    mean = f"{tally.seconds_sum / good:.2f} s" if good else "–"
    return f"{sum(tally.requests.values()):,}", f"{good:,}", mean


def _versions(deployment: Deployment) -> list[tuple[str, ...]]:
    """Return versions that serve, end, or have served, as cells of a table; none where there is only one, without
    trouble."""
    if len(deployment.tallies) == 1 and not deployment.trouble:
        return []
    state = {service.facts.label: "ends" for service in deployment.services}
    if deployment.challenger:
        share = f"{deployment.share:.0%} of the requests" if deployment.share else "a copy of each request"
        state[deployment.challenger.facts.label] = f"challenger: {share}"
    state[deployment.current.facts.label] = "serves"
    rows: list[tuple[str, ...]] = []
    for (_, version, form), tally in deployment.tallies.items():
        known = state.get((deployment.current.facts.model, version, form), "ended")
        rows.append((version or "–", form, known, *_counts(tally)))
    return rows
