"""API keys: a file with a name and the SHA-256 of a key on each line, and what the key may. The keys themselves stand
nowhere.

printf %s "$KEY" | sha256sum        makes the second word of a line such as:

    team-a 9f86d081…  rate=60 privacy=paid budget=5
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from starlette.requests import Request

from gemma_ops.config.section import Privacy
from gemma_ops.errors import ConfigError
from gemma_ops.wire.ask import RefusalError

_LINE = re.compile(r"(?P<name>\S+)\s+(?P<digest>[0-9a-f]{64})(?P<grants>(\s+\w+=\S+)*)")


@dataclass(frozen=True)
class Grant:
    """Rights of a key."""

    name: str = ""
    privacy: Privacy | None = None
    """Privacy class of what is asked with it, unless a request declares a stricter one; None where the server's own
    holds."""
    rate: float | None = None
    """Requests per minute; as many at once after a quiet minute."""
    budget: float | None = None
    """US dollars that it may spend at Gemini on a day (UTC)."""


class TooFastError(RefusalError):
    """The rate of a key is used up. `retry_after` is in seconds."""

    def __init__(self, grant: Grant, retry_after: int) -> None:
        super().__init__(
            f"{grant.name} may send {grant.rate:g} requests a minute: send it again in {retry_after} s",
            status=429,
            code="rate_limit_exceeded",
            retry_after=retry_after,
        )


class _Bucket:
    """Requests that a key has left; it fills by its rate."""

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self._left, self._at = rate / 60, max(rate, 1.0), now
        self._most = self._left

    def take(self, now: float) -> float:
        """Take a request, and return 0, or the seconds until there is one."""
        self._left = min(self._most, self._left + (now - self._at) * self.rate)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self.rate
        self._left -= 1
        return 0.0


class Keys:
    """The API keys that are accepted. Without a file everybody may, which is for this machine only."""

    def __init__(self, known: dict[str, Grant] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._known = known
        """Rights of each key, by its SHA-256 in hex."""
        self._clock = clock
        self._buckets = {grant.name: _Bucket(grant.rate, clock()) for grant in (known or {}).values() if grant.rate}

    @classmethod
    def read(cls, path: Path | None) -> Keys:
        """Read the file of keys; raises ConfigError for a file that is not there, or a line that is no name with a
        digest."""
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"serve.keys: {path} can't be read: {error.strerror}", "correct the path") from error
        known: dict[str, Grant] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise ConfigError(
                    f"serve.keys: {path}:{number} is no name with a SHA-256 in hex",
                    'make one: printf %s "$KEY" | sha256sum',
                )
            known[found["digest"]] = _grant(found["name"], found["grants"], f"{path}:{number}")
        if not known:
            raise ConfigError(f"serve.keys: {path} holds no key", "put a line with a name and a SHA-256 into it")
        return cls(known)

    @property
    def needed(self) -> bool:
        return self._known is not None

    @property
    def budgeted(self) -> bool:
        """True if any key has a budget."""
        return any(grant.budget is not None for grant in (self._known or {}).values())

    def check(self, request: Request) -> Grant:
        """Return what the key of a request may. Raises RefusalError without a known one."""
        if self._known is None:
            return Grant()
        bearer = request.headers.get("authorization", "")
        given = bearer[7:] if bearer.lower().startswith("bearer ") else ""
        given = given or request.headers.get("x-goog-api-key", "") or request.query_params.get("key", "")
        digest = hashlib.sha256(given.encode()).hexdigest()
        for known, grant in self._known.items():
            if hmac.compare_digest(known, digest):
                return grant
        raise RefusalError("a key that this server knows is needed", status=401, code="invalid_api_key")

    def spend(self, grant: Grant) -> None:
        """Count a request that is to be answered. Raises TooFastError where the key's rate is used up."""
        bucket = self._buckets.get(grant.name)
        if bucket and (wait := bucket.take(self._clock())):
            raise TooFastError(grant, math.ceil(wait))


def _grant(name: str, words: str, place: str) -> Grant:
    """Return the rights that the words behind a digest grant. Raises ConfigError for those that grant nothing."""
    said = dict(word.split("=", 1) for word in words.split())
    try:
        rate, budget = (float(said.pop(key)) if key in said else None for key in ("rate", "budget"))
        privacy = said.pop("privacy", None)
        if said or privacy not in (None, *get_args(Privacy)) or (rate is not None and not 0 < rate < math.inf):
            raise ValueError
        if budget is not None and not 0 <= budget < math.inf:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"serve.keys: {place} grants unknown rights: {words.strip()}",
            f"write rate=REQUESTS_A_MINUTE, privacy={'|'.join(get_args(Privacy))} and budget=DOLLARS_A_DAY",
        ) from None
    return Grant(name, privacy, rate, budget)  # type: ignore[arg-type]


def is_this_machine(host: str) -> bool:
    """True if a host name means, or an address reaches, only this machine. 0.0.0.0 is every address there is."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
