"""YAML as plain values, with the place of every key, so that a later complaint can name file and line.

Stricter than YAML 1.1, whose guesses cost people hours: only true and false are booleans (`off` is text), `1e-5` is a
number, dates and `1:30` are text, and where text is expected a scalar is the text that stands there. Tags, merge keys
and mappings that hold themselves are refused. What is expected where is told by the caller; this module knows no tree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from gemma_ops.errors import ConfigError

Key = tuple[str | int, ...]
Expected = Literal["text", "texts", "section", "any"]
"""What belongs at a key: text, a list of texts, a mapping, or whatever the YAML says."""

BAD: Any = object()
"""Placeholder for a value that couldn't be read; the problem is noted and the value left out."""

_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """The safe loader with fewer guesses about plain scalars."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012  (PyYAML's own protocol)


_FLOAT = r"""^[-+]?(?: (?:[0-9][0-9_]*\.[0-9_]* | \.[0-9][0-9_]*) (?:[eE][-+]?[0-9]+)?
    | [0-9]+[eE][-+]?[0-9]+ | \.(?:inf|Inf|INF) )$ | ^\.(?:nan|NaN|NAN)$"""

for _kind, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?i:true|false)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$", list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(_pattern, re.VERBOSE), _first)


class Reader:
    """Reader of one file or one `--set`, which adds to the caller's places and problems."""

    def __init__(
        self, label: str, expected: Callable[[Key], Expected], places: dict[Key, str], problems: list[str]
    ) -> None:
        """Prepare the reader; `label` is the file's path, or the whole `--set key=value`, which has no lines."""
        self.label = label
        self._expected = expected
        self._places = places
        self._problems = problems
        self._open: set[int] = set()

    def file(self, path: Path) -> dict[str, Any]:
        """Return the mapping in a file; empty when the file is. Raises ConfigError when there is none to read."""
        try:
            node = compose_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} can't be read: {error}", "give a YAML file in UTF-8") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"{path}:{mark.line + 1}" if mark else str(path)
            raise ConfigError(
                f"{where}: not valid YAML: {getattr(error, 'problem', error)}", "correct that line"
            ) from error
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{path}:1: a configuration is a mapping of keys to values", "start with, for example, `name: my-run`"
            )
        value = self.value(node, ())
        return value if isinstance(value, dict) else {}

    def value(self, node: yaml.Node, key: Key) -> Any:
        """Return plain values of a node that stands at `key`, or BAD with its problem noted."""
        if key:
            self._places[key] = self._at(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            return self._refuse(node, f"{_dotted(key)}: the tag {_short(node.tag)} means nothing here; leave it out")
        if id(node) in self._open:
            return self._refuse(node, f"{_dotted(key)}: this alias stands inside the value it repeats")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, key)
            items = [self.value(item, (*key, index)) for index, item in enumerate(node.value)]
            return [item for item in items if item is not BAD]
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        """Return a mapping; a key given twice is a problem, not a choice."""
        result: dict[str, Any] = {}
        seen: set[str] = set()
        for name_node, item in node.value:
            if name_node.tag == f"{_TAG}merge":
                self._refuse(
                    name_node,
                    "the merge key << isn't read: write the keys out, or keep the shared ones in a file of their own "
                    "and give both (gemma-ops run shared.yaml mine.yaml)",
                )
                continue
            name = str(name_node.value)
            if name in seen:
                self._refuse(name_node, f"{_dotted((*key, name))} is given twice")
            seen.add(name)
            value = self.value(item, (*key, name))
            self._places[(*key, name)] = self._at(name_node)
            if value is not BAD:
                result[name] = value
        return result

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        expected = self._expected(key)
        loader = _Loader("")
        try:
            value = loader.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError) as error:  # an unknown tag, or !!int on what is none
            why = getattr(error, "problem", None) or str(error)
            return self._refuse(node, f"{_dotted(key)}: can't be read ({why}); write it without a tag")
        finally:
            loader.dispose()
        if value is not None and not isinstance(value, bool | int | float | str):
            return self._refuse(node, f"{_dotted(key)}: the tag {_short(node.tag)} means nothing here; leave it out")
        if value is None:
            return {} if expected == "section" else None
        if expected == "text":
            return node.value
        return [node.value] if expected == "texts" else value

    def _at(self, node: yaml.Node) -> str:
        return self.label if self.label.startswith("--set") else f"{self.label}:{node.start_mark.line + 1}"

    def _refuse(self, node: yaml.Node, message: str) -> Any:
        self._problems.append(f"{self._at(node)}: {message}")
        return BAD


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the tree of nodes of one YAML document, or None when it is empty. Raises yaml.YAMLError."""
    node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    return node


def _dotted(key: Key) -> str:
    return ".".join(map(str, key)) or "configuration"


def _short(tag: str) -> str:
    return tag.replace(_TAG, "!!")
