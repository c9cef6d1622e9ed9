"""Verified copies of registered versions: `NAME@ALIAS` or `NAME/VERSION` to a folder whose every byte is as registered.

Files go through a cache that names them by their SHA-256 (`GEMMA_OPS_CACHE`, else `~/.cache/gemma-ops`), so that
versions share what they share, and a copy that was cut goes on with what was whole. Each is compared with the manifest
whenever it is used: a cache that was changed is no source.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError, GateError, MachineError, OpsError
from gemma_ops.family.formats import FORMATS, GGUF, PROJECTOR_SHELF, WEIGHT_ENDINGS
from gemma_ops.registry import profile, stored
from gemma_ops.registry.card_usage import loading
from gemma_ops.registry.contents import content_problem
from gemma_ops.registry.moving import alias_words, promoted_version
from gemma_ops.registry.points import INTEGRITY
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.served import check_served
from gemma_ops.registry.signing import SIGNATURE
from gemma_ops.registry.verification import check_verdict
from gemma_ops.runs import digest
from gemma_ops.verdicts import VERDICT, Verdict
from gemma_ops.verdicts.drafter_record import DRAFTER_SHELF

_SPEC = re.compile(r"(?P<name>[^@/\s]+)(?:@(?P<alias>[^@/\s]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Pulled:
    """A version in a folder."""

    name: str
    version: str
    alias: str
    """Alias that was asked for; empty where a number was."""
    folder: Path
    manifest: dict[str, Any]


def is_version(source: str) -> bool:
    """True if a source reads like `NAME@ALIAS` or `NAME/VERSION`."""
    return _SPEC.fullmatch(source) is not None


def only_format(form: str) -> Callable[[str], bool]:
    """Return which of a version's files are copied: those without weights, and the weights of one format, with the
    towers and the drafter that go with it. Raises ConfigError for one that no version carries."""
    if form not in FORMATS:
        raise ConfigError(f"{form!r} is no format", f"one of: {', '.join(FORMATS)}")
    shelves = (f"{FORMATS[form].shelf}/", f"{DRAFTER_SHELF}/", *([f"{PROJECTOR_SHELF}/"] if form in GGUF else []))
    return lambda path: path.startswith(shelves) or is_small(path)


def is_small(path: str) -> bool:
    """True if a file of a version holds no weights."""
    return not path.endswith(WEIGHT_ENDINGS)


def pull_version(
    machine: MachineConfig, source: str, folder: Path | None = None, *, wanted: Callable[[str], bool] | None = None
) -> Pulled:
    """Copy the files of a version (those that `wanted` says, all unless given) into `folder`, or into the cache.

    Raises OpsError for a source that names no version, GateError for bytes that aren't what was registered, that no
    trusted key signed where there is one, or that the verdict isn't about, and for an alias that was moved past the
    ledger, ConfigError for a key that can't be read,
    ServiceError when MLflow can't be reached, MachineError where the folder can't be written.
    """
    asked = _SPEC.fullmatch(source)
    if asked is None:
        raise OpsError(f"{source!r} names no version", "write NAME@ALIAS or NAME/VERSION")
    tracking = profile.connect_mlflow(machine)
    with profile.mlflow_calls(tracking.place):
        number = asked["version"] or promoted_version(tracking, asked["name"], asked["alias"])
        if number is None:
            raise OpsError(f"{asked['name']} has no alias {asked['alias']!r}", alias_words(tracking, asked["name"]))
        logged, body = stored.version_manifest(tracking, stored.version(tracking, asked["name"], number))
        who = f"version {number} of {asked['name']}"
        check_verdict(body, who)
        stored.signed_by(tracking, logged, body, who, machine.trusted_keys)
        home = folder or cache() / "versions" / body["digest"]
        files = {name: file for name, file in body["subject"]["files"].items() if wanted is None or wanted(name)}
        try:
            for name, file in files.items():
                _bring(tracking, logged, who, name, file["sha256"], home / name, copy=folder is not None)
            if VERDICT in files:
                check_served(Verdict.read(home / VERDICT), body["subject"], who)
            if folder is not None:
                _bring_own(tracking, logged, who, home)
                (home / "README.md").write_text(_readme(asked["name"], number, body), encoding="utf-8")
        except OSError as error:
            raise MachineError(
                f"{home} can't be written: {error.strerror or error}", "free some room, or give another folder"
            ) from error
    return Pulled(asked["name"], str(number), asked["alias"] or "", home, body)


def _bring_own(tracking: Tracking, logged: Any, who: str, home: Path) -> None:
    """Copy the files that the manifest doesn't list into a pulled copy: the manifest, the card, the bill of materials,
    each compared with its digest, and the signature."""
    for name in stored.own_files(logged):
        with stored.opened_version(tracking, logged, name) as source:
            if digest.of_file(source) != logged.tags[stored.OWN[name]]:
                raise _changed(who, f"{name} was changed")
            shutil.copyfile(source, home / name)
    if SIGNATURE in stored.listing(tracking, logged):
        with stored.opened_version(tracking, logged, SIGNATURE) as source:
            shutil.copyfile(source, home / SIGNATURE)


def cache() -> Path:
    """Return where verified files are kept."""
    return Path(os.environ.get("GEMMA_OPS_CACHE") or Path.home() / ".cache" / "gemma-ops")


def _bring(tracking: Tracking, logged: Any, who: str, path: str, sha256: str, target: Path, *, copy: bool) -> None:
    """Put one file at `target`: a link to the cache, or a copy of it."""
    kept = cache() / "blobs" / sha256
    if not (kept.is_file() and digest.of_file(kept) == sha256):
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        try:
            with stored.opened_version(tracking, logged, path) as source:
                shutil.copyfile(source, part)
        except FileNotFoundError:
            raise _changed(who, f"{path} is missing") from None
        if digest.of_file(part) != sha256:
            part.unlink()
            raise _changed(who, f"{path} was changed")
        if problem := content_problem(part, path):
            part.unlink()
            raise _changed(who, f"{path}: {problem}")
        part.replace(kept)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    if copy:
        shutil.copyfile(kept, target)
    else:
        target.symlink_to(kept)


def _changed(who: str, why: str) -> GateError:
    return GateError(
        f"{INTEGRITY}: {who} is not what was registered: {why}",
        "roll back to a version that is whole, or register this one again from its run",
    )


def _readme(name: str, number: str, body: dict[str, Any]) -> str:
    files = body["subject"]["files"]
    forms = sorted({path.split("/")[1] for path in files if path.startswith("quantized/")})
    return f"# {name}, version {number}\n\n{loading(body['subject'], forms)}\n"
