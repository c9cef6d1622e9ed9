"""Gemini's generateContent as our server answers it: requests checked strictly, replies in the service's shape.

A field is honoured, or refused by name. What only the real service does (search, code, files, caches, filters) is
refused with the advice to ask the real service.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.gemini_wire import Refusal, contents_of

_TOP = frozenset({"contents", "systemInstruction", "generationConfig", "tools", "toolConfig", "labels", "model"})
_TOP_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (None, False), "serviceTier": (None, "standard", "STANDARD", "SERVICE_TIER_STANDARD"),
    "safetySettings": (None, []),
}  # fmt: skip
_CONFIG = frozenset(
    {
        "temperature", "topP", "topK", "maxOutputTokens", "stopSequences", "seed", "candidateCount", "responseMimeType",
        "responseSchema", "responseJsonSchema", "responseLogprobs", "logprobs", "thinkingConfig",
    }
)  # fmt: skip
_CONFIG_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presencePenalty": (None, 0), "frequencyPenalty": (None, 0), "responseModalities": (None, [], ["TEXT"]),
}  # fmt: skip
_SAFE = frozenset({"BLOCK_NONE", "OFF"})
_STOPS, _LOGPROBS, _REPLIES = 5, 20, 8
_ELSEWHERE = "is done by Gemini itself, and not by this model"


def read_generate(body: Mapping[str, Any], *, stream: bool) -> tuple[Ask, dict[str, Any]]:
    """Read a request whose field names are in camel case: its settings, and its conversation as a row. Raises
    RefusalError."""
    _fields(body, _TOP, _TOP_NEUTRAL, "")
    config = body.get("generationConfig") or {}
    if not isinstance(config, dict):
        raise RefusalError("generationConfig must be an object", field="generationConfig")
    _fields(config, _CONFIG, _CONFIG_NEUTRAL, "generationConfig.")
    contents = contents_of(body.get("contents"))
    if not contents:
        raise RefusalError("* GenerateContentRequest.contents: contents is not specified", field="contents")
    for turn in contents:
        for part in turn.get("parts") or []:
            if isinstance(part, dict) and ("inlineData" in part or "fileData" in part):
                raise RefusalError("this model is served for text: images and files are not seen", field="contents")
    thinking = config.get("thinkingConfig") or {}
    row = {"contents": contents, "systemInstruction": body.get("systemInstruction"), "tools": _tools(body)}
    ask = Ask(
        messages=(),
        must_call=_must_call(body, row["tools"]),
        max_tokens=_number(config, "maxOutputTokens", 1, None),
        temperature=_real(config, "temperature", 0, 2),
        top_p=_real(config, "topP", 0, 1),
        top_k=_number(config, "topK", 0, None),
        seed=_number(config, "seed", None, None),
        stop=_stops(config),
        schema=_schema(config),
        logprobs=_logprobs(config),
        count=_number(config, "candidateCount", 1, _REPLIES) or 1,
        thinking=_thinks(thinking),
        stream=stream,
        extra={"thoughts": bool(thinking.get("includeThoughts"))},
    )
    return ask, row


def json_schema(value: Any) -> Any:
    """Return a schema in OpenAPI's spelling (`STRING`, `nullable`, `propertyOrdering`) as JSON schema; JSON schema
    stays as it is."""
    if isinstance(value, list):
        return [json_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for key, item in value.items():
        if key == "properties" and isinstance(item, dict):
            found[key] = {name: json_schema(one) for name, one in item.items()}
        elif key in ("items", "anyOf", "additionalProperties", "prefixItems"):
            found[key] = json_schema(item)
        elif key == "type" and isinstance(item, str):
            found[key] = item.lower()
        elif key not in ("nullable", "propertyOrdering"):
            found[key] = item
    if value.get("nullable") and isinstance(found.get("type"), str):
        found["type"] = [found["type"], "null"]
    return found


def _fields(body: Mapping[str, Any], known: frozenset[str], neutral: Mapping[str, tuple[Any, ...]], place: str) -> None:
    for name, value in body.items():
        if name == "safetySettings":
            for setting in value or []:
                if str(setting.get("threshold")) not in _SAFE:
                    raise RefusalError(
                        f"safetySettings: filtering {_ELSEWHERE}; BLOCK_NONE and OFF are taken", field=name
                    )
        elif name in neutral:
            if value not in neutral[name]:
                raise RefusalError(f"{place}{name} {_ELSEWHERE}", field=name)
        elif name == "cachedContent":
            raise RefusalError(f"cachedContent {_ELSEWHERE}", field=name)
        elif name not in known:
            raise RefusalError(
                f'Invalid JSON payload received. Unknown name "{place}{name}": Cannot find field.', field=name
            )


def _tools(body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the declared functions, their parameters as JSON schema; none where the mode is NONE."""
    found: list[dict[str, Any]] = []
    for tool in body.get("tools") or []:
        for kind, declared in tool.items():
            if kind != "functionDeclarations":
                raise RefusalError(f"the tool {kind} {_ELSEWHERE}", field="tools")
            for function in declared or []:
                schema = function.get("parametersJsonSchema") or json_schema(function.get("parameters"))
                strangers = set(function) - {"name", "description", "parameters", "parametersJsonSchema"}
                if strangers - {"response", "responseJsonSchema", "behavior"}:
                    raise RefusalError(f"a function declaration holds {', '.join(sorted(strangers))}", field="tools")
                found.append(
                    {
                        "name": function.get("name"),
                        "description": function.get("description") or "",
                        **({"parameters": schema} if schema else {}),
                    }
                )
    mode = str(_calling(body).get("mode") or "AUTO").upper()
    return None if mode == "NONE" or not found else [{"functionDeclarations": found}]


