"""Failures of a request: what went wrong, whether it may have been billed, and how long to wait before the next try.

The library's own retries are off: they ignore the wait that the service asks for. Five kinds of fault:

    busy     429: wait as long as the service says, send less at once
    failed   408, 5xx, or no connection: nothing was served; try again, the reservation is free
    lost     a timeout, a cut connection, an unreadable 200: it may have been billed, so its reservation stays counted
    refused  this request will never be served (400): an answer that ended in `error`
    stop     no request will be served: a wrong key or address, an unknown model, a quota of the day; the run ends
"""

from __future__ import annotations

import datetime as dt
import json
import random
import re
import zoneinfo
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from gemma_ops.errors import BoundaryError, ConfigError, OpsError, ServiceError

Kind = Literal["busy", "failed", "lost", "refused", "stop"]
LONGEST_WAIT = 900.0
"""Seconds. A service that asks for more than this is out of quota; the run stops instead of holding a terminal."""
_BACKOFF = (1.0, 60.0)
_REHEARSED = (0.01, 0.1)
_NONE_LEFT = re.compile(r"\blimit:\s*0(?!\d|[.,]\d)")
"""Pattern of a 429 without `quotaValue` that says a model is not open to a tier: `Quota exceeded for metric: …, limit:
0`."""
_SAID = re.compile(r"retry in ([\d.]+)\s*(ms|s)", re.IGNORECASE)


@dataclass(frozen=True)
class Fault:
    """One failed try. `wait`: seconds that the service asked for. `stop`: what to raise when nothing more can be
    sent."""

    kind: Kind
    reason: str
    wait: float | None = None
    stop: OpsError | None = None
    unreachable: bool = False
    """Whether there was no connection at all."""
    missing: bool = False
    """Whether the service does not have what was named for this key: it says 404, and 403 of files."""


class Cut(Exception):  # noqa: N818 - says what happened
    """A stream ended, or failed, after it had begun."""


def fault_of(error: Exception) -> Fault | None:
    """Return what an exception of a request means; None for one that is a defect of ours."""
    import google.auth.exceptions
    import httpx2
    import pydantic
    from google.genai import errors

    name = type(error).__name__
    if isinstance(error, BoundaryError):
        return Fault("stop", error.what, stop=error)
    if isinstance(error, errors.APIError):
        return _of_status(error)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError):
        return Fault("failed", f"no connection ({name}: {error})", unreachable=True)
    if isinstance(error, Cut):
        return Fault("lost", f"the stream was cut ({error}); it may have been billed")
    if isinstance(error, httpx2.TimeoutException | TimeoutError):
        return Fault("lost", "timed out; it may have been billed")
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError | httpx2.InvalidURL):
        return Fault("stop", f"nothing could be sent ({name})", stop=_unsendable(name))  # its text may hold the key
    if isinstance(error, httpx2.TransportError | ConnectionError):
        return Fault("lost", f"the connection was cut ({name}); it may have been billed")
    if isinstance(
        error, json.JSONDecodeError | UnicodeDecodeError | errors.UnknownApiResponseError | pydantic.ValidationError
    ):
        return Fault("lost", "the reply was no readable JSON; it may have been billed")
    if isinstance(error, google.auth.exceptions.TransportError):
        return Fault("failed", f"no connection for a token ({error})", unreachable=True)
    if isinstance(error, google.auth.exceptions.GoogleAuthError):
        return Fault("stop", str(error), stop=_no_credentials(str(error)))
    return None


def backoff(attempt: int, wait: float | None, *, rehearsal: bool) -> float:
    """Return the seconds before try number `attempt` + 1: what the service asked for, else doubling with full
    jitter."""
    first, most = _REHEARSED if rehearsal else _BACKOFF
    if wait is not None:
        return wait + random.uniform(0, first)  # never earlier than asked, and not all at the same moment
    return random.uniform(first / 2, min(most, first * 2**attempt))


