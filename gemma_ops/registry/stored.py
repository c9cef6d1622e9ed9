"""Our versions in MLflow: finding them, reading their manifest, comparing their bytes with it."""

from __future__ import annotations

import difflib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from gemma_ops.errors import GateError, OpsError
from gemma_ops.registry import manifest
from gemma_ops.registry.contents import content_problem
from gemma_ops.registry.flavor import MLMODEL
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.signing import SIGNATURE, check_signature
from gemma_ops.runs import digest

TAG = "gemma_ops.manifest"
SBOM = "sbom.cdx.json"
OWN = {
    "manifest.json": "gemma_ops.manifest_sha256", "card.md": "gemma_ops.card_sha256", SBOM: "gemma_ops.sbom_sha256",
    MLMODEL: "gemma_ops.mlmodel_sha256",
}  # fmt: skip
"""Files that `register` writes, which can't stand in the manifest, with the tags that hold their SHA-256."""
BESIDE = frozenset({*OWN, SIGNATURE})
"""Files of a version that its manifest doesn't list."""
ORIGIN, LOGGED = "gemma_ops.origin", "gemma_ops.logged_model"
"""Tags of a version that was copied from another registered model: the original version, and the LoggedModel behind
it."""


def logged_models(tracking: Tracking, manifest_digest: str) -> list[Any]:
    """Return LoggedModels of the experiment that carry this manifest, oldest first."""
    found = tracking.client.search_logged_models(
        [tracking.experiment_id], filter_string=f"tags.`{TAG}` = '{manifest_digest}'"
    )
    return sorted(found, key=lambda logged: (logged.creation_timestamp, logged.model_id))


