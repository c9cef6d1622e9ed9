"""Content of a run in MLflow besides its curves: settings, provenance, data, the files and the note a reviewer
reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from gemma_ops import __version__
from gemma_ops.registry import evaluation_evidence, model_card, run_reader
from gemma_ops.registry import state as memory
from gemma_ops.registry.profile import Tracking
from gemma_ops.registry.staging import shown_report
from gemma_ops.runs import digest
from gemma_ops.verdicts import ROUTING, VERDICT, Verdict

# What a reviewer wants next to the numbers: {file in the run folder: its path in MLflow, under the same file name}.
FILES = {
    "config.json": "config.json",
    "synthesize/card.md": "synthetic/card.md",
    "synthesize/report.json": "synthetic/report.json",
    "prepare/card.md": "data/card.md",
    "prepare/report.json": "data/report.json",
    f"evaluate/{VERDICT}": VERDICT,
    "evaluate/report.html": "report.html",
    "evaluate/summary.md": "summary.md",
    f"evaluate/{ROUTING}": ROUTING,
    "register/card.md": "card.md",
    "register/manifest.json": "manifest.json",
}
# Those that may quote rows of the data: kept here when a row may not leave the machine and MLflow is another one.
QUOTING = frozenset({"synthesize/report.json", "synthesize/card.md", "prepare/report.json", "evaluate/report.html"})
_WITHHELD = "the message stays on the machine that ran it: it may quote a row"
_PARAMS = 100  # MLflow's limit on parameters in one call
_DIGEST = 36  # and on the characters of a data set's digest


def log_settings(tracking: Tracking, run: Path, run_id: str) -> None:
    """Log the parameters and the provenance of the parent run. Parameters never change: other settings get another
    run."""
    config = memory.config_of(run)
    sections = ("recipe", "model", "synth", "data", "train", "quantize", "evaluate")
    shown = {key: config[key] for key in sections if key in config}
    params(tracking, run_id, run_reader.flatten(_placeless(shown)))
    replace_tags(
        tracking, run_id, {"gemma_ops.version": __version__, "gemma_ops.config": digest.of_json(config), **git()}
    )


def step(tracking: Tracking, run_id: str, name: str, identity: dict[str, Any]) -> None:
    """Log the settings and inputs of one step, as they stand in its fingerprint."""
    params(tracking, run_id, run_reader.flatten(identity.get("settings") or {}))
    inputs = run_reader.flatten(identity.get("inputs") or {}, "gemma_ops.input.")
    replace_tags(tracking, run_id, {"gemma_ops.step": name, **inputs})


def datasets(tracking: Tracking, run: Path, step_name: str, run_id: str) -> None:
    """Log the data a run used, under our own digests.

    MLflow's digest leaves out columns that are lists, so any two chat data sets of five rows look the same to it.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    prepared = (
        run_reader.read_step_json(run / "prepare" / "artifact.json") if step_name in ("prepare", "train") else None
    )
    for file, context in (("train.jsonl", "training"), ("valid.jsonl", "validation")):
        if prepared and file in prepared["files"]:
            sha256 = prepared["files"][file]["sha256"]
            source = json.dumps({"uri": f"{run.name}/prepare/{file}"})
            data = Dataset(
                f"{run.name} {context}", sha256[:_DIGEST], "local", source, profile=_profile(run / "prepare" / file)
            )
            inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", context), InputTag("sha256", sha256)]))
    found = evaluation_evidence.read_evidence(run / "evaluate") if step_name == "evaluate" else None
    for name, task in found.tasks.items() if found else ():
        profile = json.dumps({"num_rows": task.rows})
        data = Dataset(name, task.digest[:_DIGEST], "local", json.dumps({"uri": f"eval/{name}"}), profile=profile)
        inputs.append(
            DatasetInput(data, [InputTag("mlflow.data.context", "evaluation"), InputTag("sha256", task.digest)])
        )
    if inputs:
        tracking.client.log_inputs(run_id, inputs)


def outcome(tracking: Tracking, run: Path, state: memory.State, error: str | None) -> None:
    """Log files, verdict and note of a run that has ended."""
    run_id = state["run_id"]
    withheld = tracking.leaves_machine and keeps_rows(run)
    for name, stored in FILES.items():
        file = run / name
        if name.startswith("evaluate/"):
            file = shown_report(run / "evaluate", file.name, leaves=tracking.leaves_machine)
        if not file.exists() or (withheld and name in QUOTING):
            continue
        sha256 = digest.of_file(file)
        if state["files"].get(stored) != sha256:
            tracking.client.log_artifact(run_id, str(file), stored.rpartition("/")[0] or None)
            state["files"][stored] = sha256
            memory.write_state(run, tracking.place, state)
    found = evaluation_evidence.read_evidence(run / "evaluate")
    note = model_card.card_headline(found) if found else ""
    if withheld:
        note += "\n\nThe report stays on the machine that made it: its rows are `local_only`."
    labels = {
        "gemma_ops.error": _WITHHELD if error and withheld else error or "",
        "mlflow.note.content": note.strip(),
        "verdict": found.outcome if found else "",
    }
    replace_tags(tracking, run_id, {key: value for key, value in labels.items() if value})
    if not error and "gemma_ops.error" in tracking.client.get_run(run_id).data.tags:
        tracking.client.delete_tag(run_id, "gemma_ops.error")


def params(tracking: Tracking, run_id: str, values: dict[str, str]) -> None:
    """Log parameters; repeating the same values is allowed by MLflow."""
    from mlflow.entities import Param

    items = [Param(key, value) for key, value in values.items()]
    for start in range(0, len(items), _PARAMS):
        tracking.client.log_batch(run_id, params=items[start : start + _PARAMS])


def replace_tags(tracking: Tracking, run_id: str, values: dict[str, str]) -> None:
    """Set tags, replacing earlier values."""
    from mlflow.entities import RunTag

    tracking.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in values.items()])


def git() -> dict[str, str]:
    """Return commit and state of the working folder's repository; empty outside one or without git."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    return {"mlflow.source.git.commit": commit, "gemma_ops.git_dirty": str(dirty).lower()}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _placeless(value: Any) -> Any:
    """Replace absolute paths by their last name: where a file lies on one machine tells others only who worked
    there."""
    if isinstance(value, dict):
        return {key: _placeless(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_placeless(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _profile(file: Path) -> str | None:
    if not file.exists():
        return None
    with file.open("rb") as lines:
        return json.dumps({"num_rows": sum(1 for _ in lines)})


def keeps_rows(run: Path) -> bool:
    """True if any row of this run, or answer of a model that learned from such rows, may not leave the machine; assumed
    when the rows can't be seen."""
    counts = run_reader.privacy_of(run)
    file = run / "evaluate" / VERDICT
    targets = Verdict.read(file).targets if file.exists() else {}
    learned = [target.learned for target in targets.values()]
    return not counts or "local_only" in counts or "local_only" in learned
