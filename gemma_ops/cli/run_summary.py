"""The few lines a run ends with: what each target scored, what the gates said, which version it became, where to
look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.family.formats import QUANTIZED, REFERENCE
from gemma_ops.runs.artifact import MANIFEST
from gemma_ops.runs.run import Run


def of(run: Run) -> dict[str, Any]:
    """Return the summary of a run that just ended."""
    result = of_folder(run.path)
    result["steps"] = {name: {**result["steps"][name], "kept": done.kept} for name, done in run.artifacts.items()}
    # What a later step said about an adapter made before this one is no result of this run.
    for key, step in (("verdict", "evaluate"), ("report", "evaluate"), ("version", "register")):
        if step not in run.artifacts:
            result.pop(key, None)
    return result


def of_folder(folder: Path) -> dict[str, Any]:
    """Return the summary of a run folder: its finished steps, verdict, drafter and registered
    version."""
    steps = {}
    manifests = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in folder.glob(f"*/{MANIFEST}")
        if not path.parent.name.endswith((".old", ".partial"))
    ]
    for body in sorted(manifests, key=lambda body: str(body["made"]["at"])):
        name = body["step"]
        steps[name] = {"digest": body["digest"], "metrics": body["metrics"], "seconds": body["made"]["seconds"]}
    result: dict[str, Any] = {"run": folder.name, "folder": str(folder), "steps": steps}
    for key, path in (
        ("verdict", folder / "evaluate" / "verdict.json"),
        ("version", folder / "register" / "mlflow.json"),
        ("drafter", folder / "draft" / "drafter.json"),
    ):
        if path.exists():
            result[key] = json.loads(path.read_text(encoding="utf-8"))
    if "version" in result and _evaluated_again(folder):
        result["version"]["evaluated_again"] = True
    report = folder / "evaluate" / "report.html"
    if report.exists():
        result["report"] = str(report)
    return result


_AGAIN = ", from an earlier evaluation than this one: `gemma-ops register` makes a version with it"


def _evaluated_again(folder: Path) -> bool:
    """True if the run was evaluated, or graded, again after its version was registered."""
    manifests = [folder / step / MANIFEST for step in ("register", "evaluate")]
    if not all(path.exists() for path in manifests):
        return False
    register, evaluate = (json.loads(path.read_text(encoding="utf-8")) for path in manifests)
    used = (register.get("inputs") or {}).get("evaluation")
    return used is not None and used != evaluate["digest"]


def summary_lines(result: dict[str, Any]) -> list[str]:
    """Return the summary as plain text."""
    text = [f"run {result['run']}  ({result['folder']})"]
    for name, step in result["steps"].items():
        facts = "  ".join(_fact(key, value) for key, value in _chosen(name, step["metrics"]).items())
        text.append(f"  {name:<9} {step['digest'][:12]}  {facts}".rstrip())
    if "verdict" in result:
        from gemma_ops.evaluation import summary_lines
        from gemma_ops.verdicts import Verdict

        text += ["", *summary_lines(Verdict.parse(result["verdict"], f"verdict.json of {result['run']}"))]
    if "drafter" in result:
        text += [
            f"drafter    {form}: {'use it' if file['recommended'] else 'leave it off'}. {file['reason']}"
            for form, file in result["drafter"]["files"].items()
        ]
    if "version" in result:
        version = result["version"]
        text.append(
            f"registered {version['name']} version "
            f"{version['version']}{_AGAIN if version.get('evaluated_again') else ''}"
            if version.get("version")
            else "not registered: machine.mlflow is null"
        )
    if "report" in result:
        text.append(f"report     {result['report']}")
    return text


_SHOWN = {
    "fetch": ("bytes",),
    "synthesize": ("requests", "rows", "pairs", "rejected", "dollars"),
    "prepare": ("train_rows", "valid_rows", "rejected", "exact_duplicates", "near_duplicates"),
    "train": ("steps", "loss", "eval_loss", "trainable_parameters"),
    "merge": ("canary/top1_changed", "canary/max_logit_change"),
    "quantize": tuple(
        f"{form}/{metric}" for form in QUANTIZED if form != REFERENCE for metric in ("kl", "top1", "kl_ratio")
    ),
    "draft": tuple(f"{form}/{metric}" for form in QUANTIZED for metric in ("tokens_per_step", "was", "speed")),
}


def _chosen(step: str, metrics: dict[str, float]) -> dict[str, float]:
    return {key: metrics[key] for key in _SHOWN.get(step, ()) if key in metrics}


def _fact(key: str, value: float) -> str:
    number = f"{value:,.0f}" if value == int(value) and abs(value) >= 1 else f"{value:.4g}"
    return f"{key} {number}"
