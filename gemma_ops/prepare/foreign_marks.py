"""Parts of a row that Gemma's template does not read: tokens of other chat templates, and parts of tool schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_TOKENS = re.compile(
    r"<(?:start|end)_of_turn>|<\|im_(?:start|end|sep)\|>"
    r"|<\|(?:eot|eom|begin_of_text|end_of_text|start_header|end_header)(?:_id)?\|>"
    r"|<\|(?:endoftext|endofprompt|system|user|assistant|observation|end|return|message|start|channel)\|>"
    r"|\[/?INST\]|<</?SYS>>"
    r"|</?s>(?=\s|$|\[)|<\uff5c(?:begin|end)\u2581of\u2581sentence\uff5c>|<\uff5c(?:User|Assistant)\uff5c>"
    r"|<bos>|<eos>|\[(?:BOS|EOS)\]|<extra_id_\d+>|\[gMASK\]|<\|START_OF_TURN_TOKEN\|>|<\|END_OF_TURN_TOKEN\|>"
)
"""Structural tokens of Gemma 1 to 3, ChatML, Llama 2 and 3, Mistral, Phi, GPT's harmony, DeepSeek, GLM and Command
R."""
_PROPERTY = frozenset({"description", "type", "nullable"})
_READ = {
    "STRING": _PROPERTY | {"enum"},
    "ARRAY": _PROPERTY | {"items"},
    "OBJECT": _PROPERTY | {"properties", "required"},
}
"""Keys of a parameter that the template renders, by its type."""
_TOP = frozenset({"type", "properties", "required"})


def foreign_token(text: str) -> str | None:
    """Return the first token of another model's chat template in a text, or None."""
    found = _TOKENS.search(text) if "<" in text or "[" in text else None
    return found[0] if found else None


def key_of_two_orders(value: Any) -> str | None:
    """Return a key whose place in its object depends on who sorts: templates ignore case in Jinja, and put capitals
    first in llama.cpp, which then asks with other tokens. None where all keys have one order."""
    if isinstance(value, dict):
        keys = [str(key) for key in value]
        one, other = sorted(keys, key=str.lower), sorted(keys)
        if one != other:
            return next(a for a, b in zip(one, other, strict=True) if a != b)
        return next((found for item in value.values() if (found := key_of_two_orders(item))), None)
    if isinstance(value, list | tuple):
        return next((found for item in value if (found := key_of_two_orders(item))), None)
    return None


def schema_losses(tools: list[dict[str, Any]] | None) -> list[str]:
    """Return what Gemma's template leaves out of the declarations of tools, or distorts, as paths such as
    `book.when.anyOf`."""
    found: list[str] = []
    for tool in tools or []:
        function = tool.get("function", tool)
        parameters = function.get("parameters") or {}
        name = str(function.get("name"))
        found += [f"{name}.{key}" for key in parameters if key not in _TOP]
        for part, schema in (parameters.get("properties") or {}).items():
            found += _lost(schema, f"{name}.{part}")
        response = function.get("response")
        if isinstance(response, dict):
            found += [f"{name}.response.{key}" for key in response if key not in ("description", "type")]
        found += [f"{name}.{key}" for key in function if key not in ("name", "description", "parameters", "response")]
    return found


def _lost(schema: Any, path: str) -> Iterator[str]:
    if not isinstance(schema, dict):
        yield path
        return
    kind = schema.get("type")
    if not isinstance(kind, str):
        yield f"{path}.type" if kind else f"{path} (no type)"
    read = _READ.get(str(kind).upper(), _PROPERTY)
    if str(kind).upper() == "OBJECT" and not isinstance(schema.get("properties"), dict):
        read = read - {"properties"}
    yield from (f"{path}.{key}" for key in schema if key not in read)
    if "properties" in read and isinstance(schema.get("properties"), dict):
        for name, inner in schema["properties"].items():
            yield from _lost(inner, f"{path}.{name}")
    items = schema.get("items")
    if "items" in read and isinstance(items, dict):
        for name, inner in (items.get("properties") or {}).items() if isinstance(items.get("properties"), dict) else ():
            yield from _lost(inner, f"{path}[].{name}")
        yield from (f"{path}[].{key}" for key in items if key.startswith("$"))
