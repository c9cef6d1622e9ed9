"""The responder that rehearses recipes at no cost: JSON by its schema, calls of declared functions, otherwise sentences
of the document in the prompt. It knows nothing; it only keeps every later step supplied with well-formed material."""

from __future__ import annotations

import json
from typing import Any

from gemma_ops.emulator import prompt_material
from gemma_ops.emulator.filling import Filler
from gemma_ops.emulator.responder import Body, EmulatedReply
from gemma_ops.wire.gemini_wire import contents_of


def rehearsed_reply(body: Body) -> str | EmulatedReply:
    """Answer a request; the same request gets the same answer."""
    if body.schema is not None:
        value = filled(body)
        if body.config.get("responseMimeType") == "text/x.enum":
            return str(value)
        return json.dumps(value, ensure_ascii=False)
    if body.config.get("responseMimeType") == "application/json":
        return json.dumps({"answer": _sentences(body)}, ensure_ascii=False)
    if body.functions and _may_call(body):
        function = body.functions[0]
        schema = function.get("parametersJsonSchema") or function.get("parameters") or {"type": "object"}
        arguments = Filler(schema, body.texts, body.chance("call")).fill()
        return EmulatedReply(calls=({"name": str(function.get("name")), "args": arguments},))
    return _sentences(body)


def filled(body: Body) -> Any:
    """Return the value that the request's schema asks for."""
    return Filler(body.schema or {}, body.texts, body.chance("fill")).fill()


def _sentences(body: Body) -> str:
    found = prompt_material.sentences(prompt_material.passage(body.texts))
    start = body.chance("text").randrange(len(found))
    return " ".join(dict.fromkeys((found[start], found[(start + 1) % len(found)])))


def _may_call(body: Body) -> bool:
    """True if a function may be called: not when calls are forbidden, and not when a call's result is the last turn."""
    mode = (body.raw.get("toolConfig") or {}).get("functionCallingConfig", {}).get("mode", "AUTO")
    last = contents_of(body.raw.get("contents"))[-1:]
    done = any("functionResponse" in part for turn in last for part in turn.get("parts") or [])
    return str(mode).upper() != "NONE" and not done
