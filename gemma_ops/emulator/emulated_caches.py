"""Cached contents: a prefix of prompts kept by the service and counted at the cached price."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from gemma_ops.emulator import emulated_wire
from gemma_ops.emulator.emulated_files import files_page, stamp
from gemma_ops.emulator.emulated_models import find_model
from gemma_ops.emulator.emulated_wire import EmulatedCall, Reaction
from gemma_ops.wire.gemini_wire import Refusal

_HOUR = 3600.0
LEAST = 1_024
"""Fewest tokens that the service caches."""


class Caches:
    """All content caches. Names are `cachedContents/ID`."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._caches: dict[str, dict[str, Any]] = {}
        self._ends: dict[str, float] = {}
        self._lock = threading.Lock()

    def create(self, call: EmulatedCall) -> Reaction:
        body = call.body
        model = str(body.get("model") or "").split("models/")[-1]
        card = find_model(model, call.version, "createCachedContent")
        tokens = emulated_wire.count_contents(body.get("contents")) + emulated_wire.count_contents(
            body.get("systemInstruction")
        )
        tokens += emulated_wire.count_json(body.get("tools") or [])
        if tokens < LEAST:
            raise Refusal(
                400, f"Cached content is too small. total_token_count={tokens}, min_total_token_count={LEAST}"
            )
        now = time.time()
        name = f"cachedContents/{self._new_id()}"
        end = _end(body, now)
        about = {
            "name": name,
            "model": f"models/{card.name}",
            "createTime": stamp(now),
            "updateTime": stamp(now),
            "expireTime": stamp(end),
            "usageMetadata": {"totalTokenCount": tokens},
        }
        if body.get("displayName"):
            about["displayName"] = body["displayName"]
        with self._lock:
            self._caches[name], self._ends[name] = about, end
        return Reaction(200, about)

    def get(self, call: EmulatedCall) -> Reaction:
        return Reaction(200, self._alive(f"cachedContents/{call.name}"))

    def list(self, call: EmulatedCall) -> Reaction:
        with self._lock:
            found = [about for name, about in self._caches.items() if self._ends[name] > time.time()]
        return Reaction(200, files_page(call, "cachedContents", found, 50))

    def patch(self, call: EmulatedCall) -> Reaction:
        """Move the end of a cache's life; nothing else of a cache can be changed."""
        name = f"cachedContents/{call.name}"
        about = self._alive(name)
        now = time.time()
        with self._lock:
            self._ends[name] = _end(call.body, now)
            self._caches[name] = about | {"expireTime": stamp(self._ends[name]), "updateTime": stamp(now)}
            return Reaction(200, self._caches[name])

    def delete(self, call: EmulatedCall) -> Reaction:
        name = f"cachedContents/{call.name}"
        self._alive(name)
        with self._lock:
            self._caches.pop(name, None)
        return Reaction(200, {})

    def use(self, name: str, model: str) -> dict[str, Any]:
        """Return the cache that a request names; it must belong to the same model."""
        about = self._alive(name if "/" in name else f"cachedContents/{name}")
        if about["model"] != f"models/{model}":
            raise Refusal(
                400,
                f"Model used by GenerateContent request (models/{model}) and CachedContent ({about['model']}) has to "
                f"be the same.",
            )
        return about

    def _alive(self, name: str) -> dict[str, Any]:
        with self._lock:
            about = self._caches.get(name)
            if about is None or self._ends[name] <= time.time():
                raise Refusal(403, "CachedContent not found (or permission denied)")
            return about


def _end(body: dict[str, Any], now: float) -> float:
    """Return when a cache expires, in seconds since 1970: `ttl` such as `300s`, or `expireTime`, or an hour from
    now."""
    if body.get("ttl"):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(body["ttl"]))
        if not found:
            raise Refusal(400, f"Invalid value at 'ttl': {body['ttl']!r}")
        return now + float(found.group(1))
    if body.get("expireTime"):
        text = str(body["expireTime"]).split(".", maxsplit=1)[0].rstrip("Z")[:19]
        try:
            import calendar

            return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%S")))
        except ValueError:
            raise Refusal(400, f"Invalid value at 'expire_time': {body['expireTime']!r}") from None
    return now + _HOUR
