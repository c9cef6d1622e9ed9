"""Files that a version carries next to those of its manifest: manifest, card, bill of materials, the file by which
MLflow loads it, and the signature of all.

A version that was made by earlier code, or where no signing key was, gets what it lacks when it is registered again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gemma_ops.registry import stored
from gemma_ops.registry.flavor import MLMODEL, write_mlmodel
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.sbom import make_sbom
from gemma_ops.registry.signing import SIGNATURE, sign_files
from gemma_ops.runs import digest, journal
from gemma_ops.runs.durable import write_json

_DERIVED = (stored.SBOM, MLMODEL)


def write_own(folder: Path, body: dict[str, Any], card: str) -> None:
    """Write manifest, card, bill of materials and MLflow's description into a folder."""
    write_json(folder / "manifest.json", body)
    (folder / "card.md").write_text(card, encoding="utf-8")
    _write_derived(folder, body, _DERIVED)


def _write_derived(folder: Path, body: dict[str, Any], names: Iterable[str]) -> None:
    """Write what follows from the manifest alone."""
    folder.mkdir(parents=True, exist_ok=True)
    if stored.SBOM in names:
        write_json(folder / stored.SBOM, make_sbom(body), indent=1)
    if MLMODEL in names:
        write_mlmodel(folder / MLMODEL, str(body["subject"]["name"]))


def tag_own(tracking: Tracking, model_id: str, folder: Path) -> None:
    """Note the digests of the files that `write_own` wrote, where promotion looks for them."""
    own = {tag: digest.of_file(folder / name) for name, tag in stored.OWN.items()}
    tracking.client.set_logged_model_tags(model_id, own)


def complete_own(tracking: Tracking, logged: Any, stage: Path) -> Any:
    """Give a LoggedModel the files that it lacks because earlier code made it, and return it as it is then. One that is
    signed stays what was signed."""
    lacking = [name for name in _DERIVED if stored.OWN[name] not in logged.tags]
    if not lacking or SIGNATURE in stored.listing(tracking, logged):
        return logged
    _write_derived(stage, stored.read_manifest(tracking, logged), lacking)
    tracking.client.log_model_artifacts(logged.model_id, str(stage))
    tags = {stored.OWN[name]: digest.of_file(stage / name) for name in lacking}
    tracking.client.set_logged_model_tags(logged.model_id, tags)
    shutil.rmtree(stage)
    return tracking.client.get_logged_model(logged.model_id)


def sign_version(tracking: Tracking, logged: Any, body: dict[str, Any], key: str | None, stage: Path) -> None:
    """Sign everything that is stored for a version, once; nothing where there is no key. Raises ConfigError for a key
    that can't be used, MachineError where the package is not installed."""
    if key is None or SIGNATURE in stored.listing(tracking, logged):
        return
    stage.mkdir(parents=True, exist_ok=True)
    sign_files(stored.signed_files(tracking, logged, body), str(body["subject"]["name"]), key, stage / SIGNATURE)
    tracking.client.log_model_artifacts(logged.model_id, str(stage))
    shutil.rmtree(stage)
    journal.record(event="signed", key=Path(key).name)


def tag_version(tracking: Tracking, name: str, found: Any, logged: Any) -> None:
    """Repeat the digests of a LoggedModel's own files on a version that was made before it had them all."""
    for tag in stored.OWN.values():
        if tag in logged.tags and tag not in found.tags:
            tracking.client.set_model_version_tag(name, str(found.version), tag, logged.tags[tag])
