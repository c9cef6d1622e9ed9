"""A chat completion as it arrives: server-sent events, or one JSON body from servers that don't stream."""

from __future__ import annotations

import json
import time
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


class Reply:
    """Collects the pieces of one reply. Until a piece says how it ended, it has failed: a stream that is cut off is no
    answer, however much of it came."""

    def __init__(self) -> None:
        self.end: End = "error"
        self.reason = ""
        self.chunks = 0
        self._parts: list[str] = []
        self._first: float | None = None
        self._usage: dict[str, Any] = {}
        self._model = self._id = ""

    def read(self, response: httpx2.Response, began: float) -> None:
        """Read a response with status 200 to its end. `began`: `time.perf_counter()` when it was asked for."""
        if "text/event-stream" not in response.headers.get("content-type", ""):
            self._take(response.read().decode("utf-8", "replace"), began, streamed=False)
        else:
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip()
                if line.startswith("data:") and data != "[DONE]":
                    self._take(data, began, streamed=True)
        if self.end == "error" and not self.reason:
            self.reason = "the reply broke off before its end"

    def broke(self, why: str) -> None:
        """The connection failed."""
        self.end, self.reason = "error", why

    def answer(self, seconds: float, settings: EndpointConfig) -> Answer:
        """What came of it. Without usage from the server its tokens count 0 and its cost is unknown."""
        usage = self._usage
        written = int(usage.get("completion_tokens") or 0)
        thoughts = int((usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0)
        prompt = int(usage.get("prompt_tokens") or 0)
        dollars = None
        if usage and settings.dollars_in is not None and settings.dollars_out is not None:
            dollars = (prompt * settings.dollars_in + written * settings.dollars_out) / 1e6
        return Answer(
            text="".join(self._parts).strip(),
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
        try:
            body = json.loads(text)
            choices = body.get("choices") or []
        except (ValueError, AttributeError):
            self.reason = f"the server sent what is no JSON: {text[:80]!r}"
            return
        self.chunks += 1
        if body.get("error"):
            self.reason = str(body["error"])[:300]
            return
        self._usage = body.get("usage") or self._usage
        self._model, self._id = body.get("model") or self._model, body.get("id") or self._id
        for choice in choices[:1]:
            piece = (choice.get("delta" if streamed else "message") or {}).get("content") or ""
            if piece and streamed and self._first is None:
                self._first = time.perf_counter() - began
            self._parts.append(piece)
            ended = choice.get("finish_reason")
            if ended:
                self.end = _ENDS.get(ended, "error")
                self.reason = "" if self.end in ("stop", "length") else f"finish_reason {ended}"
