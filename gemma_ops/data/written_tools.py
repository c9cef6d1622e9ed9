"""JSON values and declarations of tools as Gemma writes them, in plain Python: the macros `literal`, `element`,
`fields` and `declaration` of our chat template.

What is of a shape that rows don't have raises `Unfamiliar`, and is left to the template.
"""

from __future__ import annotations

from typing import Any

_RESERVED = frozenset(("description", "type", "properties", "required", "nullable"))


class Unfamiliar(Exception):  # noqa: N818 (no failure: the template is rendered instead)
    """A conversation of a shape that only the template itself knows."""


def text_of_key(part: Any, key: str) -> str:
    """Return a text of an object. Raises Unfamiliar where it is no text, KeyError where it isn't there."""
    if type(part) is not dict or type(part[key]) is not str:
        raise Unfamiliar
    return str(part[key])


def name_of(function: Any) -> str:
    """Return the name of a function. Raises Unfamiliar like `text_of_key`."""
    return text_of_key(function, "name")


def quoted(text: str) -> str:
    """Return a string between quote tokens, which needs no escaping."""
    return f'<|"|>{text}<|"|>'


def literal(value: Any, *, quote_keys: bool) -> str:
    """Return any JSON value; keys in dictionary order, quoted inside schemas and bare inside calls and responses."""
    kind = type(value)
    if value is None:
        return "null"
    if kind is str:
        return quoted(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is dict:
        items = [
            f"{quoted(key) if quote_keys else key}:{literal(item, quote_keys=quote_keys)}"
            for key, item in _sorted(value)
        ]
        return "{" + ",".join(items) + "}"
    if kind is list:
        return "[" + ",".join([literal(item, quote_keys=quote_keys) for item in value]) + "]"
    if kind is int or kind is float:
        return str(value)
    raise Unfamiliar


def _sorted(value: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return an object's items as Jinja's `dictsort` orders them: by key, whatever its case."""
    if not all(type(key) is str for key in value):
        raise Unfamiliar
    return sorted(value.items(), key=lambda item: item[0].lower())


def _names(value: Any) -> str:
    if type(value) is not list or not all(type(name) is str for name in value):
        raise Unfamiliar
    return "[" + ",".join(map(quoted, value)) + "]"


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type", "")
    if type(kind) is not str:
        raise Unfamiliar
    return kind.upper()


def _described(schema: dict[str, Any]) -> str:
    described = schema.get("description")
    if described and type(described) is not str:
        raise Unfamiliar
    return f"description:{quoted(described)}," if described else ""


def _element(schema: dict[str, Any]) -> str:
    """Return the element schema of an array: its own keys in dictionary order, those that are null left out."""
    return ",".join(f"{key}:{_element_value(key, item)}" for key, item in _sorted(schema) if item is not None)


def _element_value(key: str, item: Any) -> str:
    if key == "properties":
        return "{" + (_fields(item, bare=False) if type(item) is dict else "") + "}"
    if key == "required":
        return _names(item)
    if key == "type" and type(item) is str:
        return quoted(item.upper())
    if key == "type":
        if type(item) is not list or not all(type(kind) is str for kind in item):
            raise Unfamiliar
        return literal([kind.upper() for kind in item], quote_keys=True)
    return literal(item, quote_keys=True)


def _fields(properties: dict[str, Any], *, bare: bool) -> str:
    """Return parameters by name; with `bare` the reserved keys are skipped."""
    return ",".join(_field(name, schema) for name, schema in _sorted(properties) if not (bare and name in _RESERVED))


def _field(name: str, schema: Any) -> str:
    if type(schema) is not dict:
        raise Unfamiliar
    kind = _kind(schema)
    said = f"{name}:{{{_described(schema)}"
    items = schema.get("items")
    if kind == "STRING" and schema.get("enum"):
        said += f"enum:{literal(schema['enum'], quote_keys=True)},"
    elif kind == "ARRAY" and type(items) is dict and items:
        said += f"items:{{{_element(items)}}},"
    if schema.get("nullable"):
        said += "nullable:true,"
    if kind == "OBJECT":
        inner: Any = schema.get("properties")
        own = type(inner) is dict
        said += f"properties:{{{_fields(inner if own else schema, bare=not own)}}},"
        if schema.get("required"):
            said += f"required:{_names(schema['required'])},"
    return f"{said}type:{quoted(kind)}}}"


def declaration(tool: Any) -> str:
    """Return a function as the system turn declares it; its parameters are only closed by their `type`, as
    published."""
    function = tool["function"]
    if type(function) is not dict or "response" in function:
        raise Unfamiliar
    described = function.get("description", "")
    if type(described) is not str:
        raise Unfamiliar
    said = f"declaration:{name_of(function)}{{description:{quoted(described)}"
    if parameters := function.get("parameters"):
        if type(parameters) is not dict:
            raise Unfamiliar
        said += _parameters(parameters)
    return said + "}"


def _parameters(parameters: dict[str, Any]) -> str:
    said = ",parameters:{"
    if properties := parameters.get("properties"):
        if type(properties) is not dict:
            raise Unfamiliar
        said += f"properties:{{{_fields(properties, bare=False)}}},"
    if required := parameters.get("required"):
        said += f"required:{_names(required)},"
    if parameters.get("type"):
        said += f"type:{quoted(_kind(parameters))}}}"
    return said