def _of_status(error: Any) -> Fault:
    code, message = int(error.code or 0), str(error.message or error.status or "")
    reason = f"{code} {error.status or ''}: {message}".replace(" :", ":")[:500]
    details = _details(error.details)
    if code == 429:
        return _of_quota(reason, details, _asked_wait(error, details, message))
    if code == 408 or code >= 500:
        return Fault("failed", reason, _asked_wait(error, details, message))
    if code in (401, 403) or (code == 400 and _about_the_key(details, message)):
        fix = "set GEMINI_API_KEY to a key whose project may use this model and this region"
        return Fault("stop", reason, stop=ConfigError(f"Gemini refused the key: {reason}", fix), missing=code == 403)
    if code == 404:
        fix = "check the model's id, and that machine.gemini.base_url ends before /v1"
        return Fault(
            "stop", reason, stop=ConfigError(f"Gemini does not know what was asked for: {reason}", fix), missing=True
        )
    if code == 499:
        return Fault("lost", f"{reason}; it may have been billed")
    return Fault("refused", reason)


def _of_quota(reason: str, details: list[dict[str, Any]], wait: float | None) -> Fault:
    violations = [item for detail in details for item in detail.get("violations") or ()]
    quotas = [str(item.get("quotaId") or item.get("quotaMetric") or item.get("subject") or "") for item in violations]
    if any(str(item.get("quotaValue")) == "0" for item in violations) or _NONE_LEFT.search(reason):
        what, fix = (
            "this model is not open to the key's tier (its quota is 0)",
            "link billing to the key's project, or take another model",
        )
        return Fault("stop", reason, stop=ConfigError(f"Gemini: {what}", fix))
    daily = any("perday" in quota.replace("_", "").lower() for quota in quotas)
    if daily or (wait is not None and wait > LONGEST_WAIT):
        what = f"the quota of the day is used up ({', '.join(filter(None, quotas)) or reason})"
        fix = f"run the same command again after {_midnight_pacific()}: every answer that arrived is kept"
        return Fault("stop", reason, stop=ServiceError(f"Gemini: {what}", fix))
    return Fault("busy", reason, wait)


def _asked_wait(error: Any, details: list[dict[str, Any]], message: str) -> float | None:
    """Return the seconds that the service asked to wait: RetryInfo first, then the header, then its words."""
    for detail in details:
        delay = str(detail.get("retryDelay") or "")
        if re.fullmatch(r"[\d.]+s", delay):
            return float(delay[:-1])
    header = (getattr(error.response, "headers", None) or {}).get("retry-after")
    if header:
        if re.fullmatch(r"[\d.]+", header):
            return float(header)
        try:
            return max(0.0, parsedate_to_datetime(header).timestamp() - dt.datetime.now(dt.UTC).timestamp())
        except ValueError:
            pass  # an unreadable date asks for nothing
    said = _SAID.search(message)
    return float(said[1]) * (0.001 if said[2].lower() == "ms" else 1) if said else None


def _details(body: Any) -> list[dict[str, Any]]:
    error = body.get("error", body) if isinstance(body, dict) else {}
    found = error.get("details") if isinstance(error, dict) else None
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _about_the_key(details: list[dict[str, Any]], message: str) -> bool:
    """True if a 400 is about the key: Google answers so, not with 401, to a wrong key and to a region or project it
    does not serve."""
    reasons = {str(detail.get("reason")) for detail in details}
    return (
        bool(reasons & {"API_KEY_INVALID", "API_KEY_EXPIRED"})
        or "API key" in message
        or "location is not supported" in message
    )


def _no_credentials(said: str) -> ConfigError:
    return ConfigError(
        f"no Google Cloud credentials: {said}",
        "`gcloud auth application-default login`, or machine.gemini.enterprise=false",
    )


def _unsendable(name: str) -> ConfigError:
    return ConfigError(
        f"no request can be sent to Gemini with this address and key ({name})",
        "check machine.gemini.base_url, and GEMINI_API_KEY for characters that no key has",
    )


def _midnight_pacific() -> str:
    """Return when quotas of the day begin anew, in UTC."""
    try:
        zone = zoneinfo.ZoneInfo("America/Los_Angeles")
    except zoneinfo.ZoneInfoNotFoundError:
        return "midnight Pacific time"
    tomorrow = dt.datetime.now(zone).date() + dt.timedelta(days=1)
    reset = dt.datetime.combine(tomorrow, dt.time(), zone).astimezone(dt.UTC)
    return f"{reset:%Y-%m-%d %H:%M} UTC (midnight Pacific time)"
