"""OpenAI's responses, server side: requests read strictly, output items in its shape.

Nothing is kept: `previous_response_id`, `conversation` and `store: true` are refused, and the reply says that it is not
stored. Tools that only OpenAI's service runs (search, files, code) are refused by their type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.openai_fields import (
    check_fields,
    forced_call,
    real_number,
    thinking_effort,
    top_logprobs,
    whole_number,
)  # fmt: skip

_IGNORED = frozenset(
    {"model", "user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "stream", "stream_options"}
)
_KNOWN = frozenset(
    {
        "input", "instructions", "tools", "tool_choice", "max_output_tokens", "temperature", "top_p", "top_logprobs",
        "text", "reasoning", "include",
    }
)  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (None, False), "background": (None, False), "previous_response_id": (None,), "conversation": (None,),
    "prompt": (None,), "truncation": (None, "disabled"), "parallel_tool_calls": (None, True), "max_tool_calls": (None,),
}  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"
_TEXTS = ("input_text", "output_text", "text")


def read_response(body: Any) -> Ask:
    """Read the request of `POST /v1/responses`. Raises RefusalError naming the field that is wrong or not done here."""
    body = check_fields(body, _KNOWN, _IGNORED, _NEUTRAL)
    tools, names = _tools(body.get("tools") or [])
    tools, must_call = forced_call(body.get("tool_choice"), tools, names)
    wanted = body.get("include") or []
    if set(wanted) - {_LOGPROBS}:
        raise RefusalError(f"include is supported for {_LOGPROBS}", field="include")
    top = top_logprobs(body)
    effort = (body.get("reasoning") or {}).get("effort")
    instructions = body.get("instructions")
    return Ask(
        messages=[*([{"role": "system", "content": instructions}] if instructions else []), *_turns(body.get("input"))],
        tools=tools,
        must_call=must_call,
        max_tokens=whole_number(body, "max_output_tokens", 1),
        temperature=real_number(body, "temperature", 0, 2),
        top_p=real_number(body, "top_p", 0, 1),
        schema=_schema((body.get("text") or {}).get("format")),
        logprobs=(top or 0) if _LOGPROBS in wanted or top else None,
        thinking=thinking_effort(effort, "reasoning.effort"),
        stream=bool(body.get("stream")),
        extra={"request": dict(body)},
    )


def _turns(given: Any) -> list[dict[str, Any]]:
    """Input items as chat turns: calls and reasoning that follow one another are one turn of the model."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise RefusalError("input must be a text or a list of items", field="input")
    found: list[dict[str, Any]] = []
    for place, item in enumerate(given):
        kind = item.get("type") or "message"
        if kind == "message":
            role = str(item.get("role"))
            found.append({"role": "system" if role == "developer" else role, "content": _content(item, place)})
        elif kind == "function_call":
            call = {"name": item.get("name"), "arguments": item.get("arguments")}
            _model_turn(found).setdefault("tool_calls", []).append(
                {"id": item.get("call_id"), "type": "function", "function": call}
            )
        elif kind == "function_call_output":
            output = item.get("output")
            text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind == "reasoning":
            continue  # the template drops the thoughts of earlier turns
        else:
            raise RefusalError(f"input[{place}] is {kind}, which is not supported by this server", field="input")
    return found


def _model_turn(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the model's turn that a call belongs to, made where there is none."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": ""})
    return turns[-1]


def _content(item: Mapping[str, Any], place: int) -> str:
    content = item.get("content")
    if isinstance(content, str):
        return content
    texts = []
    for part in content if isinstance(content, list) else [None]:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind not in _TEXTS:
            raise RefusalError(
                f"input[{place}] holds {kind or 'something'}: this model is served for text", field="input",
                code="unsupported_content",
            )  # fmt: skip
        texts.append(str(part["text"]))
    return "".join(texts)


def _tools(given: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Return tools as chat completions spell them, and their names."""
    found: list[dict[str, Any]] = []
    for tool in given if isinstance(given, list) else [None]:
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else tool
            raise RefusalError(f"the tool {kind} is not supported by this server: functions are", field="tools")
        function = {key: tool[key] for key in ("name", "description", "parameters") if tool.get(key) is not None}
        found.append({"type": "function", "function": function})
    return found, [str(one["function"].get("name")) for one in found]


def _schema(form: Any) -> dict[str, Any] | None:
    kind = form.get("type") if isinstance(form, dict) else "text" if form is None else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind == "json_schema" and isinstance(form.get("schema"), dict):
        return dict(form["schema"])
    raise RefusalError("text.format must be text, json_object, or json_schema with a schema", field="text")


def response_body(ask: Ask, number: str, model: str, created: int) -> dict[str, Any]:
    """Return a response that has begun: what it was asked, and nothing said."""
    asked = ask.extra["request"]
    return {
        "id": f"resp_{number}", "object": "response", "created_at": created, "status": "in_progress", "model": model,
        "output": [], "error": None, "incomplete_details": None, "instructions": asked.get("instructions"),
        "metadata": asked.get("metadata") or {}, "parallel_tool_calls": True, "previous_response_id": None,
        "reasoning": asked.get("reasoning") or {"effort": None, "summary": None}, "store": False,
        "temperature": ask.temperature, "text": asked.get("text") or {"format": {"type": "text"}},
        "tool_choice": asked.get("tool_choice") or "auto", "tools": asked.get("tools") or [], "top_p": ask.top_p,
        "top_logprobs": ask.logprobs or 0, "max_output_tokens": ask.max_tokens, "truncation": "disabled", "usage": None,
    }  # fmt: skip


def response_usage(prompt: int, replies: int, thoughts: int, cached: int) -> dict[str, Any]:
    """Return the token usage of a response."""
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": replies + thoughts,
        "output_tokens_details": {"reasoning_tokens": thoughts},
        "total_tokens": prompt + replies + thoughts,
    }


def reasoning_item(number: str, text: str, status: str) -> dict[str, Any]:
    """Return thoughts as an output item."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"id": f"rs_{number}", "type": "reasoning", "summary": [], "content": content, "status": status}


def message_item(number: str, text: str | None, status: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    """Return a text as an output item; without content where it has only begun."""
    content = [] if text is None else [text_part(text, logprobs)]
    return {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    """Return the one part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def call_item(number: str, name: str, arguments: str, status: str) -> dict[str, Any]:
    """Return a function call as an output item."""
    return {
        "id": f"fc_{number}", "type": "function_call", "call_id": f"call_{number}", "name": name,
        "arguments": arguments, "status": status,
    }  # fmt: skip
