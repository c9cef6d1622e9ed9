"""Reading a `RunConfig`: YAML files merged left to right, then `--set a.b=value`.

Every problem of every file is collected and told in one message, each with its file and line and, for a misspelt key,
the key that was probably meant. Where the tree wants text, `--set` takes what is written, and elsewhere it reads YAML.

Relative paths (the keys of `_PATHS`) in a file count from that file's folder where something lies there; in `--set`
they count from the working folder. So do `machine.runs` and `machine.mlflow` always: a shared configuration shouldn't
fill its own folder with runs. A leading `~` is the home folder in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gemma_ops.config import RunConfig, shipped
from gemma_ops.config.places import BAD, Key, Reader, compose_yaml
from gemma_ops.config.tree import ConfigTree
from gemma_ops.errors import ConfigError

Document = TypeVar("Document", bound=BaseModel)
_TREE = ConfigTree(RunConfig)

_PATHS = {
    "data.path": "",
    "synth.documents": "",
    "synth.seeds": "",
    "synth.tools": "",
    "model.base": "config.json",
    "evaluate.tasks": "task.yaml",
    "evaluate.judge.calibration": "",
    "recipe": ".py",
    "serve.routing": "",
}
"""Keys whose values may be paths from the file's folder, and by what they are known to be one: a file inside (or in the
`model` or `weights` of an artifact), a suffix, or, where there is none, that they exist."""

_HOMES = (*_PATHS, "machine.runs", "machine.mlflow", "serve.routing_log")
"""Keys where a leading `~` is the home folder."""


def read_run_config(files: Sequence[str | Path], sets: Sequence[str] = ()) -> RunConfig:
    """Read, merge and validate. A file is a path or the name of a shipped configuration.

    Raises ConfigError with every problem at once.
    """
    problems: list[str] = []
    merged: dict[str, Any] = {}
    places: dict[Key, str] = {}
    stem = None
    for file in files:
        path = shipped.find_shipped("configs", str(file), ".yaml")
        stem = stem or path.stem
        body = Reader(str(path), _TREE.expected, places, problems).file(path)
        for key, mark in _PATHS.items():
            _change(body, key, partial(_beside, folder=path.parent, mark=mark))
        merged = _merge(merged, body)
    for text in sets:
        _apply(text, merged, places, problems)
    for key in _HOMES:
        _change(merged, key, _home)
    if "name" not in merged and stem:
        merged["name"] = stem
    config = None
    try:
        config = RunConfig.model_validate(merged)
    except ValidationError as error:
        problems += [_TREE.explain(item, places) for item in error.errors()]
    if problems or config is None:
        raise _told(problems, "configuration", "correct the lines above; `gemma-ops schema` prints every key")
    return config


def read_document(path: Path, kind: type[Document], noun: str) -> Document:
    """Read a YAML file of another kind than a run's configuration, such as a routing policy; `noun` names it in
    messages.

    Raises ConfigError with every problem at once, each with its file and line.
    """
    problems: list[str] = []
    places: dict[Key, str] = {}
    tree = ConfigTree(kind)
    body = Reader(str(path), tree.expected, places, problems).file(path)
    found = None
    try:
        found = kind.model_validate(body)
    except ValidationError as error:
        problems += [tree.explain(item, places) for item in error.errors()]
    if problems or found is None:
        raise _told(problems, noun, "correct the lines above")
    return found


def _told(problems: Sequence[str], noun: str, fix: str) -> ConfigError:
    """Return all problems of a document in one message."""
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return ConfigError(f"{count} in the {noun}:\n  " + "\n  ".join(problems), fix)


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of the tree, for editors that complete YAML."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gemma-ops run",
        **RunConfig.model_json_schema(),
    }


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; anything else is replaced."""
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        result[key] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return result


def _apply(text: str, merged: dict[str, Any], places: dict[Key, str], problems: list[str]) -> None:
    name, sign, raw = text.partition("=")
    if not sign or not name:
        problems.append(f"--set {text}: expected key=value, for example --set train.epochs=2")
        return
    keys = tuple(name.split("."))
    target = merged
    for part in keys[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            problems.append(f"--set {text}: {part} is not a section")
            return
        target = inner
    for key in [key for key in places if key[: len(keys)] == keys]:
        del places[key]  # what a file said about this key no longer holds
    value = _given(f"--set {text}", raw, keys, places, problems)
    target[keys[-1]] = value
    if value is BAD:
        del target[keys[-1]]
    for end in range(1, len(keys) + 1):
        places[keys[:end]] = f"--set {text}"


def _given(label: str, raw: str, key: Key, places: dict[Key, str], problems: list[str]) -> Any:
    """Return the value of a `--set`: as it is written where text is wanted (without quotes around it), otherwise
    YAML."""
    expected = _TREE.expected(key)
    if expected == "text":
        if raw.strip() in ("", "null") and _TREE.may_be_null(key):
            return None
        quoted = len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "'\"" and raw[0] not in raw[1:-1]
        return raw[1:-1] if quoted else raw
    try:
        node = compose_yaml(raw)
    except yaml.YAMLError:
        return [raw] if expected == "texts" else raw
    if node is None:
        return {} if expected == "section" else None
    return Reader(label, _TREE.expected, places, problems).value(node, key)


def _change(body: dict[str, Any], key: str, change: Callable[[str], str]) -> None:
    """Replace the text, or each text of the list, at a dotted key, if there is one."""
    *sections, last = key.split(".")
    section: Any = body
    for part in sections:
        section = section.get(part) if isinstance(section, dict) else None
    if not isinstance(section, dict) or last not in section:
        return
    value = section[last]
    if isinstance(value, str):
        section[last] = change(value)
    elif isinstance(value, list):
        section[last] = [change(item) if isinstance(item, str) else item for item in value]


def _beside(value: str, folder: Path, mark: str) -> str:
    """Return an absolute path where `value` lies in the file's folder; otherwise a name, a Hub id or a path from
    elsewhere.

    `nano` is always the shipped model: a folder of that name is `./nano`.
    """
    if not value or Path(value).is_absolute() or (mark == "config.json" and value == "nano"):
        return value
    candidate = folder / value
    if mark == ".py":
        name = value if value.endswith(mark) else f"{value}{mark}"
        places = [folder / name, *(home / "recipes" / name for home in (folder, folder.parent))]
        candidate = next((place for place in places if place.is_file()), places[0])
        found = candidate.is_file() and not candidate.is_relative_to(shipped.root())
    elif mark and not value.startswith(("./", "../")):
        found = any((candidate / inner / mark).is_file() for inner in ("", "model", "weights"))
        if mark == "task.yaml" and not found:  # as `init` lays them: beside the configuration's folder, or in it
            places = [home / "eval" / value for home in (folder, folder.parent)]
            candidate = next((place for place in places if (place / mark).is_file()), candidate)
            found = (candidate / mark).is_file() and not candidate.is_relative_to(shipped.root())
    else:
        found = candidate.exists()
    # The folder is resolved, not the file: a link's name may carry the suffix that says what it is.
    return str(candidate.parent.resolve() / candidate.name) if found else value


def _home(value: str) -> str:
    if not value.startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError:  # no such user: a name that begins with ~
        return value
