"""The real content of files: a name may say safetensors where a pickle stands, and whoever loads it would run its code.

Every file of a version is opened by content before it is registered, and again before it is promoted. A safetensors
file must be filled by its tensors to the last byte, since some loaders read an archive from a file's end.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from gemma_ops.registry.flavor import MLMODEL, mlmodel_problem

ALLOWED = frozenset({".safetensors", ".gguf", ".litertlm", ".json", ".jinja", ".txt", ".md"})
"""File endings that a version may carry besides its report."""
REPORT = "report.html"
_HEADER = 100 << 20
"""Most bytes of a safetensors header; its own library has the same limit."""
_LITERTLM = b"LITERTLM"
"""First bytes of a file of LiteRT-LM (LiteRT-LM, `litertlm_header.h`); what follows are tables and graphs, no code."""
_GGUF = (2, 3)
"""Versions of GGUF that llama.cpp reads with 64-bit counts (little-endian)."""


def content_problem(path: Path, name: str | None = None) -> str | None:
    """Say why a file is not what its name (`name`, or its own) says; None where it is."""
    name = name or path.name
    if name == MLMODEL:
        return mlmodel_problem(path)
    suffix = Path(name).suffix
    if suffix not in ALLOWED and name != REPORT:
        return f"only {', '.join(sorted(ALLOWED))} may go into a version"
    if suffix == ".safetensors":
        return _safetensors(path)
    if suffix == ".gguf":
        return _gguf(path)
    if suffix == ".litertlm":
        return _litertlm(path)
    return _text(path, is_json=suffix == ".json")


def _safetensors(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, _HEADER):
            return "it is no safetensors file"
        head = file.read(length)
    try:
        tensors = {key: value for key, value in json.loads(head).items() if key != "__metadata__"}
        spans = sorted((int(entry["data_offsets"][0]), int(entry["data_offsets"][1])) for entry in tensors.values())
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return "it is no safetensors file"
    end = 0
    for first, last in spans:
        if first != end or last < first:
            return "its tensors do not lie one behind the other"
        end = last
    return None if 8 + length + end == size else "it holds more, or less, than its tensors"


def _gguf(path: Path) -> str | None:
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        return "it is no GGUF file"
    version, tensors, keys = struct.unpack("<IQQ", head[4:])
    if version not in _GGUF or max(tensors, keys) > path.stat().st_size:
        return "it is no GGUF file of version 2 or 3"
    return None


def _litertlm(path: Path) -> str | None:
    with path.open("rb") as file:
        return None if file.read(len(_LITERTLM)) == _LITERTLM else "it is no file of LiteRT-LM"


def _text(path: Path, *, is_json: bool) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
        if is_json:
            json.loads(text)
    except UnicodeDecodeError:
        return "it is no text"
    except ValueError:
        return "it is no JSON"
    return "it is no text" if "\0" in text else None
