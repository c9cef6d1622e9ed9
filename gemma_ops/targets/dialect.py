"""The parameters that a server accepts, learned from what it refuses.

Servers behind the same address form differ: reasoning models want `max_completion_tokens` and take no temperature,
older servers know no `stream_options`. A refusal that names such a parameter is answered once with another spelling,
which then holds for every request to that endpoint; where nothing is left to change, no question could be answered and
the target is refused. Source: the API reference of chat completions, `max_completion_tokens` and `temperature`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from gemma_ops.config import EndpointConfig
from gemma_ops.runs import journal

_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
_OPTIONAL = ("temperature", "seed", "stream_options")
"""Parameters that a request can do without: answers are then the server's usual ones, and usage may be unknown."""
_REFUSED = re.compile(
    r"unsupported|not support|n't support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed"
    r"|extra (?:input|field)"
    r"|invalid (?:parameter|argument|field)|deprecated",
    re.IGNORECASE,
)


class Dialect:
    """The spelling of requests to one endpoint. Used by several threads: a spelling is only ever added to."""

    def __init__(self, settings: EndpointConfig) -> None:
        self._url = settings.url
        self._limit = _NEW_LIMIT if settings.limit_key == _NEW_LIMIT else _LIMIT
        self._fixed = settings.limit_key != "auto"
        self._left_out = {"temperature"} if settings.temperature == "left_out" else set[str]()
        self._kept = {"temperature"} if settings.temperature == "sent" else set[str]()
        self._told: set[str] = set()

    def spell(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a request as this server takes it, from one that says `max_tokens`."""
        said = {key: value for key, value in body.items() if key not in self._left_out}
        said[self._limit] = said.pop(_LIMIT)
        return said

    def learn(self, sent: dict[str, Any], reason: str) -> bool:
        """Return whether a request that was refused with these words is now spelled otherwise, and worth sending
        again."""
        if not self._fixed and _LIMIT in sent and _names(reason, _NEW_LIMIT):
            self._limit = _NEW_LIMIT
            self._tell(f"{_NEW_LIMIT} instead of {_LIMIT}")
            return True
        key = self._refused_of([key for key in _OPTIONAL if key not in self._kept], sent, reason)
        if key is None:
            return False
        self._left_out.add(key)
        self._tell(f"no {key}")
        return True

    def refused(self, sent: dict[str, Any], reason: str) -> str | None:
        """Return the parameter of ours that a refusal is about, if it is about one: no question would fare better."""
        return self._refused_of((_LIMIT, _NEW_LIMIT, *_OPTIONAL, "response_format", "tools"), sent, reason)

    @staticmethod
    def _refused_of(keys: Iterable[str], sent: dict[str, Any], reason: str) -> str | None:
        return next((key for key in keys if key in sent and _names(reason, key) and _REFUSED.search(reason)), None)

    def _tell(self, sends: str) -> None:
        """Report a change once, though several threads learn the same."""
        if sends not in self._told:
            self._told.add(sends)
            journal.record(event="dialect", endpoint=self._url, sends=sends)


def _names(reason: str, key: str) -> bool:
    return re.search(rf"(?<![a-z_]){key}(?![a-z_])", reason, re.IGNORECASE) is not None
