"""Detectors over a request's texts, within a bounded time: windows of a long text one after the other.

A window is small enough that other threads get their turn between two, and overlaps the next by more than the longest
finding that is told by its shape. What could not be seen in time is reported, and counts as found.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gemma_ops.config import Privacy
from gemma_ops.privacy import personal_data
from gemma_ops.privacy.classes import strictest
from gemma_ops.routing.routing_policy import Detectors

_WINDOW, _OVERLAP = 65_536, 16_384
"""Characters of a window, and of the overlap of two. The longest finding is a token of 16,000 (JWT)."""


@dataclass(frozen=True)
class Scan:
    """Findings of a scan: names of detectors, without what they found."""

    kinds: tuple[str, ...]
    whole: bool
    """Whether all of it was scanned in time, or an earlier finding made the rest needless."""
    seconds: float


def scan(texts: Iterable[str], rules: Detectors) -> Scan:
    """Look for personal data and secrets until the strictest class is reached, or the time is up."""
    began = time.monotonic()
    kinds: dict[str, Privacy] = {}
    whole = True
    for window in _windows(texts):
        if strictest(kinds.values()) == "local_only":
            break
        if time.monotonic() - began > rules.seconds:
            whole = False
            break
        kinds |= {finding.kind: rules.raised(finding.kind) for finding in personal_data.find_personal(window)}
    return Scan(tuple(sorted(kinds)), whole, time.monotonic() - began)


def _windows(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, max(len(text) - _OVERLAP, 1), _WINDOW - _OVERLAP):
            yield text[start : start + _WINDOW]


def text_leaves(value: Any, name: str = "", without: Collection[str] = ()) -> Iterator[str]:
    """Yield the texts and numbers of a JSON value, each behind its key, except those of the keys `without`; a text that
    is JSON itself is read first."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        with contextlib.suppress(ValueError):  # a text after all
            value = json.loads(value)
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in without:
                yield from text_leaves(item, str(key), without)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from text_leaves(item, name, without)
    elif value is not None:
        yield f"{name}: {value}" if name else str(value)
