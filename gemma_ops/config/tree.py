"""Lookups in a tree of sections for a key of a YAML file: what belongs there, and how to word what is wrong there."""

from __future__ import annotations

import difflib
import json
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from gemma_ops.config.places import Expected, Key


class ConfigTree:
    """The tree of sections below one model."""

    def __init__(self, root: type[BaseModel]) -> None:
        self.root = root

    def may_be_null(self, key: Key) -> bool:
        """True if null may stand at a key."""
        return NoneType in _members(self.annotation(key))

    def explain(self, error: Any, places: dict[Key, str]) -> str:
        """Return one line for one validation error: where, which key, what is wrong, what was probably meant."""
        key: Key = tuple(error["loc"])
        where = next((places[key[:end]] for end in range(len(key), 0, -1) if key[:end] in places), "configuration")
        name = ".".join(map(str, key)) or "configuration"
        prefix = f"{where}: {name}" if not where.startswith("--set") else where
        if error["type"] == "extra_forbidden":
            known = self.fields(key[:-1])
            close = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
            return f"{prefix}: unknown key" + (
                f", did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
            )
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "value_error":
            return f"{where}: {message}"
        return f"{prefix}: {message[0].lower()}{message[1:]}, found {json.dumps(error['input'], default=str)[:60]}"

    def fields(self, key: Key) -> list[str]:
        """Return the keys known at a place of the tree."""
        model = _section(self.annotation(key))
        return sorted(field.alias or name for name, field in model.model_fields.items()) if model else []

    def annotation(self, key: Key) -> Any:
        """Return the type the tree gives to a key; None where it says nothing."""
        current: Any = self.root
        for part in key:
            if isinstance(part, int):
                current = get_args(current)[0] if get_origin(current) is tuple else None
                continue
            model = _section(current)
            fields = model.model_fields if model else {}
            current = next((f.annotation for name, f in fields.items() if part == (f.alias or name)), None)
        return current

    def expected(self, key: Key) -> Expected:
        """Return what the tree wants at a key, for the reader."""
        annotation = self.annotation(key)
        if _is_text(annotation):
            return "text"
        if get_origin(annotation) is tuple and _is_text(get_args(annotation)[0]):
            return "texts"
        return "section" if _section(annotation) or get_origin(annotation) is dict else "any"


def _section(annotation: Any) -> type[BaseModel] | None:
    return next((m for m in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)), None)


def _members(annotation: Any) -> list[Any]:
    """Return the types of a union, or the one type, without what `Annotated` says about them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _is_text(annotation: Any) -> bool:
    members = [member for member in _members(annotation) if member is not NoneType]
    literals = [value for m in members if get_origin(m) is Literal for value in get_args(m)]
    plain = [member for member in members if get_origin(member) is not Literal]
    return all(member is str for member in plain) and all(isinstance(value, str) for value in literals)
