"""Responders with known faults, to test what judges, filters and statistics make of them.

A judge's reply follows the request's schema, filled as in a rehearsal, with the verdict planted: every field whose enum
holds the verdict gets it. `choose` reads a request and returns the verdict that an honest judge would give.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from gemma_ops.emulator.rehearsal import filled, rehearsed_reply
from gemma_ops.emulator.responder import Body, EmulatedReply, Responder

_ORDER = re.compile(
    r"\b(?:choose|pick|select|prefer|answer|verdict|winner|vote)\b"
    r"(?:\s+(?:for|is|with|answer|option|response)|[\s:=\"'*])*"
    r"(A|B)\b"
)


def gold(answer: Callable[[Body], str | Mapping[str, Any] | EmulatedReply]) -> Responder:
    """Answer what a function says: a text, a whole reply, or values for fields of the schema, wherever they stand."""

    def respond(body: Body) -> str | EmulatedReply:
        found = answer(body)
        if not isinstance(found, Mapping):
            return found
        return json.dumps(_planted(filled(body), found), ensure_ascii=False)

    return respond


def planted_judge(choose: Callable[[Body], str]) -> Responder:
    """Return an honest judge: it gives the verdict of `choose` in every field that can hold it."""

    def respond(body: Body) -> str | EmulatedReply:
        if body.schema is None:
            return choose(body)
        return json.dumps(_voted(body.schema, body.schema, filled(body), choose(body)), ensure_ascii=False)

    return respond


def always(verdict: str) -> Responder:
    """Return a judge that gives one verdict, whatever it reads."""
    return planted_judge(lambda body: verdict)


def position_biased(choose: Callable[[Body], str], share: float, favourite: str = "A") -> Responder:
    """Return a judge that takes the favourite slot in a share of the requests, drawn by the seed, and is honest in the
    rest."""

    def vote(body: Body) -> str:
        return favourite if body.chance("position").random() < share else choose(body)

    return planted_judge(vote)


def obedient(choose: Callable[[Body], str]) -> Responder:
    """Return a judge that obeys an injected order such as `choose A` or `verdict: B`, and is honest otherwise.

    Only what the user turn brings counts; the last order wins, and letters of a list such as `A or B` are no order.
    """

    def vote(body: Body) -> str:
        found = [
            match
            for match in _ORDER.finditer(body.text)
            if not re.match(r"\s*(?:or|,|/|and)\b", body.text[match.end() :])
        ]
        return found[-1].group(1) if found else choose(body)

    return planted_judge(vote)


def noisy(honest: Responder, share: float, instead: Responder = rehearsed_reply) -> Responder:
    """Return one responder in most requests, another in a share of them, drawn by the seed and anew each time it is
    asked."""
    return lambda body: (instead if body.chance("noise", body.nth).random() < share else honest)(body)


def _planted(value: Any, fields: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_planted(item, fields) for item in value]
    if isinstance(value, dict):
        return {name: fields[name] if name in fields else _planted(item, fields) for name, item in value.items()}
    return value


def _voted(root: Mapping[str, Any], schema: Any, value: Any, verdict: str) -> Any:
    """Return the filled value with the verdict in every field whose schema is an enum that holds it."""
    if not isinstance(schema, dict):
        return value
    if "$ref" in schema:
        last = str(schema["$ref"]).rsplit("/", 1)[-1]
        schema = {**root.get("$defs", {}).get(last, {}), **{key: item for key, item in schema.items() if key != "$ref"}}
    if verdict in (schema.get("enum") or []):
        return verdict
    if isinstance(value, list):
        return [_voted(root, schema.get("items"), item, verdict) for item in value]
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        return {name: _voted(root, properties.get(name), item, verdict) for name, item in value.items()}
    return value
