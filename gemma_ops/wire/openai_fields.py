"""Fields that OpenAI's protocols share: each read strictly, and refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_ops.wire.ask import RefusalError

_MOST_LOGPROBS, _MOST_STOPS = 20, 4
_EFFORTS = {"none": False, "minimal": True, "low": True, "medium": True, "high": True, "xhigh": True}


def check_fields(
    body: Any, known: frozenset[str], ignored: frozenset[str], neutral: Mapping[str, tuple[Any, ...]]
) -> Mapping[str, Any]:
    """Return the body once each of its fields is known and either ignored, or set to what is done anyway. Raises
    RefusalError."""
    if not isinstance(body, dict):
        raise RefusalError("the body is no JSON object")
    for name, value in body.items():
        if name in neutral:
            if value not in neutral[name]:
                raise RefusalError(f"{name} is not supported by this server", field=name, code="unsupported_parameter")
        elif name not in known and name not in ignored:
            raise RefusalError(f"unrecognized request argument: {name}", field=name, code="unknown_parameter")
    return body


def stop_texts(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts of `stop`."""
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    good = isinstance(stops, list) and len(stops) <= _MOST_STOPS and all(isinstance(one, str) and one for one in stops)
    if not good:
        raise RefusalError(f"stop must be a text or a list of up to {_MOST_STOPS}", field="stop")
    return tuple(stops)


def forced_call(choice: Any, tools: list[Any], names: list[str]) -> tuple[list[Any], tuple[str, ...]]:
    """Return the tools that may be called and the names of those of which one must be, by `tool_choice`; `names` are
    those of the tools."""
    if choice in (None, "auto", "none"):
        return ([] if choice == "none" else tools), ()
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "required":
        wanted = names
    elif kind == "function" and isinstance(choice, dict):
        wanted = [str((choice.get("function") or choice).get("name"))]
    else:
        raise RefusalError(
            "tool_choice must be auto, none, required or one function",
            field="tool_choice",
            code="unsupported_parameter",
        )
    if not wanted or not set(wanted) <= set(names):
        raise RefusalError(f"tool_choice asks for {', '.join(wanted) or 'a call'}: no such tool", field="tool_choice")
    return tools, tuple(wanted)


def thinking_effort(effort: Any, field: str) -> bool | None:
    """Return whether an effort asks for thoughts: how many, this model decides."""
    if effort is None:
        return None
    if effort not in _EFFORTS:
        raise RefusalError(f"{field} must be one of {', '.join(_EFFORTS)}", field=field)
    return _EFFORTS[effort]


def whole_number(body: Mapping[str, Any], name: str, least: int | None = None, most: int | None = None) -> int | None:
    """Return a whole number from `least` to `most`; None where the field is not set."""
    value = body.get(name)
    if value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (least is not None and value < least) or (most is not None and value > most):
        limits = f" from {least}" if most is None else f" from {least} to {most}"
        raise RefusalError(f"{name} must be a whole number{limits if least is not None else ''}", field=name)
    return int(value)


def real_number(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    """Return a number from `least` to `most`; None where the field is not set."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise RefusalError(f"{name} must be a number from {least:g} to {most:g}", field=name)
    return float(value)


def top_logprobs(body: Mapping[str, Any]) -> int | None:
    """Return how many top logprobs are given per token."""
    return whole_number(body, "top_logprobs", 0, _MOST_LOGPROBS)
