"""A request as google-genai 3.4 sends it.

Three settings stand on every request because the defaults do harm: `store` false (new projects keep requests for 55
days), `automatic_continuation` false (one call could be billed several times), and no callable tools, so that the
library never runs a function by itself. The enterprise API has no `store` field, and the library refuses it there.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from gemma_ops.errors import ConfigError, DataError
from gemma_ops.gemini.models import ModelFacts, model_facts
from gemma_ops.gemini.request import Request, is_media_item

if TYPE_CHECKING:
    from google.genai import types

_UNSIGNED = b"skip_thought_signature_validator"
"""Google's documented mark for a function call that another model made, which has no signature of its thoughts."""
_BESIDE = ("systemInstruction", "tools", "toolConfig", "serviceTier", "store")
"""Fields of a REST request that stand next to `generationConfig`, not in it."""


def check_request(request: Request) -> None:
    """Raise DataError or ConfigError for what the service would refuse, before anything is sent."""
    _encodable(request)
    where = _where(request)
    turns = [message for message in request.messages if message["role"] not in ("system", "developer")]
    if not turns or turns[-1]["role"] == "assistant":
        raise DataError(
            f"{where} does not end with a turn to answer: Gemini refuses a conversation that ends with the model's own",
            "end the conversation with a user or tool turn",
        )
    for message in request.messages:
        _checked(message, where)
        for call in message.get("tool_calls") or ():
            _arguments(call["function"].get("arguments"), where)
    known = model_facts(request.model)
    _level(request, known)
    if known.output and request.max_output_tokens > known.output:
        raise ConfigError(
            f"{request.model} writes at most {known.output:,} tokens, not {request.max_output_tokens:,}",
            "ask for fewer",
        )


def contents(request: Request) -> list[types.Content]:
    """Return the turns: assistant turns as the model's, tool turns as the user's responses to its calls."""
    from google.genai import types

    where = _where(request)
    turns: list[types.Content] = []
    names: dict[str, str] = {}
    for message in request.messages:
        role = message["role"]
        if role in ("system", "developer"):
            continue
        if role == "tool":
            name = message.get("name") or names.get(message.get("tool_call_id", ""), "tool")
            response = _response(_text(message.get("content"), where))
            part = types.Part(function_response=types.FunctionResponse(name=name, response=response))
            if turns and turns[-1].parts and turns[-1].parts[-1].function_response:
                turns[-1].parts.append(part)  # parallel calls are answered in one turn
            else:
                turns.append(types.Content(role="user", parts=[part]))
            continue
        parts = _parts(message.get("content"), where)
        for call in message.get("tool_calls") or ():
            function = call["function"]
            names[call.get("id", "")] = function["name"]
            calling = types.FunctionCall(name=function["name"], args=_arguments(function.get("arguments"), where))
            parts.append(types.Part(function_call=calling, thought_signature=_UNSIGNED))
        turns.append(types.Content(role="model" if role == "assistant" else "user", parts=parts))
    return turns


def request_config(request: Request, *, service_tier: str, enterprise: bool = False) -> types.GenerateContentConfig:
    """Return everything but the turns. `service_tier`: `standard`, `flex`, `priority`, or `batch`, which is no
    field."""
    from google.genai import types

    known = model_facts(request.model)
    system = "\n\n".join(
        _text(message.get("content"), _where(request))
        for message in request.messages
        if message["role"] in ("system", "developer")
    )
    values: dict[str, Any] = {"max_output_tokens": request.max_output_tokens, "automatic_continuation": False}
    if not enterprise:
        values["store"] = False
    if system:
        # One part of a user turn, as the library itself would spell it: a batch line and a direct request then agree.
        values["system_instruction"] = types.Content(role="user", parts=[types.Part(text=system)])
    if service_tier in ("flex", "priority"):
        values["service_tier"] = service_tier
    if request.schema is not None:
        values |= {"response_mime_type": "application/json", "response_json_schema": request.schema}
    if known.sampling == "taken":
        values |= {name: value for name in ("temperature", "seed") if (value := getattr(request, name)) is not None}
        values |= {name: request.more[name] for name in ("top_p", "top_k") if name in request.more}
    if stops := request.more.get("stop_sequences"):
        values["stop_sequences"] = list(stops)
    if request.tools:
        values["tools"] = _tools(request)
        values["automatic_function_calling"] = types.AutomaticFunctionCallingConfig(disable=True)
    level = _level(request, known)
    if level is not None:
        values["thinking_config"] = types.ThinkingConfig(thinking_level=types.ThinkingLevel(level.upper()))
    return types.GenerateContentConfig(**values)


