"""What answered and where it came from: read from the manifests of the steps that made the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.config import EvaluateConfig
from gemma_ops.evaluation.targets import QUANTIZED, identity


def collect(
    settings: EvaluateConfig, *, base: Path | None, tuned: Path | None, quantized: Path | None, data: Path | None
) -> dict[str, Any]:
    """`targets`: identity, step and model of each. `data`: digest and report of the training data, when there was some."""
    targets: dict[str, Any] = {}
    model = _json(base / "model.json") if base else {}
    for name in settings.targets:
        path = quantized if name in QUANTIZED else {"base": base, "tuned": tuned}.get(name)
        if path is None:
            continue
        body: dict[str, Any] = {"identity": identity(path), "step": _json(path / "artifact.json").get("step")}
        if name == "base":
            body |= {key: model.get(key) for key in ("id", "revision", "size") if model.get(key)}
        if name in QUANTIZED:
            file = path / name / "model.gguf"
            body["bytes"] = file.stat().st_size if file.is_file() else None
        targets[name] = body
    found: dict[str, Any] = {}
    if data is not None:
        manifest = _json(data / "artifact.json")
        found = {"digest": manifest.get("digest"), "rows": manifest.get("metrics", {})}
    return {"targets": targets, "data": found}


def _json(path: Path) -> dict[str, Any]:
    """A manifest's content; empty where a folder was given by hand and has none."""
    if not path.is_file():
        return {}
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body
