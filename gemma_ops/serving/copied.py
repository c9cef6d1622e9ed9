"""A version in a folder, as `pull` and MLflow store it: served where no registry is reached.

Nothing is believed that the folder says of itself alone: every file that is used is compared with the manifest, the
verdict with what the manifest carries, and the whole with its signature where a key is trusted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gemma_ops.config import ServeConfig
from gemma_ops.errors import DataError, GateError, OpsError
from gemma_ops.family.formats import FORMATS, WEIGHT_ENDINGS
from gemma_ops.registry import manifest
from gemma_ops.registry.contents import content_problem
from gemma_ops.registry.fetching import Pulled
from gemma_ops.registry.points import INTEGRITY
from gemma_ops.registry.served import check_served
from gemma_ops.registry.signing import SIGNATURE, check_signature
from gemma_ops.registry.stored import OWN
from gemma_ops.registry.verification import check_verdict
from gemma_ops.runs import digest
from gemma_ops.serving.choosing import choose_format
from gemma_ops.serving.served_drafter import drafter_wanted
from gemma_ops.serving.served_source import SERVED_FORMATS, Source, is_weights, source_of_version
from gemma_ops.verdicts import VERDICT, Verdict

MANIFEST = "manifest.json"


def is_pulled_copy(folder: Path) -> bool:
    """True if a folder holds a version."""
    return (folder / MANIFEST).is_file()


def open_copy(folder: Path, settings: ServeConfig, keys: Sequence[str]) -> Source:
    """Open what a version in a folder serves; `keys` are those that are trusted.

    Raises DataError for a manifest that can't be read, GateError for files that aren't what was registered, that the
    verdict isn't about, or that no trusted key signed where there is one, ConfigError for a format that it lacks.
    """
    body, who = _manifest(folder), f"the version in {folder}"
    files: dict[str, Any] = body["subject"]["files"]
    for name in files:
        if not name.endswith(WEIGHT_ENDINGS):
            _check(folder, name, files, who)
    check_verdict(body, who)
    if keys:
        covered = {name: str(file["sha256"]) for name, file in files.items()}
        covered |= {name: digest.of_file(folder / name) for name in OWN if (folder / name).is_file()}
        check_signature(covered, who, folder / SIGNATURE, keys)
    verdict = Verdict.read(folder / VERDICT) if VERDICT in files else None
    if verdict:
        check_served(verdict, body["subject"], who)
    made = [name for name in SERVED_FORMATS if FORMATS[name].place in files]
    brought = [name for name in made if (folder / FORMATS[name].place).is_file()]  # `pull --only` brings one
    form = FORMATS[choose_format(settings, brought or made, verdict, who)]
    drafts = drafter_wanted(folder, form, files, settings, who)
    for name in files:
        if is_weights(name, form) or drafts(name):
            _check(folder, name, files, who)
    place = Pulled(str(body["subject"]["name"]), "", "", folder, body)
    return source_of_version(place, str(folder), body["subject"], form, verdict, settings)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        body = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST} can't be read: {error}", "pull the version again") from error
    try:
        manifest.check_manifest(body)
        if not (isinstance(body["subject"], dict) and isinstance(body["subject"].get("files"), dict)):
            raise OpsError("the manifest lists no files", "")
    except OpsError as error:
        raise GateError(f"{INTEGRITY}: {folder}: {error.what}", "pull the version again") from error
    return body


def _check(folder: Path, name: str, files: dict[str, Any], who: str) -> None:
    """Raise GateError where a file is not the one that was registered."""
    path = folder / name
    if not path.is_file():
        why = f"{name} is missing"
    elif digest.of_file(path) != files[name]["sha256"]:
        why = f"{name} was changed"
    elif problem := content_problem(path, name):
        why = f"{name}: {problem}"
    else:
        return
    raise GateError(f"{INTEGRITY}: {who} is not what was registered: {why}", "pull the version again")
