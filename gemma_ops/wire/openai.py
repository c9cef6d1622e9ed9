"""OpenAI's chat completions, server side: requests read strictly, replies and chunks in its shape.

A field is honoured, or refused by name: a client that is told nothing would believe that it was heard. Fields that say
what this server does anyway, or that are about the client's own records, are taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.openai_fields import (
    check_fields,
    forced_call,
    real_number,
    stop_texts,
    thinking_effort,
    top_logprobs,
    whole_number,
)  # fmt: skip

_IGNORED = frozenset({"model", "user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "stream"})
"""Fields that are accepted and ignored."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}), "store": (None, False),
    "modalities": (None, ["text"]), "audio": (None,), "prediction": (None,), "web_search_options": (None,),
    "functions": (None, []), "function_call": (None, "none", "auto"), "verbosity": (None, "medium"),
    "parallel_tool_calls": (None, True),
}  # fmt: skip
"""Fields that are accepted with these values only: any other value asks for what isn't supported."""
_KNOWN = frozenset(
    {
        "messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k",
        "seed",
        "stop", "n", "logprobs", "top_logprobs", "response_format", "reasoning_effort", "stream_options",
    }
)  # fmt: skip
_MOST_REPLIES = 16
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def read_chat(body: Any) -> Ask:
    """Read the request of `POST /v1/chat/completions`. Raises RefusalError naming the field that is wrong or not done
    here."""
    body = check_fields(body, _KNOWN, _IGNORED, _NEUTRAL)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise RefusalError("messages must be a list of at least one message", field="messages")
    _check_content(messages)
    tools = body.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(one, dict) for one in tools):
        raise RefusalError("tools must be a list of functions", field="tools")
    names = [str((one.get("function") or {}).get("name")) for one in tools]
    tools, must_call = forced_call(body.get("tool_choice"), tools, names)
    schema, any_json = _shape(body.get("response_format"))
    return Ask(
        messages=messages,
        tools=tools,
        must_call=must_call,
        max_tokens=whole_number(body, "max_completion_tokens", 1) or whole_number(body, "max_tokens", 1),
        temperature=real_number(body, "temperature", 0, 2),
        top_p=real_number(body, "top_p", 0, 1),
        top_k=whole_number(body, "top_k", 0),
        seed=whole_number(body, "seed"),
        stop=stop_texts(body),
        schema={"type": "object"} if any_json else schema,
        logprobs=_logprobs(body),
        count=whole_number(body, "n", 1, _MOST_REPLIES) or 1,
        thinking=thinking_effort(body.get("reasoning_effort"), "reasoning_effort"),
        stream=bool(body.get("stream")),
        extra={"usage": bool((body.get("stream_options") or {}).get("include_usage"))},
    )


def _check_content(messages: Sequence[Mapping[str, Any]]) -> None:
    for place, message in enumerate(messages):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                raise RefusalError(
                    f"messages[{place}] holds {kind or 'something'}: this model is served for text",
                    field="messages",
                    code="unsupported_content",
                )


def _shape(wanted: Any) -> tuple[dict[str, Any] | None, bool]:
    """Return the schema that is asked for, and whether any JSON object will do."""
    if wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text"):
        return None, False
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return None, True
    schema = (wanted.get("json_schema") or {}).get("schema") if kind == "json_schema" else None
    if not isinstance(schema, dict):
        raise RefusalError(
            "response_format must be text, json_object, or json_schema with a schema", field="response_format"
        )
    return schema, False


def _logprobs(body: Mapping[str, Any]) -> int | None:
    top = top_logprobs(body)
    if top is not None and not body.get("logprobs"):
        raise RefusalError("top_logprobs needs logprobs", field="top_logprobs")
    return (top or 0) if body.get("logprobs") else None


def error_body(refusal: RefusalError) -> dict[str, Any]:
    """Return a refusal in OpenAI's shape."""
    kind = _TYPES.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.field, "code": refusal.code or None}}


def completion_usage(prompt: int, replies: int, thoughts: int, cached: int) -> dict[str, Any]:
    """Return what a request counts: `replies` and `thoughts` are the tokens of all replies."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": replies + thoughts,
        "total_tokens": prompt + replies + thoughts,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


def tool_calls(calls: Sequence[tuple[str, dict[str, Any]]], request: str, *, first: int = 0) -> list[dict[str, Any]]:
    """Return the calls (name, arguments) as OpenAI spells them. Ids begin with the request's, so that none appears
    twice."""
    return [
        {
            "id": f"call_{re.sub('[^0-9a-zA-Z]', '', request)}_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
        }
        for number, (name, arguments) in enumerate(calls, first)
    ]
