"""Gemini's protocol, server side: field names in one spelling, contents and their texts, refusals in Google's shape.

The real service reads field names in snake and in camel case and writes camel case; so does this one. What belongs to
the caller (JSON schemas, arguments of functions, metadata) keeps its names.
"""

from __future__ import annotations

import re
from typing import Any

_OPAQUE = frozenset(
    {
        "responseJsonSchema",
        "responseSchema",
        "parametersJsonSchema",
        "parameters",
        "responseFormat",
        "args",
        "response",
        "metadata",
        "labels",
    }
)

STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Refusal(Exception):  # noqa: N818  (what a client gets, not a failure of this program)
    """A request that the service refuses: an HTTP status with Google's error body."""

    def __init__(self, code: int, message: str, details: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details or []

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code, "message": self.message, "status": STATUS.get(self.code, "UNKNOWN")}
        return {"error": error | ({"details": self.details} if self.details else {})}


def camel(value: Any) -> Any:
    """Return JSON with proto field names in camel case, at any depth."""
    if isinstance(value, list):
        return [camel(item) for item in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        name = re.sub(r"_([a-z0-9])", lambda found: found.group(1).upper(), key)
        result[name] = item if name in _OPAQUE else camel(item)
    return result


def contents_of(value: Any) -> list[dict[str, Any]]:
    """Return a list of contents; a single content is a list of one."""
    if isinstance(value, dict):
        return [value]
    return [item for item in value or [] if isinstance(item, dict)]


def texts_of(value: Any) -> list[str]:
    """Return the texts of the parts of one content or several, in order; thoughts are left out."""
    return [
        str(part["text"])
        for content in contents_of(value)
        for part in content.get("parts") or []
        if isinstance(part, dict) and "text" in part and not part.get("thought")
    ]
