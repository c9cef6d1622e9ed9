"""Strict reading of JSON in an answer: what a program that consumes the answer would accept."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCE = re.compile(r"\A\s*```[A-Za-z]*\s*\n(.*?)\n?\s*```\s*\Z", re.DOTALL)


class Unreadable:
    """The answer is not JSON; `why` says so in a few words."""

    def __init__(self, why: str) -> None:
        self.why = why


def parse_json(text: str, *, fenced: bool = False) -> Any:
    """Return the JSON value of a whole answer, or Unreadable.

    Stricter than `json.loads`: NaN and Infinity are no JSON, and a key given twice is a mistake, not a choice. With
    `fenced` one surrounding Markdown code fence is taken off first.
    """
    if fenced and (match := _FENCE.match(text)):
        text = match.group(1)
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_pairs)
    except RecursionError:
        return Unreadable("nested too deeply")
    except json.JSONDecodeError as error:
        return Unreadable(f"{error.msg} at character {error.pos}")
    except ValueError as error:
        return Unreadable(str(error))


def dump(value: Any) -> str:
    """Return JSON text with one spelling per value: sorted keys, 1.0 as 1, no spaces. True stays apart from 1."""
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def json_leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """Path -> canonical value of everything that is neither an object nor a list; empty ones count as themselves."""
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict) and value:
        items = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{prefix}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {prefix: dump(value)}
    found: dict[str, str] = {}
    for path, item in items:
        found |= json_leaves(item, path)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found
