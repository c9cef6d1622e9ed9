"""Replies of the service, read into text, an end and what is billed.

The library's `.text` is None both for a refusal and for a reply whose thoughts ate all its tokens. Here every way to
end has a name, and text without a proper end is never an answer:

    stop      the model finished, and there is text (or a call of a tool)
    length    the limit of tokens was reached
    blocked   the prompt or the reply was refused by a rule of the service
    error     anything else: no candidate, no text, no reason to end, a malformed call
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gemma_ops.answer import End
from gemma_ops.gemini.usage import Usage

Hear = Callable[[str], None]
"""Callback for visible text as it arrives."""
_BLOCKED = frozenset(
    {
        "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION",
        "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION",
    }
)  # fmt: skip
_LENGTH = frozenset({"MAX_TOKENS", "CONTINUATION"})
_EMPTY: dict[str, Any] = {}


@dataclass(frozen=True)
class GeminiReply:
    """One reply of the service, not priced yet. `usage` is None when the service did not say."""

    text: str
    end: End
    reason: str
    usage: Usage | None
    model_version: str
    response_id: str


def read_reply(body: Mapping[str, Any]) -> GeminiReply:
    """Read a GenerateContentResponse, in snake or camel case."""
    metadata = _get(body, "usageMetadata", "usage_metadata") or _EMPTY
    text, end, reason = _outcome(body)
    return GeminiReply(
        text,
        end,
        reason,
        Usage.of_metadata(metadata),
        str(_get(body, "modelVersion", "model_version") or ""),
        str(_get(body, "responseId", "response_id") or ""),
    )


def ended(body: Mapping[str, Any]) -> bool:
    """True if the service said why it stopped: a stream that breaks off looks whole otherwise."""
    feedback = _get(body, "promptFeedback", "prompt_feedback") or _EMPTY
    candidates = body.get("candidates") or []
    return bool(feedback) or any(_get(candidate, "finishReason", "finish_reason") for candidate in candidates)


def has_text(body: Mapping[str, Any]) -> bool:
    """True if a chunk shows something to the reader."""
    return any(_said(candidate) for candidate in body.get("candidates") or [])


def visible_text(body: Mapping[str, Any]) -> str:
    """Return the text of a chunk that a reader may see: neither thoughts nor calls of tools."""
    parts = [
        part
        for candidate in (body.get("candidates") or [])[:1]
        for part in (candidate.get("content") or _EMPTY).get("parts") or []
    ]
    return "".join(part.get("text") or "" for part in parts if not part.get("thought"))


class HeardStream:
    """The listener of a stream, and whether it has received anything yet."""

    def __init__(self, hear: Hear) -> None:
        self._hear, self.anything = hear, False

    def take(self, chunk: Mapping[str, Any]) -> None:
        """Pass on what a chunk shows."""
        if text := visible_text(chunk):
            self.anything = True
            self._hear(text)


def _outcome(body: Mapping[str, Any]) -> tuple[str, End, str]:
    candidates = body.get("candidates") or []
    feedback = _get(body, "promptFeedback", "prompt_feedback") or _EMPTY
    if not candidates:
        why = _get(feedback, "blockReason", "block_reason")
        return ("", "blocked", f"prompt: {why}") if why else ("", "error", "the reply held no candidate")
    candidate = candidates[0]
    text = _said(candidate)
    reason = str(_get(candidate, "finishReason", "finish_reason") or "")
    if reason == "STOP":
        return (text, "stop", "") if text.strip() else ("", "error", "the reply ended but held no text")
    if reason in _LENGTH:
        return text, "length", ""
    message = _get(candidate, "finishMessage", "finish_message")
    told = f"{reason}: {message}" if message else reason
    if reason in _BLOCKED:
        return "", "blocked", told
    return "", "error", told or "the reply was cut off before it ended"


def _said(candidate: Mapping[str, Any]) -> str:
    """Return the visible text; with calls of tools, JSON of the form {"content": …, "tool_calls": […]}."""
    parts = (candidate.get("content") or _EMPTY).get("parts") or []
    text = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
    calls = [call for part in parts if (call := _get(part, "functionCall", "function_call"))]
    if not calls:
        return text
    spelled = [{"function": {"name": call.get("name"), "arguments": call.get("args") or {}}} for call in calls]
    return json.dumps({"content": text, "tool_calls": spelled}, ensure_ascii=False)


def merge_parts(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the chunks of a stream into one reply: parts in order, the last value of everything else."""
    parts: list[Any] = []
    candidate: dict[str, Any] = {}
    whole: dict[str, Any] = {}
    for chunk in chunks:
        whole |= {key: value for key, value in chunk.items() if key != "candidates"}
        for piece in (chunk.get("candidates") or [])[:1]:
            parts += (piece.get("content") or {}).get("parts") or []
            candidate |= {key: value for key, value in piece.items() if key != "content"}
    if candidate or parts:
        whole["candidates"] = [{**candidate, "content": {"role": "model", "parts": parts}}]
    return whole


def _get(mapping: Mapping[str, Any], *names: str) -> Any:
    return next((mapping[name] for name in names if mapping.get(name) is not None), None)
