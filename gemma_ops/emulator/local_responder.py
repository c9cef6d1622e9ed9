"""Answers of a local model: any object with a target's `answer` becomes a responder."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from gemma_ops.answer import Answer, Prompt
from gemma_ops.emulator.responder import Body, EmulatedReply, Responder
from gemma_ops.wire.gemini_wire import Refusal, contents_of, texts_of

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "blocked": "SAFETY"}


class Answers(Protocol):
    """The interface of a target, as far as it is needed here."""

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Iterator[list[Answer]]: ...


def from_target(target: Answers, *, max_new_tokens: int = 256) -> Responder:
    """Return a responder that lets `target` answer, one request at a time; `max_new_tokens` bounds replies, whatever
    the request allows."""
    one_at_a_time = threading.Lock()

    def respond(body: Body) -> EmulatedReply:
        tokens = min(body.max_output_tokens or max_new_tokens, max_new_tokens)
        prompt = Prompt(messages_of(body), id=body.digest, repeat=body.nth)
        with one_at_a_time:
            answer = next(iter(target.answer([[prompt]], max_new_tokens=tokens, schema=body.schema)))[0]
        if answer.end == "error":
            raise Refusal(500, f"The model failed: {answer.reason}")
        return EmulatedReply(
            "" if answer.end == "blocked" else answer.text,
            _FINISH[answer.end],
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.new_tokens,
            thought_tokens=answer.thought_tokens,
        )

    return respond


def messages_of(body: Body) -> list[dict[str, Any]]:
    """Return the conversation as OpenAI-style turns."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": body.system}] if body.system else []
    for turn in contents_of(body.raw.get("contents")):
        parts = turn.get("parts") or []
        text = "\n".join(texts_of(turn))
        results = [part["functionResponse"] for part in parts if "functionResponse" in part]
        messages += [
            {"role": "tool", "name": item.get("name"), "content": json.dumps(item.get("response"), ensure_ascii=False)}
            for item in results
        ]
        calls = [part["functionCall"] for part in parts if "functionCall" in part]
        if turn.get("role") == "model":
            message: dict[str, Any] = {"role": "assistant", "content": text}
            if calls:
                message["tool_calls"] = [
                    {"type": "function", "function": {"name": call.get("name"), "arguments": call.get("args") or {}}}
                    for call in calls
                ]
            messages.append(message)
        elif text or not results:
            messages.append({"role": "user", "content": text})
    return messages