def _calling(body: Mapping[str, Any]) -> dict[str, Any]:
    return (body.get("toolConfig") or {}).get("functionCallingConfig") or {}


def _must_call(body: Mapping[str, Any], tools: list[dict[str, Any]] | None) -> tuple[str, ...]:
    """Return the names of the functions of which one must be called (mode ANY): the allowed ones where some are
    named."""
    calling = _calling(body)
    mode, allowed = str(calling.get("mode") or "AUTO").upper(), calling.get("allowedFunctionNames") or []
    if mode not in ("AUTO", "NONE", "ANY", "MODE_UNSPECIFIED"):
        raise RefusalError("toolConfig: the modes AUTO, ANY and NONE are supported", field="toolConfig")
    if mode != "ANY":
        if allowed:
            raise RefusalError("toolConfig: allowedFunctionNames needs the mode ANY", field="toolConfig")
        return ()
    declared = [str(one["name"]) for tool in tools or [] for one in tool["functionDeclarations"]]
    wanted = [str(name) for name in allowed] or declared
    if not wanted or not set(wanted) <= set(declared):
        raise RefusalError(f"toolConfig: {', '.join(wanted) or 'no function'} is not declared", field="toolConfig")
    return tuple(wanted)


def _schema(config: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = config.get("responseMimeType") or "text/plain"
    if kind not in ("text/plain", "application/json"):
        raise RefusalError(f"responseMimeType {kind} is not supported", field="responseMimeType")
    schema = config.get("responseJsonSchema") or json_schema(config.get("responseSchema"))
    if schema is not None and kind == "text/plain":
        raise RefusalError("a schema needs responseMimeType application/json", field="responseMimeType")
    return schema or ({"type": "object"} if kind == "application/json" else None)


def _thinks(config: Mapping[str, Any]) -> bool | None:
    """Return what the request says about thinking; a thinking level, or a budget above 0, can't be honoured."""
    budget, level = config.get("thinkingBudget"), config.get("thinkingLevel")
    if budget is None and level is None:
        return None
    return (
        bool(budget)
        if budget is not None
        else str(level).lower() not in ("none", "minimal", "thinking_level_unspecified")
    )


def _stops(config: Mapping[str, Any]) -> tuple[str, ...]:
    stops = config.get("stopSequences") or []
    if not isinstance(stops, list) or len(stops) > _STOPS or not all(isinstance(one, str) and one for one in stops):
        raise RefusalError(f"stopSequences must be a list of up to {_STOPS} texts", field="stopSequences")
    return tuple(stops)


def _logprobs(config: Mapping[str, Any]) -> int | None:
    top = _number(config, "logprobs", 0, _LOGPROBS)
    if top is not None and not config.get("responseLogprobs"):
        raise RefusalError("logprobs is set, and response_logprobs is not: it must be true.", field="logprobs")
    return (top or 0) if config.get("responseLogprobs") else None


def _number(config: Mapping[str, Any], name: str, least: int | None, most: int | None) -> int | None:
    value = config.get(name)
    if value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float) and value.is_integer():
        whole, value = True, int(value)
    if not whole or (least is not None and value < least) or (most is not None and value > most):
        raise RefusalError(f"generation_config.{name} is out of range: {value}", field=name)
    return int(value)


def _real(config: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise RefusalError(f"generation_config.{name} must be in the range [{least:g}, {most:g}].", field=name)
    return float(value)


def refusal_body(refusal: RefusalError) -> dict[str, Any]:
    """Return a refusal in Google's shape."""
    return Refusal(refusal.status, refusal.message).body()


def usage_metadata(prompt: int, replies: int, thoughts: int, cached: int) -> dict[str, Any]:
    """Return `usageMetadata`: `replies` and `thoughts` are the tokens of all candidates."""
    found: dict[str, Any] = {"promptTokenCount": prompt, "candidatesTokenCount": replies}
    found |= {"thoughtsTokenCount": thoughts} if thoughts else {}
    found |= {"cachedContentTokenCount": cached} if cached else {}
    details = [{"modality": "TEXT", "tokenCount": prompt}]
    return {**found, "totalTokenCount": prompt + replies + thoughts, "promptTokensDetails": details}


def content_parts(
    text: str, thought: str, calls: Sequence[tuple[str, dict[str, Any]]], *, thoughts: bool
) -> list[dict[str, Any]]:
    """Return the parts of a model's turn; its thoughts only where they are asked for."""
    found: list[dict[str, Any]] = []
    if thought and thoughts:
        found.append({"text": thought, "thought": True})
    if text:
        found.append({"text": text})
    return found + [{"functionCall": {"name": name, "args": arguments}} for name, arguments in calls]
