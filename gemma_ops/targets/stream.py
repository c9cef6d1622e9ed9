"""A chat completion as it arrives: server-sent events, or one JSON body from servers that don't stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from gemma_ops.answer import Answer, End

if TYPE_CHECKING:
    import httpx2

    from gemma_ops.config import EndpointConfig

_ENDS: dict[str, End] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "blocked",
}


class StreamedReply:
    """Collects the pieces of one reply. Until a piece says how it ended, it has failed: a stream that is cut off is no
    answer, however much of it came."""

    def __init__(self) -> None:
        self.end: End = "error"
        self.reason = ""
        self.chunks = 0
        self._parts: list[str] = []
        self._thoughts: list[str] = []
        self._unreadable = ""
        self._first: float | None = None
        self._usage: dict[str, Any] = {}
        self._model = self._id = ""

    def read(self, response: httpx2.Response, began: float) -> None:
        """Read a response with status 200 to its end. `began`: `time.perf_counter()` when it was asked for."""
        if "text/event-stream" not in response.headers.get("content-type", ""):
            self._take(response.read().decode("utf-8", "replace"), began, streamed=False)
        else:
            for data in _events(response.iter_lines()):
                self._take(data, began, streamed=True)
        if self._unreadable:
            self.end, self.reason = "error", self._unreadable
        elif self.end == "error" and not self.reason:
            self.reason = "the reply broke off before its end"

    def broke(self, why: str) -> None:
        """Note that the connection failed."""
        self.end, self.reason = "error", why

    def answer(self, seconds: float, settings: EndpointConfig) -> Answer:
        """Return the answer that was received. Without usage from the server its tokens count 0 and its cost is
        unknown."""
        usage = self._usage
        written = int(usage.get("completion_tokens") or 0)
        thoughts = int((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
        prompt = int(usage.get("prompt_tokens") or 0)
        dollars = None
        if usage and settings.dollars_in is not None and settings.dollars_out is not None:
            dollars = (prompt * settings.dollars_in + written * settings.dollars_out) / 1e6
        text, thought = "".join(self._parts).strip(), "".join(self._thoughts).strip()
        if settings.think_blocks == "apart" and not thought:
            thought, text = _think_block(text)
        return Answer(
            text=text,
            thought=thought,
            end=self.end,
            prompt_tokens=prompt,
            new_tokens=max(written - thoughts, 0),
            seconds=round(seconds, 4),
            reason=self.reason,
            first_seconds=None if self._first is None else round(self._first, 4),
            thought_tokens=thoughts,
            cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
            dollars=dollars,
            model=self._model,
            response_id=self._id,
            tier="standard" if dollars is not None else "",
        )

    def _take(self, text: str, began: float, *, streamed: bool) -> None:
        """Take in one piece. What can't be read makes this answer a failed one, whatever comes after it: part of it is
        missing."""
        try:
            body = json.loads(text)
            self._piece(body, began, streamed=streamed)
        except (ValueError, TypeError, AttributeError, KeyError):
            self._unreadable = self._unreadable or f"the server sent a piece that can't be read: {text[:80]!r}"

    def _piece(self, body: dict[str, Any], began: float, *, streamed: bool) -> None:
        choices = body.get("choices") or []
        self.chunks += 1
        if body.get("error"):
            self.reason = str(body["error"])[:300]
            return
        usage = body.get("usage")
        self._usage = usage if isinstance(usage, dict) else self._usage
        self._model, self._id = str(body.get("model") or self._model), str(body.get("id") or self._id)
        for choice in choices[:1]:
            message = choice.get("delta" if streamed else "message") or {}
            said, thought = _said(message.get("content"))
            thought += str(message.get("reasoning_content") or message.get("reasoning") or "")
            if said and streamed and self._first is None:
                self._first = time.perf_counter() - began
            self._parts.append(said)
            self._thoughts.append(thought)
            ended = choice.get("finish_reason")
            if ended:
                self.end = _ENDS.get(ended, "error")
                self.reason = "" if self.end in ("stop", "length") else f"finish_reason {ended}"


def _think_block(text: str) -> tuple[str, str]:
    """Return the thought that stands before an answer, and the answer. Chat templates often open the block in the
    prompt, so that a reply only closes it; one that is never closed is all thought."""
    inside, closed, rest = text.partition("</think>")
    if closed and ("<think>" not in inside or inside.lstrip().startswith("<think>")):
        return inside.strip().removeprefix("<think>").strip(), rest.strip()
    if text.startswith("<think>") and not closed:
        return text.removeprefix("<think>").strip(), ""
    return "", text


def _events(lines: Iterable[str]) -> Iterator[str]:
    """Yield the data of server-sent events: an event may span several `data:` lines and ends at an empty one. Servers
    that leave the empty line out are read as well: a line that is JSON by itself is an event.

    Source: the HTML standard, server-sent events, interpretation of an event stream.
    """
    held: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            held.append(line.removeprefix("data:").removeprefix(" "))
            if not _is_json("\n".join(held)):
                continue
        elif line.strip():
            continue  # a comment, or another field
        yield from _data(held)
        held = []
    yield from _data(held)


def _data(held: list[str]) -> Iterator[str]:
    data = "\n".join(held).strip()
    if data and data != "[DONE]":
        yield data


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _said(content: Any) -> tuple[str, str]:
    """Return what a content says and what it thinks: text, or a list of parts. Raises TypeError for anything else."""
    if content is None:
        return "", ""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        raise TypeError
    said = thought = ""
    for part in content:
        if isinstance(part, str):
            said += part
        elif part.get("type") in ("thinking", "reasoning"):
            inner = part.get("thinking", part.get("text", part.get("summary")))
            thought += "".join(_said(inner))
        else:
            said += str(part.get("text") or "")
    return said, thought