def registered_versions(tracking: Tracking, name: str, manifest_digest: str | None = None) -> list[Any]:
    """Return versions of a model, newest first; only those that carry the manifest when one is given."""
    found, token = [], None
    while True:
        page = tracking.client.search_model_versions(f"name = '{name}'", max_results=200, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            break
    kept = [version for version in found if manifest_digest is None or version.tags.get(TAG) == manifest_digest]
    return sorted(kept, key=lambda version: -int(version.version))


def find_model(tracking: Tracking, name: str) -> Any | None:
    """Return a registered model with its aliases and tags; None where there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return tracking.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def find_or_create(tracking: Tracking, name: str, description: str) -> Any:
    """Return a registered model, made where there is none."""
    return find_model(tracking, name) or tracking.client.create_registered_model(name, description=description)


def registered_model(tracking: Tracking, name: str) -> Any:
    """Return a registered model with its aliases and tags. Raises OpsError naming the models there are."""
    if found := find_model(tracking, name):
        return found
    names = [found.name for found in tracking.client.search_registered_models(max_results=500)]
    raise OpsError(
        f"no registered model {name!r} at {tracking.place.uri}", _instead(name, names, "gemma-ops run … registers one")
    )


def version(tracking: Tracking, name: str, number: str | int | None) -> Any:
    """Return one version, the latest when `number` is None. Raises OpsError naming the versions there are."""
    found = registered_versions(tracking, name)
    if not found:
        raise OpsError(f"{name} has no version", "register one first: gemma-ops run …")
    if number is None:
        return found[0]
    for candidate in found:
        if str(candidate.version) == str(number):  # a number from a database, a text from a server
            return candidate
    raise OpsError(
        f"{name} has no version {number}", f"versions: {', '.join(str(other.version) for other in found[:20])}"
    )


def _instead(given: str, names: list[str], otherwise: str) -> str:
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    listing = f"there are: {', '.join(sorted(names)[:20])}" if names else otherwise
    return f"did you mean {close[0]}? {listing}" if close else listing


def is_copied_version(found: Any) -> bool:
    """True if a version was copied from another registered model."""
    return re.match(r"models:/(?!m-)[^/]+/\d+$", str(found.source or "")) is not None


def model_of(tracking: Tracking, found: Any) -> str | None:
    """Return the id of the LoggedModel behind a version, that of its origin for a copy; None where there is none."""
    source = str(found.source or "")
    if source.startswith("models:/m-"):
        return source.removeprefix("models:/")
    if not is_copied_version(found):
        return None
    if known := found.tags.get(LOGGED):
        return str(known)
    name, _, number = source.removeprefix("models:/").rpartition("/")
    return model_of(tracking, tracking.client.get_model_version(name, number))


def logged_model(tracking: Tracking, found: Any) -> Any:
    """Return the LoggedModel behind a version. Raises GateError for a version gemma-ops has not registered or not
    finished."""
    from mlflow.exceptions import MlflowException

    model_id = model_of(tracking, found)
    if model_id is None:
        raise GateError(
            f"{found.name} version {found.version} was not registered by gemma-ops", "register it with gemma-ops run …"
        )
    try:
        logged = tracking.client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise GateError(
            f"the model behind {found.name} version {found.version} was deleted", "register it again"
        ) from error
    if str(logged.status) != "READY":
        raise GateError(
            f"{found.name} version {found.version} is not whole: {logged.status}", "run the step register again"
        )
    return logged


def read_manifest(tracking: Tracking, logged: Any) -> dict[str, Any]:
    """Read the manifest stored with a LoggedModel. Raises GateError when it is missing, changed, or another than its
    tag says."""
    try:
        with opened_version(tracking, logged, "manifest.json") as file:
            body: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = manifest.check_manifest(body)
    except (FileNotFoundError, ValueError, OpsError) as error:
        raise GateError(
            f"the stored manifest of {logged.name} can't be trusted: {error}", "register the version again"
        ) from error
    if logged.tags.get(TAG) != found:
        raise GateError(
            f"the stored manifest of {logged.name} is another than the one registered", "register the version again"
        )
    return body


def version_manifest(tracking: Tracking, found: Any) -> tuple[Any, dict[str, Any]]:
    """Return the LoggedModel behind a version, and its manifest. Raises GateError as `logged_model` and `read_manifest`
    do, and for a version that was registered with another manifest."""
    logged = logged_model(tracking, found)
    body = read_manifest(tracking, logged)
    if found.tags.get(TAG) != body["digest"]:
        raise GateError(
            f"{found.name} version {found.version} carries another manifest than its model", "register it again"
        )
    return logged, body


def compare_sizes(tracking: Tracking, logged: Any, expected: dict[str, int]) -> list[str]:
    """Return differences between the files MLflow lists and {path: bytes}, in words; no byte is read."""
    have = listing(tracking, logged)
    problems = [f"{name} is missing" for name in expected if name not in have]
    problems += [
        f"{name} has {have[name]} bytes instead of {size}"
        for name, size in expected.items()
        if name in have and have[name] != size
    ]
    return problems + [f"{name} should not be there" for name in sorted(set(have) - set(expected) - BESIDE)]


def compare_tags(found: Any, logged: Any) -> list[str]:
    """Return the files next to the manifest's whose digests differ between a version and its LoggedModel, in words."""
    return [
        f"{name} is another than the version was registered with"
        for name, tag in OWN.items()
        if found.tags.get(tag) != logged.tags.get(tag)
    ]


def compare_bytes(tracking: Tracking, logged: Any, body: dict[str, Any], *, largest: int | None = None) -> list[str]:
    """Return differences between every stored byte and what was registered, in words: the manifest for what it lists,
    the tags for the manifest itself and the card. A file that is another kind than its name says is reported too.

    Reads (or downloads) all files, or those of at most `largest` bytes, one at a time.
    """
    expected = body["subject"]["files"]
    problems = compare_sizes(tracking, logged, {name: file["bytes"] for name, file in expected.items()})
    if problems:
        return problems
    wanted = {name: file["sha256"] for name, file in expected.items() if largest is None or file["bytes"] <= largest}
    wanted |= {name: logged.tags[tag] for name, tag in OWN.items() if tag in logged.tags}
    for name, sha256 in wanted.items():
        try:
            with opened_version(tracking, logged, name) as path:
                if digest.of_file(path) != sha256:
                    problems.append(f"{name} was changed")
                elif problem := content_problem(path, name):
                    problems.append(f"{name}: {problem}")
        except FileNotFoundError:
            problems.append(f"{name} is missing")
    return problems


def signed_by(tracking: Tracking, logged: Any, body: dict[str, Any], who: str, keys: Sequence[str]) -> str:
    """Say which of the trusted `keys` signed everything that is stored for a version; empty where none is trusted.

    Reads the small files that the manifest doesn't list; those it lists are signed by their digests in it. Raises
    GateError as `check_signature` does.
    """
    if not keys:
        return ""
    files = signed_files(tracking, logged, body)
    if SIGNATURE not in listing(tracking, logged):
        return check_signature(files, who, None, keys)
    with opened_version(tracking, logged, SIGNATURE) as path:
        return check_signature(files, who, path, keys)


def signed_files(tracking: Tracking, logged: Any, body: dict[str, Any]) -> dict[str, str]:
    """Return {path: SHA-256} of what a signature covers: the manifest's files, and those next to it as they are
    stored."""
    files = {name: str(file["sha256"]) for name, file in body["subject"]["files"].items()}
    for name in own_files(logged):
        with opened_version(tracking, logged, name) as path:
            files[name] = digest.of_file(path)
    return files


def own_files(logged: Any) -> list[str]:
    """Return those of the files in `OWN` that a version has; one that was made by earlier code may lack some."""
    return [name for name, tag in OWN.items() if tag in logged.tags]


def listing(tracking: Tracking, logged: Any, folder: str | None = None) -> dict[str, int]:
    """Return {path: bytes} of everything stored with a LoggedModel."""
    root = local_store(logged)
    if root is not None:
        return {file.relative_to(root).as_posix(): file.stat().st_size for file in root.rglob("*") if file.is_file()}
    found: dict[str, int] = {}
    for item in tracking.client.list_logged_model_artifacts(logged.model_id, folder):
        found |= listing(tracking, logged, item.path) if item.is_dir else {item.path: int(item.file_size or 0)}
    return found


@contextmanager
def opened_version(tracking: Tracking, logged: Any, name: str) -> Iterator[Path]:
    """Open a stored file as a path: in place where it lies on this machine, else downloaded for the length of the
    block."""
    root = local_store(logged)
    if root is not None:
        yield root / name
        return
    from mlflow.artifacts import download_artifacts

    with tempfile.TemporaryDirectory(prefix="gemma-ops-") as folder:
        uri = f"{str(logged.artifact_location).rstrip('/')}/{name}"
        yield Path(download_artifacts(artifact_uri=uri, dst_path=folder, tracking_uri=tracking.place.uri))


def local_store(logged: Any) -> Path | None:
    """Return where a LoggedModel's files lie on this machine; None when another place keeps them."""
    parts = urlsplit(str(logged.artifact_location))
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
