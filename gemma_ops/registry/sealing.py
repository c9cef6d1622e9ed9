"""What a version carries beside the files of its manifest: manifest, card, bill of materials, and the signature of all.

A version that was made by earlier code, or where no signing key was, gets what it lacks when it is registered again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gemma_ops import digest, journal
from gemma_ops.durable import write_json
from gemma_ops.registry import stored
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.sbom import make_sbom
from gemma_ops.registry.signing import SIGNATURE, sign_files


def write_own(folder: Path, body: dict[str, Any], card: str) -> None:
    """Write manifest, card and bill of materials into a folder."""
    write_json(folder / "manifest.json", body)
    (folder / "card.md").write_text(card, encoding="utf-8")
    write_json(folder / stored.SBOM, make_sbom(body), indent=1)


def tag_own(tracking: Tracking, model_id: str, folder: Path) -> None:
    """Note the digests of the files that `write_own` wrote, where promotion looks for them."""
    own = {tag: digest.of_file(folder / name) for name, tag in stored.OWN.items()}
    tracking.client.set_logged_model_tags(model_id, own)


def complete_own(tracking: Tracking, logged: Any, stage: Path) -> Any:
    """Give a LoggedModel the bill of materials that it lacks; returns it as it is then."""
    if stored.OWN[stored.SBOM] in logged.tags:
        return logged
    body = stored.read_manifest(tracking, logged)
    stage.mkdir(parents=True, exist_ok=True)
    file = stage / stored.SBOM
    write_json(file, make_sbom(body), indent=1)
    tracking.client.log_model_artifacts(logged.model_id, str(stage))
    tracking.client.set_logged_model_tags(logged.model_id, {stored.OWN[stored.SBOM]: digest.of_file(file)})
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
