"""Finished steps on disk: reading, checking and comparing the folders that a run holds."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from gemma_ops.errors import OpsError
from gemma_ops.runs import digest

MANIFEST = "artifact.json"


@dataclass(frozen=True)
class Artifact:
    """A finished step: its folder, the digest of its files, what it measured."""

    name: str
    path: Path
    digest: str
    metrics: dict[str, float]
    kept: bool = False


@dataclass(frozen=True)
class Reads:
    """A folder or file outside the run of which a step reads only `files`: what else lies there changes nothing."""

    path: Path
    files: tuple[Path, ...]
    shown: tuple[Path, ...] = ()
    """Images and sounds that those files name, wherever they lie."""


Input: TypeAlias = Artifact | Path | Reads | tuple[Path, ...]
"""Input of a step: an earlier artifact, a path outside the run, or several of those paths."""


def read_artifact(path: Path, *, kept: bool = False) -> Artifact | None:
    """Return the artifact in a step's folder, or None when the step has not finished there."""
    manifest = path / MANIFEST
    if not manifest.exists():
        return None
    try:
        body = json.loads(manifest.read_text(encoding="utf-8"))
        return Artifact(path.name, path, body["digest"], body["metrics"], kept)
    except (ValueError, KeyError) as error:
        raise OpsError(f"{manifest} can't be read: {error}", f"remove {path} and run again") from error


def verify_artifact(path: Path) -> None:
    """Compare every file of an artifact with its manifest, byte by byte. Raises OpsError naming what differs."""
    body = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    for name, expected in body["files"].items():
        file = path / name
        if not file.exists():
            raise OpsError(f"{file} is missing", f"make the step again: --redo {path.name}")
        if digest.of_file(file) != expected["sha256"]:
            raise OpsError(f"{file} was changed after the step finished", f"make the step again: --redo {path.name}")


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the field-by-field difference of two JSON objects, one line each: `train.epochs: 1.0 -> 2.0`."""
    lines = []
    for key in sorted(set(old) | set(new)):
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{name}.")
        elif before != after:
            lines.append(f"{name}: {_short(before)} -> {_short(after)}")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def identity_of(body: dict[str, Any]) -> dict[str, Any]:
    return {key: body[key] for key in ("settings", "inputs")}


def set_aside(folder: Path) -> None:
    """Rename a step's folder out of the way in one move; it is deleted when the step has been made again."""
    if folder.exists():
        aside = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def check_whole(done: Path, body: dict[str, Any]) -> None:
    """Check that every file of a kept step is there and has its recorded length; `verify_artifact` reads the bytes
    too."""
    for name, expected in body["files"].items():
        file = done / name
        if not file.exists() or file.stat().st_size != expected["bytes"]:
            raise OpsError(
                f"{file} is missing or was changed after the step finished", f"make the step again: --redo {done.name}"
            )
