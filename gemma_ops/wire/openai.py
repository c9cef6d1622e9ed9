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

_IGNORED = frozenset({"model", "user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "stream"})
"""Of no consequence here."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}), "store": (None, False),
    "modalities": (None, ["text"]), "audio": (None,), "prediction": (None,), "web_search_options": (None,),
    "functions": (None, []), "function_call": (None, "none", "auto"), "verbosity": (None, "medium"),
    "parallel_tool_calls": (None, True),
}  # fmt: skip
"""Fields that are taken with these values only: with any other, the client wants what isn't done here."""
_KNOWN = frozenset(
    {
        "messages", "tools", "tool_choice", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed",
        "stop", "n", "logprobs", "top_logprobs", "response_format", "reasoning_effort", "stream_options",
    }
)  # fmt: skip
_MOST_LOGPROBS, _MOST_REPLIES, _MOST_STOPS = 20, 16, 4
_EFFORTS = {"none": False, "minimal": True, "low": True, "medium": True, "high": True, "xhigh": True}
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def read_chat(body: Any) -> Ask:
    """The request of `POST /v1/chat/completions`. Raises RefusalError naming the field that is wrong or not done
    here."""
    if not isinstance(body, dict):
        raise RefusalError("the body is no JSON object")
    for name, value in body.items():
        if name in _NEUTRAL:
            if value not in _NEUTRAL[name]:
                raise RefusalError(f"{name} is not supported by this server", field=name, code="unsupported_parameter")
        elif name not in _KNOWN and name not in _IGNORED:
            raise RefusalError(f"unrecognized request argument: {name}", field=name, code="unknown_parameter")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise RefusalError("messages must be a list of at least one message", field="messages")
    _check_content(messages)
    tools = body.get("tools") or []
    choice = body.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise RefusalError(
            "tool_choice is supported as auto and none", field="tool_choice", code="unsupported_parameter"
        )
    if not isinstance(tools, list):
        raise RefusalError("tools must be a list", field="tools")
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > _MOST_STOPS
        or not all(isinstance(one, str) and one for one in stops)
    ):
        raise RefusalError(f"stop must be a text or a list of up to {_MOST_STOPS}", field="stop")
    schema, any_json = _shape(body.get("response_format"))
    return Ask(
        messages=messages,
        tools=[] if choice == "none" else tools,
        max_tokens=_number(body, "max_completion_tokens", 1, None) or _number(body, "max_tokens", 1, None),
        temperature=_real(body, "temperature", 0, 2),
        top_p=_real(body, "top_p", 0, 1),
        top_k=_number(body, "top_k", 0, None),
        seed=_number(body, "seed", None, None),
        stop=tuple(stops),
        schema={"type": "object"} if any_json else schema,
        logprobs=_logprobs(body),
        count=_number(body, "n", 1, _MOST_REPLIES) or 1,
        thinking=_thinking(body.get("reasoning_effort")),
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
    """The schema that is asked for, and whether any JSON object will do."""
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


def _thinking(effort: Any) -> bool | None:
    if effort is None:
        return None
    if effort not in _EFFORTS:
        raise RefusalError(f"reasoning_effort must be one of {', '.join(_EFFORTS)}", field="reasoning_effort")
    return _EFFORTS[effort]


def _logprobs(body: Mapping[str, Any]) -> int | None:
    top = _number(body, "top_logprobs", 0, _MOST_LOGPROBS)
    if top is not None and not body.get("logprobs"):
        raise RefusalError("top_logprobs needs logprobs", field="top_logprobs")
    return (top or 0) if body.get("logprobs") else None


def _number(body: Mapping[str, Any], name: str, least: int | None, most: int | None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    low, high = least is not None and value < least, most is not None and value > most
    if not isinstance(value, int) or isinstance(value, bool) or low or high:
        limits = f" from {least}" if most is None else f" from {least} to {most}"
        raise RefusalError(f"{name} must be a whole number{limits if least is not None else ''}", field=name)
    return value


def _real(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise RefusalError(f"{name} must be a number from {least:g} to {most:g}", field=name)
    return float(value)


def error_body(refusal: RefusalError) -> dict[str, Any]:
    """A refusal in OpenAI's shape."""
    kind = _TYPES.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.field, "code": refusal.code or None}}


def usage(prompt: int, replies: int, thoughts: int, cached: int) -> dict[str, Any]:
    """What a request counts: `replies` and `thoughts` are the tokens of all replies."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": replies + thoughts,
        "total_tokens": prompt + replies + thoughts,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


def tool_calls(calls: Sequence[tuple[str, dict[str, Any]]], request: str, *, first: int = 0) -> list[dict[str, Any]]:
    """Calls (name, arguments) as OpenAI spells them. Ids begin with the request's, so that none appears twice."""
    return [
        {
            "id": f"call_{re.sub('[^0-9a-zA-Z]', '', request)}_{number}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
        }
        for number, (name, arguments) in enumerate(calls, first)
    ]
