"""The bill of materials of a version: `sbom.cdx.json`, CycloneDX 1.6.

The model is the component that it speaks of: its files by SHA-256, the base it was made from, the rows it learned from
and the questions it was asked, each a component of its own. Then every Python package of the environment that
registered it. It is written without the CycloneDX library, so that every version has one; the library's own validator
reads it in the tests. Specification: ECMA-424, https://cyclonedx.org/docs/1.6/json/.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import distributions
from typing import Any

from gemma_ops import __version__

_MODEL, _BASE = "model", "base-model"
"""Names of model and base as references within the document."""


def make_sbom(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bill of materials of a manifest, in the environment that runs this."""
    subject = body["subject"]
    inputs = [*_base(subject), *_data(subject), *_tasks(subject)]
    packages = _packages()
    uses = [each["bom-ref"] for each in (*inputs, *packages)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "tools": {"components": [{"type": "application", "name": "gemma-ops", "version": __version__}]},
            "component": _model(body),
        },
        "components": [*inputs, *packages],
        "dependencies": [{"ref": _MODEL, "dependsOn": uses}, *({"ref": ref} for ref in uses)],
    }


def _model(body: Mapping[str, Any]) -> dict[str, Any]:
    files = body["subject"]["files"]
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": body["subject"]["name"],
        "version": body["digest"][:12],
        "components": [
            {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _sha256(file["sha256"])}
            for name, file in sorted(files.items())
        ],
        "properties": [{"name": "gemma-ops:manifest", "value": body["digest"]}],
    }


def _base(subject: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    base = subject["base"]
    found = {
        "type": "machine-learning-model",
        "bom-ref": _BASE,
        "name": str(base["id"]),
        "components": [
            {"type": "file", "bom-ref": f"base-file:{name}", "name": name, "hashes": _sha256(sha256)}
            for name, sha256 in sorted((base.get("files") or {}).items())
        ],
    }
    yield found | ({"version": str(base["revision"])} if base.get("revision") else {})


def _data(subject: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, file in sorted(((subject.get("data") or {}).get("files") or {}).items()):
        yield _dataset(f"data:{name}", name, file["sha256"], f"{file['rows']:,} rows for training or validation")


def _tasks(subject: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, task in sorted(((subject.get("evaluation") or {}).get("tasks") or {}).items()):
        yield _dataset(f"task:{name}", name, task["digest"], f"{task['rows']:,} questions of its evaluation")


def _dataset(ref: str, name: str, sha256: str, words: str) -> dict[str, Any]:
    return {
        "type": "data", "bom-ref": ref, "name": name, "description": words, "hashes": _sha256(sha256),
        "data": [{"type": "dataset", "name": name}],
    }  # fmt: skip


@functools.cache
def _packages() -> tuple[dict[str, Any], ...]:
    """Return what is installed, each package once, by name. Read once a process: some two hundred files of metadata."""
    known: dict[str, dict[str, Any]] = {}
    for found in distributions():
        told = found.metadata  # each look reads and parses the file anew
        name, version = told["Name"], told["Version"]
        normal = str(name or "").lower().replace("_", "-")
        if not normal or normal in known:
            continue
        ref = f"pkg:pypi/{normal}@{version}"
        known[normal] = {"type": "library", "bom-ref": ref, "name": name, "version": version, "purl": ref}
    return tuple(sorted(known.values(), key=lambda one: (one["name"].lower(), one["version"])))


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]
