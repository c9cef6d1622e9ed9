"""Checks that artifacts belong together, and that their files are still what their steps left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemma_ops.errors import DataError, ModelError
from gemma_ops.registry import run_reader
from gemma_ops.runs import digest


def finished(path: Path) -> dict[str, Any]:
    """Return the manifest of a finished step. Raises ModelError where the step is not finished."""
    body = run_reader.read_step_json(path / "artifact.json")
    if body is None:
        raise ModelError(
            f"{path} is no finished step: it has no artifact.json", "run the steps before this one to their end"
        )
    return body


def check_chain(artifacts: dict[str, dict[str, Any]]) -> None:
    """Check that every artifact was made from the very artifacts registered with it, as far as both are given."""
    # What a step calls its input, and which of ours may stand behind that name.
    names = {key: (key,) for key in artifacts} | {
        "base": ("model",),
        "model": ("model", "merged"),
        "tuned": ("merged", "adapter"),
    }
    for body in artifacts.values():
        for role, found in (body.get("inputs") or {}).items():
            known = names.get(role, ())
            expected = [artifacts[key]["digest"] for key in known if key in artifacts]
            if expected and len(expected) == len(known) and found not in expected:
                raise DataError(
                    f"{body['step']} was made from another {role} ({found[:12]}) than the one to be registered "
                    f"({expected[0][:12]})",
                    f"make it again: --redo {body['step']}",
                )


def check_made(
    files: dict[str, Path], listed: dict[str, dict[str, Any]], artifacts: dict[Path, dict[str, Any]]
) -> None:
    """Check that every file is, byte for byte, what the manifest of its step says: an edited verdict is no verdict."""
    for name, file in files.items():
        for folder, body in artifacts.items():
            if file.is_relative_to(folder):
                made = body["files"].get(file.relative_to(folder).as_posix())
                # What lies behind the link of `fetch` is no file of its artifact; its digests stand in model.json.
                if made is not None and made["sha256"] != listed[name]["sha256"]:
                    raise DataError(
                        f"{file} was changed after the step {body['step']} had made it",
                        f"make that step again: --redo {body['step']}",
                    )
    for body in artifacts.values():
        if digest.of_listing({name: str(file["sha256"]) for name, file in body["files"].items()}) != body["digest"]:
            raise DataError(
                f"the manifest of the step {body['step']} was changed after the step had ended",
                f"make that step again: --redo {body['step']}",
            )
