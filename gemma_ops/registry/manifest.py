"""The manifest of a version: everything that made it, by digest.

`subject` is a pure function of the artifacts, so its digest names the version: registering the same artifacts again
finds it. `made` says which code and packages wrote it down; it is evidence and not identity, because a commit in
between must not turn the same bytes into another version.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gemma_ops import __version__
from gemma_ops.config import RegisterConfig, ReleaseConfig
from gemma_ops.data.prompt_record import read_prompting
from gemma_ops.errors import DataError, ModelError, OpsError
from gemma_ops.family.formats import QUANTIZED
from gemma_ops.privacy.classes import answers_class, learned_class, strictest
from gemma_ops.registry import evaluation_evidence, run_reader
from gemma_ops.registry.describe import git
from gemma_ops.registry.lineage import check_chain, check_made, finished
from gemma_ops.registry.staging import TUNED
from gemma_ops.runs import digest
from gemma_ops.verdicts import VERDICT
from gemma_ops.verdicts.drafter_record import DRAFTER, DrafterRecord

SCHEMA = "gemma-ops/manifest@1"
_PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "tokenizers", "gguf", "mlflow", "xllamacpp")
# What promotion asks for, and how a person would say it.
REQUIRED = {
    "base.id": "the base model",
    "base.files": "the digests of the base's files",
    "template": "the chat template",
    "data.digest": "the training data",
    "data.rows": "the number of training rows",
    "data.privacy": "the privacy classes of the training rows",
    "config": "the configuration",
    "seed": "the seed",
    "files": "the digests of the version's files",
    "evaluation.verdict_sha256": "the verdict",
    "evaluation.tasks": "the digests of the evaluation tasks",
}


def build_manifest(
    settings: RegisterConfig,
    files: dict[str, Path],
    *,
    model: Path,
    data: Path | None = None,
    adapter: Path | None = None,
    merged: Path | None = None,
    quantized: Path | None = None,
    drafter: Path | None = None,
    evaluation: Path | None = None,
    release: ReleaseConfig | None = None,
    ledger: str | None = None,
) -> dict[str, Any]:
    """Return the manifest of a version that carries `files` ({path in the version: file}); `release` is what a person
    decided about its answers, `ledger` anchors the model's ledger as it was.

    Raises DataError when an artifact was made from another one than those given here: then the evaluation would speak
    of another model. Also when a file is not what its step left: then the evaluation would speak of other bytes.
    """
    inputs = {
        "model": model,
        "data": data,
        "adapter": adapter,
        "merged": merged,
        "quantized": quantized,
        "drafter": drafter,
        "evaluation": evaluation,
    }
    artifacts = {key: finished(path) for key, path in inputs.items() if path is not None}
    check_chain(artifacts)
    listed = {
        name: {"sha256": digest.of_file(file), "bytes": file.stat().st_size} for name, file in sorted(files.items())
    }
    check_made(files, listed, {path: artifacts[key] for key, path in inputs.items() if path is not None})
    made_with = {str(body["step"]): body["settings"] for body in artifacts.values()}
    subject = {
        "name": settings.name,
        "base": _base(model),
        "template": _base(model)["files"].get("chat_template.jinja"),
        "data": _data(data, artifacts["data"]) if data else None,
        "adapter": _adapter(adapter, artifacts["adapter"]) if adapter and not _is_full(adapter) else None,
        **({"tuned": _tuned(adapter, artifacts["adapter"])} if adapter and _is_full(adapter) else {}),
        "merged": {"digest": artifacts["merged"]["digest"]} if merged else None,
        "quantized": _quantized(quantized, artifacts["quantized"]) if quantized else None,
        **({"drafter": _drafter(drafter, artifacts["drafter"])} if drafter else {}),
        "settings": made_with,
        "config": digest.of_json(made_with),
        "seed": (made_with.get("train") or made_with.get("evaluate") or {}).get("seed"),
        "privacy": _privacy(
            [path for path in (model, adapter, merged, quantized, drafter) if path], release or ReleaseConfig()
        ),
        "evaluation": _evaluation(evaluation, artifacts["evaluation"], files) if evaluation else None,
        "prompting": _prompting([path for path in (adapter, merged, quantized) if path]),
        "files": listed,
    }
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = git()
    return {
        "schema": SCHEMA,
        "digest": digest.of_json(subject),
        "subject": subject,
        "made": {
            "gemma_ops": __version__,
            "commit": commit.get("mlflow.source.git.commit"),
            "dirty": {"true": True, "false": False}.get(commit.get("gemma_ops.git_dirty", "")),
            "python": platform.python_version(),
            "packages": packages,
            "ledger": ledger,
        },
    }


def check_manifest(body: dict[str, Any]) -> str:
    """Return the digest of a manifest, after recomputing it. Raises OpsError when the manifest is not what it says."""
    if body.get("schema") != SCHEMA or digest.of_json(body.get("subject", {})) != body.get("digest"):
        raise OpsError("the manifest was changed: its digest differs", "register the version again")
    return str(body["digest"])


def missing_lineage(body: dict[str, Any]) -> list[str]:
    """Return what the lineage lacks, in words; empty when it is complete."""
    lacking = []
    for path, words in REQUIRED.items():
        value: Any = body["subject"]
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value in (None, "", {}, []):
            lacking.append(words)
    if not any(body["subject"].get(kind) for kind in ("adapter", "tuned", "merged", "quantized")):
        lacking.append("any weights")
    return lacking


def _prompting(models: list[Path]) -> dict[str, Any] | None:
    """Return the mode of thinking and the chat template the model was trained with; None where nothing is recorded."""
    for path in models:
        folders = [path, *(folder for folder in sorted(path.iterdir()) if folder.is_dir())]
        for folder in folders:
            if found := read_prompting(folder):
                return asdict(found)
    return None


def _base(model: Path) -> dict[str, Any]:
    body = run_reader.read_step_json(model / "model.json")
    if body is None:
        raise ModelError(
            f"{model} holds no model.json", "run the step that fetches the model again: --redo " + model.name
        )
    return {key: body.get(key) for key in ("id", "revision", "size", "files")}


def _data(data: Path, artifact: dict[str, Any]) -> dict[str, Any]:
    files, privacy, sources = {}, dict[str, int](), dict[str, int]()
    for name in ("train.jsonl", "valid.jsonl"):
        if name not in artifact["files"]:
            continue
        rows = 0
        for row, _ in run_reader.records(data / name):
            rows += 1
            label, source = str(row.get("privacy", "unknown")), str(row.get("source", "unknown")).rpartition(":")[0]
            privacy[label] = privacy.get(label, 0) + 1
            sources[source or "unknown"] = sources.get(source or "unknown", 0) + 1
        files[name] = {"sha256": artifact["files"][name]["sha256"], "rows": rows}
    report = run_reader.read_step_json(data / "report.json") or {}
    top = dict(sorted(sources.items(), key=lambda item: (-item[1], item[0]))[:20])
    return {
        "digest": artifact["digest"],
        "files": files,
        "rows": sum(file["rows"] for file in files.values()),
        "privacy": privacy,
        "sources": top,
        "teachers": report.get("teachers") or [],
        **({"overlap": _overlap(report["overlap"])} if report.get("overlap") else {}),
    }


def _overlap(told: dict[str, Any]) -> dict[str, Any]:
    """Return what became of training rows that stand in a task, and how many there were, by task."""
    compared = {task["name"]: task["rows"] for task in told["tasks"] if task.get("not_compared") is None}
    return {"mode": told["mode"], "tasks": compared}


def _privacy(models: list[Path], release: ReleaseConfig) -> dict[str, Any]:
    """Return the class of the rows that the version learned from, that of its answers, and the release that tells them
    apart."""
    learned = strictest(map(learned_class, models))
    answers = answers_class(learned, release)
    body = {"learned": learned, "answers": answers}
    return body | ({"release": release.model_dump(mode="json")} if answers != learned else {})


def _adapter(adapter: Path, artifact: dict[str, Any]) -> dict[str, Any]:
    config = json.loads((adapter / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    weights = artifact["files"]["adapter/adapter_model.safetensors"]
    return {
        "digest": artifact["digest"],
        "sha256": weights["sha256"],
        "bytes": weights["bytes"],
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "metrics": artifact["metrics"],
    }


def _is_full(trained: Path) -> bool:
    """True if the artifact of `train` holds changed tensors (`train.tune: full`) instead of an adapter."""
    return (trained / TUNED).is_dir()


def _tuned(trained: Path, artifact: dict[str, Any]) -> dict[str, Any]:
    record = json.loads((trained / TUNED / "tuned.json").read_text(encoding="utf-8"))
    weights = {name: file for name, file in artifact["files"].items() if name.endswith(".safetensors")}
    return {
        "digest": artifact["digest"],
        "sha256": digest.of_json({name: file["sha256"] for name, file in sorted(weights.items())}),
        "bytes": sum(file["bytes"] for file in weights.values()),
        "tensors": record["tensors"],
        "parameters": record["parameters"],
        "metrics": artifact["metrics"],
    }


def _quantized(quantized: Path, artifact: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, file in artifact["files"].items():
        form = name.partition("/")[0]
        if form in QUANTIZED and name == QUANTIZED[form].path:
            found[form] = {"sha256": file["sha256"], "bytes": file["bytes"]}
    return {"digest": artifact["digest"], "formats": found}


def _drafter(drafter: Path, artifact: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a drafter: what it does for each file, and whether it is recommended."""
    record = DrafterRecord.read(drafter / DRAFTER)
    return {"digest": artifact["digest"], **record.to_json()}


def _evaluation(evaluation: Path, artifact: dict[str, Any], files: dict[str, Path]) -> dict[str, Any]:
    found = evaluation_evidence.read_evidence(evaluation)
    if found is None:
        raise DataError(f"{evaluation} holds no {VERDICT}", "evaluate again: --redo evaluate")
    return {
        "digest": artifact["digest"],
        "verdict": found.outcome,
        # Of the one that the version carries: on another machine, the one that was made for others.
        "verdict_sha256": artifact["files"][_carried_verdict(evaluation, files)]["sha256"],
        "tasks": {name: {"digest": task.digest, "rows": task.rows} for name, task in found.tasks.items()},
    }


def _carried_verdict(evaluation: Path, files: dict[str, Path]) -> str:
    carried = files.get(VERDICT, evaluation / VERDICT)
    return carried.relative_to(evaluation).as_posix() if carried.is_relative_to(evaluation) else VERDICT
