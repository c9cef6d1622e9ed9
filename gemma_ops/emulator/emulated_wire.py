"""Calls and reactions inside the emulator, and texts as tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gemma_ops.wire.gemini_wire import contents_of

_PIECE = re.compile(r"\w{1,4}|[^\w\s]")
_MEDIA_TOKENS = 258
"""Tokens of an image or a file in the prompt, whatever its size."""


@dataclass(frozen=True)
class EmulatedCall:
    """One HTTP request, read and routed."""

    method: str
    path: str
    op: str
    """Operation that is asked for: `generate`, `stream`, `count`, `batch_create`, …; see `routes.py`."""
    name: str = ""
    """Model or resource in the path, without its collection."""
    version: str = ""
    cloud: bool = False
    """Whether the path is an enterprise one (`projects/…` or `publishers/google/…`)."""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers, with names in lower case."""
    raw: bytes = b""
    sent: Any = None
    """JSON body as it was sent."""
    body: dict[str, Any] = field(default_factory=dict)
    """JSON body with field names in camel case."""


@dataclass(frozen=True)
class Reaction:
    """The emulator's reply to a call. `events` are those of a stream; `body` is JSON, or bytes sent as they are."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    events: tuple[dict[str, Any], ...] | None = None
    delivery: str = "whole"
    """Way of delivery: `whole`, or a fault of transport: `slow`, `cut`, `cut_reply`, `cut_stream`, `stream_error`."""
    seconds: float = 0.0
    """Seconds that `slow` takes."""


def count_text(text: str) -> int:
    """Return the tokens of a text: a word counts one per four characters, every other visible character one. Never more
    than bytes."""
    return sum(1 for _ in _PIECE.finditer(text))


def tokens_of(text: str) -> list[str]:
    """Return the tokens of a text that `count_text` counts."""
    return _PIECE.findall(text)


def count_json(value: Any) -> int:
    """Count the tokens of the texts and names in JSON, such as a schema or a function's arguments."""
    return sum(count_text(text) for text in _strings(value))


def count_by_modality(value: Any) -> dict[str, int]:
    """Count the tokens of images, sounds, films and documents in contents, by the service's name of their kind."""
    kinds = {"image": "IMAGE", "audio": "AUDIO", "video": "VIDEO"}
    found: dict[str, int] = {}
    for content in contents_of(value):
        for part in content.get("parts") or []:
            shown = part.get("inlineData") or part.get("fileData")
            if isinstance(shown, dict):
                kind = kinds.get(str(shown.get("mimeType") or "").partition("/")[0], "DOCUMENT")
                found[kind] = found.get(kind, 0) + _MEDIA_TOKENS
    return found


def count_contents(value: Any) -> int:
    """Count the tokens of contents: their texts, calls and results of functions, and a flat number per image or
    file."""
    total = 0
    for content in contents_of(value):
        for part in content.get("parts") or []:
            if "text" in part:
                total += count_text(str(part["text"]))
            elif "inlineData" in part or "fileData" in part:
                total += _MEDIA_TOKENS
            else:
                total += count_json(part)
    return total


def first_tokens(text: str, tokens: int) -> str:
    """Return the beginning of a text that has this many tokens."""
    end = 0
    for number, piece in enumerate(_PIECE.finditer(text), 1):
        if number > tokens:
            return text[:end]
        end = piece.end()
    return text


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif value is not None:
        yield str(value)
