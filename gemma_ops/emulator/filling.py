"""JSON that follows a schema and has content: strings come from the document in the prompt and fit the name of their
field, the rest is drawn by a seed. The same request gives the same JSON.

Evidence is an exact quotation; question, answer and evidence of one object are about the same sentence.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

from gemma_ops.emulator import prompt_material
from gemma_ops.emulator.patterns import sample
from gemma_ops.emulator.wording import declared, text_for

_DEEPEST = 6
"""Depth after which optional fields are left out and arrays stay as short as they may, so that recursive schemas
end."""
_FORMATS = {
    "date": "2026-01-15",
    "date-time": "2026-01-15T12:00:00Z",
    "time": "12:00:00Z",
    "email": "person@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_GOOD = re.compile(
    r"pass|valid|correct|grounded|faithful|keep|accept|relevant|useful|safe|answerable|ok|good|support|follow"
    r"|clear|complete"
)


class Filler:
    """Fills one schema from one text. `chance` decides what is free."""

    def __init__(self, schema: Mapping[str, Any], texts: list[str], chance: random.Random) -> None:
        self._root = schema
        self._definitions = {**schema.get("$defs", {}), **schema.get("definitions", {}), **schema.get("defs", {})}
        self._sentences = prompt_material.sentences(prompt_material.passage(texts))
        self._chance = chance
        self._next = chance.randrange(len(self._sentences))
        self._functions = declared(texts)
        self._place = 0
        """Position of the current item in the innermost list."""

    def fill(self) -> Any:
        return self._value(self._root, "", self._take(), 0)

    def _take(self) -> str:
        """Return the next sentence: objects in a list are about different ones while there are any."""
        self._next += 1
        return self._sentences[self._next % len(self._sentences)]

    def _value(self, schema: Any, name: str, about: str, depth: int) -> Any:
        if not isinstance(schema, dict):
            return about
        schema = self._resolve(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            names = re.search(r"name|criteri|aspect|(^|_)id$|key", name.lower())  # lists speak about each once
            return schema["enum"][self._place % len(schema["enum"])] if names else self._chance.choice(schema["enum"])
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((item for item in kind if item != "null"), "null")
        kind = str(kind or self._guess(schema)).lower()
        if kind == "object":
            return self._object(schema, about, depth)
        if kind == "array":
            return self._array(schema, name, about, depth)
        if kind in ("integer", "number"):
            return self._number(schema, kind)
        if kind == "boolean":
            return self._chance.random() < (0.9 if _GOOD.search(name.lower()) else 0.5)
        return None if kind == "null" else self._string(schema, name, about)

    def _resolve(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Follow references and pick one of several shapes: the first, or one that ends where it gets deep."""
        for _ in range(32):
            if "$ref" in schema or "ref" in schema:
                last = str(schema.get("$ref") or schema.get("ref")).rsplit("/", 1)[-1]
                rest = {key: value for key, value in schema.items() if key not in ("$ref", "ref")}
                schema = {**(self._root if last == "#" else self._definitions.get(last, {})), **rest}
                continue
            found = schema.get("anyOf") or schema.get("any_of") or schema.get("oneOf")
            if found:
                rest = {
                    key: value for key, value in schema.items() if key not in ("anyOf", "any_of", "oneOf", "default")
                }
                ends = [item for item in found if isinstance(item, dict) and str(item.get("type")).lower() == "null"]
                others = [item for item in found if item not in ends]
                schema = {**rest, **(ends[0] if ends and (depth >= _DEEPEST or not others) else others[0])}
            elif schema.get("allOf"):
                merged = {key: value for key, value in schema.items() if key != "allOf"}
                for part in schema["allOf"]:
                    merged = {**self._resolve(part, depth), **merged}
                schema = merged
            else:
                break
        return schema

    @staticmethod
    def _guess(schema: Mapping[str, Any]) -> str:
        if "properties" in schema:
            return "object"
        return "array" if "items" in schema or "prefixItems" in schema else "string"

    def _object(self, schema: Mapping[str, Any], about: str, depth: int) -> dict[str, Any]:
        properties: Mapping[str, Any] = schema.get("properties") or {}
        order = schema.get("propertyOrdering") or schema.get("property_ordering") or list(properties)
        required = schema.get("required") or []
        wanted = [name for name in order if name in properties and (depth < _DEEPEST or name in required)]
        if not properties and isinstance(schema.get("additionalProperties"), dict):
            return {"first": self._value(schema["additionalProperties"], "", about, depth + 1)}
        found = {name: self._value(properties[name], name, about, depth + 1) for name in wanted}
        return self._called(found) if self._functions and {"name", "arguments"} <= set(found) else found

    def _called(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return a call of a function that the prompt declares, with arguments that fit it."""
        function = self._chance.choice(self._functions)
        arguments = Filler(function["parameters"], self._sentences, self._chance).fill()
        as_text = isinstance(found["arguments"], str)
        return found | {
            "name": function["name"],
            "arguments": json.dumps(arguments, ensure_ascii=False) if as_text else arguments,
        }

    def _array(self, schema: Mapping[str, Any], name: str, about: str, depth: int) -> list[Any]:
        if schema.get("prefixItems"):
            return [self._value(item, name, about, depth + 1) for item in schema["prefixItems"]]
        least = int(schema.get("minItems", schema.get("min_items", 0)))
        most = int(schema.get("maxItems", schema.get("max_items", max(least, 2))))
        count = (
            least
            if depth >= _DEEPEST
            else self._chance.randint(max(least, min(1, most)), max(least, min(most, least + 2)))
        )
        items = schema.get("items", {"type": "string"})
        found = []
        for place in range(count):
            self._place = place
            found.append(self._value(items, name, about if count == 1 else self._take(), depth + 1))
        if schema.get("uniqueItems"):
            found = [item for index, item in enumerate(found) if item not in found[:index]]
        return found

    def _number(self, schema: Mapping[str, Any], kind: str) -> float:
        """Draw from the upper half of the range: what is rehearsed should mostly pass."""
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        start = float(low if low is not None else (0 if high is None else min(0, high)))
        end = float(high if high is not None else start + (1 if kind == "number" and low in (None, 0) else 10))
        if kind == "number":
            return round(end - self._chance.uniform(0.05, 0.5) * (end - start), 3)
        first = int(start) + ("exclusiveMinimum" in schema)
        last = int(end) - ("exclusiveMaximum" in schema)
        value = self._chance.randint((first + last + 1) // 2, max(last, (first + last + 1) // 2))
        step = int(schema.get("multipleOf", 1)) or 1
        return value - value % step

    def _string(self, schema: Mapping[str, Any], name: str, about: str) -> str:
        if schema.get("pattern"):
            return sample(str(schema["pattern"]), self._chance)
        if schema.get("format") in _FORMATS:
            return _FORMATS[str(schema["format"])]
        following = self._sentences[(self._next + 1) % len(self._sentences)]
        text = text_for(name, about, following, self._chance)
        least, most = (
            int(schema.get("minLength", schema.get("min_length", 0))),
            schema.get("maxLength", schema.get("max_length")),
        )
        while len(text) < least:
            text = f"{text} {about or 'text'}".strip()
        return text[: int(most)] if most is not None else text