def body(request: Request) -> dict[str, Any]:
    """Return the request as REST JSON, for a line of a batch file. Raises DataError for what can't be spelled so."""
    _encodable(request)
    settings = request_config(request, service_tier="batch").model_dump(mode="json", by_alias=True, exclude_none=True)
    for name in ("automaticContinuation", "automaticFunctionCalling"):
        settings.pop(name, None)  # instructions to the library, not to the service
    beside = {name: settings.pop(name) for name in _BESIDE if name in settings}
    turns = [turn.model_dump(mode="json", by_alias=True, exclude_none=True) for turn in contents(request)]
    return {"contents": turns, **beside, "generationConfig": settings}


def _where(request: Request) -> str:
    """Return the request's name in messages: its row, where it has one."""
    return f"request {request.id or request.key()}"


def _encodable(request: Request) -> None:
    """Raise DataError for a lone surrogate, which Python holds, as `json.loads` makes it, but no request can."""
    try:
        json.dumps([request.messages, request.tools, request.schema], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        name = request.id.encode("ascii", "backslashreplace").decode()
        half = error.object[error.start]
        raise DataError(
            f"request {name or 'without an id'} holds half a character (a lone surrogate, U+{ord(half):04X})",
            "repair the row's text: it was cut inside a character",
        ) from error


def _level(request: Request, known: ModelFacts) -> str | None:
    """Return the thinking level, checked against those the model has."""
    if not known.takes(request.thinking):
        has = ", ".join(known.thinking or ()) or "none that is known of"
        raise ConfigError(
            f"{request.model} has no thinking level {request.thinking!r}",
            f"take one that it has ({has}), or leave it out",
        )
    return request.thinking


def _tools(request: Request) -> list[types.Tool]:
    """Return the caller's functions as one tool, and each tool of the service."""
    from google.genai import types

    functions = [_declaration(tool) for tool in request.tools if isinstance(tool.get("function"), dict)]
    found = [types.Tool(function_declarations=functions)] if functions else []
    return found + [types.Tool.model_validate({name: {}}) for name in request.grounding()]


def _declaration(tool: dict[str, Any]) -> types.FunctionDeclaration:
    from google.genai import types

    function = tool["function"]
    return types.FunctionDeclaration(
        name=function["name"],
        description=function.get("description"),
        parameters_json_schema=function.get("parameters"),
    )


def _checked(message: dict[str, Any], where: str) -> None:
    """Raise DataError for a content that can't be sent; only users show something."""
    content: Any = message.get("content")
    shown = [part for part in content if is_media_item(part)] if isinstance(content, list) else []
    if shown and message["role"] == "user":
        for part in shown:
            _bytes(part, where)
        content = [part for part in content if not is_media_item(part)]
    _text(content, where)


def _bytes(part: dict[str, Any], where: str) -> bytes:
    try:
        return base64.b64decode(part["data"], validate=True)
    except ValueError as error:
        raise DataError(f"{where} shows something that is no base64", "encode the file's bytes") from error


def _parts(content: Any, where: str) -> list[types.Part]:
    """Return a turn's parts: its text in one, or images and sounds between its texts in order."""
    from google.genai import types

    if not (isinstance(content, list) and any(map(is_media_item, content))):
        text = _text(content, where)
        return [types.Part(text=text)] if text else []
    found = []
    for part in content:
        if is_media_item(part):
            found.append(types.Part(inline_data=types.Blob(mime_type=part["mime"], data=_bytes(part, where))))
        elif text := _text([part], where):
            found.append(types.Part(text=text))
    return found


def _text(content: Any, where: str) -> str:
    """Return a turn's text; content may be a list of text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "\n".join(str(part["text"]) for part in content)
    raise DataError(
        f"{where} holds something other than text",
        "only text is sent to Gemini here: leave images and audio out",
    )


def _arguments(value: Any, where: str) -> dict[str, Any]:
    """Return the arguments of a tool call, as the object that the service wants."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except ValueError as error:
            raise DataError(
                f"{where} holds a call of a tool whose arguments are no JSON: {error}",
                "repair the arguments of the call, or leave the row out",
            ) from error
    if value is not None and not isinstance(value, dict):
        raise DataError(
            f"{where} holds a call of a tool whose arguments are {type(value).__name__}, not an object",
            "spell them as a JSON object, or leave the row out",
        )
    return dict(value or {})


def _response(text: str) -> dict[str, Any]:
    """Return a tool's result as the object that the service wants."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"result": value}
