"""Reading a `RunConfig`: YAML files merged left to right, then `--set a.b=value`.

Every problem of every file is collected and told in one message, each with its file and line and, for a misspelt key,
the key that was probably meant. Where the tree wants text, `--set` takes what is written, and elsewhere it reads YAML.

Relative paths (the keys of `_PATHS`) in a file count from that file's folder where something lies there; in `--set` they
count from the working folder. So do `machine.runs` and `machine.mlflow` always: a shared configuration shouldn't fill its
own folder with runs. A leading `~` is the home folder in all of them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from gemma_ops import share
from gemma_ops.config import RunConfig
from gemma_ops.errors import ConfigError
from gemma_ops.yamlplaces import BAD, Expected, Key, Reader, compose

_PATHS = {
    "data.path": "",
    "synth.documents": "",
    "synth.seeds": "",
    "synth.tools": "",
    "model.base": "config.json",
    "evaluate.tasks": "task.yaml",
    "evaluate.judge.calibration": "",
    "recipe": ".py",
}
"""Keys whose values may be paths from the file's folder, and by what they are known to be one: a file inside (or in the
`model` or `weights` of an artifact), a suffix, or, where there is none, that they exist."""

_HOMES = (*_PATHS, "machine.runs", "machine.mlflow")
"""Keys where a leading `~` is the home folder."""


def load(files: Sequence[str | Path], sets: Sequence[str] = ()) -> RunConfig:
    """Read, merge and validate. A file is a path or the name of a shipped configuration.

    Raises ConfigError with every problem at once.
    """
    problems: list[str] = []
    merged: dict[str, Any] = {}
    places: dict[Key, str] = {}
    stem = None
    for file in files:
        path = share.find("configs", str(file), ".yaml")
        stem = stem or path.stem
        body = Reader(str(path), _expected, places, problems).file(path)
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
        problems += [_explain(item, places) for item in error.errors()]
    if problems or config is None:
        raise ConfigError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the configuration:\n  "
            + "\n  ".join(problems),
            "correct the lines above; `gemma-ops schema` prints every key",
        )
    return config


def schema() -> dict[str, Any]:
    """JSON schema of the tree, for editors that complete YAML."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "gemma-ops run",
        **RunConfig.model_json_schema(),
    }


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; anything else is replaced."""
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
    """The value of a `--set`: as it is written where text is wanted (without quotes around it), otherwise YAML."""
    expected = _expected(key)
    if expected == "text":
        if raw.strip() in ("", "null") and NoneType in _members(_annotation(key)):
            return None
        quoted = len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "'\"" and raw[0] not in raw[1:-1]
        return raw[1:-1] if quoted else raw
    try:
        node = compose(raw)
    except yaml.YAMLError:
        return [raw] if expected == "texts" else raw
    if node is None:
        return {} if expected == "section" else None
    return Reader(label, _expected, places, problems).value(node, key)


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
    """An absolute path where `value` lies in the file's folder; otherwise a name, a Hub id or a path from elsewhere.

    `nano` is always the shipped model: a folder of that name is `./nano`.
    """
    if not value or Path(value).is_absolute() or (mark == "config.json" and value == "nano"):
        return value
    candidate = folder / value
    if mark == ".py":
        name = value if value.endswith(mark) else f"{value}{mark}"
        places = [folder / name, *(home / "recipes" / name for home in (folder, folder.parent))]
        candidate = next((place for place in places if place.is_file()), places[0])
        found = candidate.is_file() and not candidate.is_relative_to(share.root())
    elif mark and not value.startswith(("./", "../")):
        found = any((candidate / inner / mark).is_file() for inner in ("", "model", "weights"))
        if mark == "task.yaml" and not found:  # as `init` lays them: beside the configuration's folder, or in it
            places = [home / "eval" / value for home in (folder, folder.parent)]
            candidate = next((place for place in places if (place / mark).is_file()), candidate)
            found = (candidate / mark).is_file() and not candidate.is_relative_to(share.root())
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


def _explain(error: Any, places: dict[Key, str]) -> str:
    """One line for one validation error: where, which key, what is wrong, what was probably meant."""
    key: Key = tuple(error["loc"])
    where = next((places[key[:end]] for end in range(len(key), 0, -1) if key[:end] in places), "configuration")
    name = ".".join(map(str, key)) or "configuration"
    prefix = f"{where}: {name}" if not where.startswith("--set") else where
    if error["type"] == "extra_forbidden":
        known = _fields(key[:-1])
        close = difflib.get_close_matches(str(key[-1]), known, n=1, cutoff=0.5)
        return f"{prefix}: unknown key" + (
            f", did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
        )
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {message}"
    return f"{prefix}: {message[0].lower()}{message[1:]}, found {json.dumps(error['input'], default=str)[:60]}"


def _fields(key: Key) -> list[str]:
    """Keys known at a place of the tree."""
    model = _section(_annotation(key))
    return sorted(field.alias or name for name, field in model.model_fields.items()) if model else []


def _annotation(key: Key) -> Any:
    """The type the tree gives to a key; None where it says nothing."""
    current: Any = RunConfig
    for part in key:
        if isinstance(part, int):
            current = get_args(current)[0] if get_origin(current) is tuple else None
            continue
        model = _section(current)
        fields = model.model_fields if model else {}
        current = next((f.annotation for name, f in fields.items() if part == (f.alias or name)), None)
    return current


def _section(annotation: Any) -> type[BaseModel] | None:
    return next((m for m in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)), None)


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the one type, without what `Annotated` says about them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _expected(key: Key) -> Expected:
    """What the tree wants at a key, for the reader."""
    annotation = _annotation(key)
    if _is_text(annotation):
        return "text"
    if get_origin(annotation) is tuple and _is_text(get_args(annotation)[0]):
        return "texts"
    return "section" if _section(annotation) or get_origin(annotation) is dict else "any"


def _is_text(annotation: Any) -> bool:
    members = [member for member in _members(annotation) if member is not NoneType]
    literals = [value for m in members if get_origin(m) is Literal for value in get_args(m)]
    plain = [member for member in members if get_origin(member) is not Literal]
    return all(member is str for member in plain) and all(isinstance(value, str) for value in literals)
