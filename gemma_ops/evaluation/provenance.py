"""Provenance of answers: who answered, where the model is from and where questions went, read from the targets and from
the manifests of the steps that made the models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig, Privacy, ReleaseConfig
from gemma_ops.errors import ModelError
from gemma_ops.evaluation import answer_cost
from gemma_ops.family import Shape
from gemma_ops.family.formats import QUANTIZED
from gemma_ops.gemini import notice
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.planning.kv_cache import kv_layers
from gemma_ops.privacy.classes import answers_class, release_of
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.target import Target, learned_by
from gemma_ops.verdicts import FileFidelity


def collect_provenance(
    targets: Sequence[Target],
    machine: MachineConfig,
    models: RunModels,
    *,
    data: Path | None,
) -> dict[str, Any]:
    """Return `model`: the one that was tuned, as far as it is known. `targets`: identity, lineage and place of each,
    and the step and model of those this run made. `machine`: what an hour of it costs. `gemini`: under which terms it
    was asked, if it was. `data`: digest and report of the training data, when there was some."""
    found: dict[str, Any] = {}
    base = models.base
    model = _json(base / "model.json") if base else {}
    for target in targets:
        body: dict[str, Any] = {
            "identity": target.identity,
            "family": target.family,
            "place": target.place,
            "sees": sorted(target.sees),
            "learned": learned_by(target),
        }
        path = models.quantized if target.name in QUANTIZED else {"base": base, "tuned": models.tuned}.get(target.name)
        made = _json(path / "artifact.json") if path is not None else {}
        if path is not None:
            body |= {"step": made.get("step"), "artifact": made.get("digest")}
            body["engine"] = QUANTIZED[target.name].answers_in if target.name in QUANTIZED else "transformers"
        if target.name == "base":
            body |= {key: model.get(key) for key in ("id", "revision", "size") if model.get(key)}
        if path is not None and target.name in QUANTIZED:
            file = path / QUANTIZED[target.name].path
            body["bytes"] = file.stat().st_size if file.is_file() else None
            formats = _json(path / "report.json").get("formats") or {}
            body["fidelity"] = FileFidelity.of_report(formats.get(target.name) or {})
            body["sha256"] = (made.get("files") or {}).get(QUANTIZED[target.name].path, {}).get("sha256")
        found[target.name] = body
    trained: dict[str, Any] = {}
    if data is not None:
        manifest = _json(data / "artifact.json")
        trained = {"digest": manifest.get("digest"), "rows": manifest.get("metrics", {})}
    terms = {"gemini": notice.record_notice(machine.gemini)} if any(map(_is_gemini, targets)) else {}
    release = released_targets(release_of(machine), (learned_by(target) for target in targets))
    known = {key: model[key] for key in ("id", "revision", "size") if model.get(key)}
    kv = {"kv": _kv(base)} if base else {}
    return {
        "model": known,
        "targets": found,
        "machine": answer_cost.hour(machine),
        **terms,
        "data": trained,
        **release,
        **kv,
    }


def released_targets(release: ReleaseConfig, learned: Iterable[Privacy]) -> dict[str, Any]:
    """Return the release with its reason, as it is recorded where it lets answers go further; empty where it changes
    nothing."""
    if all(answers_class(kind, release) == kind for kind in learned):
        return {}
    return {"release": release.model_dump(mode="json")}


def _kv(base: Path) -> list[dict[str, Any]]:
    """Return the KV cache per token, by window; empty where the folder holds no configuration of a Gemma 4."""
    config = _json(checkpoint(base) / "config.json")
    if not config:
        return []
    try:
        shape = Shape.from_config(config)
    except ModelError:
        return []
    return [asdict(layers) for layers in kv_layers(shape)]


def _is_gemini(target: Target) -> bool:
    return target.name.startswith("gemini:")


def _json(path: Path) -> dict[str, Any]:
    """Return a manifest's content; empty where a folder was given by hand and has none."""
    if not path.is_file():
        return {}
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body
