"""Runs for the tests of the registry: real `Run`s whose steps write what the real ones write, in a second."""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from gemma_ops import registry
from gemma_ops.config import MachineConfig, RunConfig
from gemma_ops.evaluation.policy_gates import hold_to_standard, read_standard, standard_facts
from gemma_ops.registry import database
from gemma_ops.runs import digest, journal
from gemma_ops.runs.artifact import Artifact
from gemma_ops.runs.run import Listener, Run, StopHere
from tests.helpers.once import once

GATES = ({"metric": "exact_match", "target": "tuned", "test": "superior", "versus": "base", "margin": 0.5},)
CHAMPION_VALUE = 0.9
SAFETY = {
    "memorized": {"target": "q8_0", "rows": 40, "said": 0, "base_said": 0, "upper": 0.0722},
    "refused": {"target": "q8_0", "requests": 16, "base": 0, "lost": 0},
}
"""What the probes of a run find."""


@event.listens_for(Engine, "connect")
def _no_flush(connection: Any, _record: Any) -> None:
    """A test's database needs to survive its process, not a power cut: flushing to the disk would double the time."""
    if "sqlite" in type(connection).__module__:
        connection.execute("PRAGMA synchronous=OFF")


def fresh(folder: Path) -> Path:
    """A folder with an empty MLflow database; its migrations (about 5 s) are paid once per session."""
    made = once("mlflow", lambda place: database.ensure(place / "mlflow.db"))
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(made / "mlflow.db", folder / "mlflow.db")
    return folder


def config(root: Path, mlflow: str | None = "", **changes: Any) -> RunConfig:
    """A run in `root`; its MLflow lies in `root/mlflow` unless said otherwise."""
    if mlflow == "" and not (root / "mlflow").exists():
        fresh(root / "mlflow")
    machine = {"runs": str(root / "runs"), "mlflow": str(root / "mlflow") if mlflow == "" else mlflow}
    body: dict[str, Any] = {
        "name": "support",
        "machine": machine,
        "data": {"privacy": "any"},
        "register": {"name": "support-nano"},
    }
    changes["evaluate"] = {"tasks": ["support_desk"], "gates": GATES} | changes.get("evaluate", {})
    return RunConfig.model_validate(body | changes)


def fetch(out: Path, settings: Any, machine: MachineConfig) -> dict[str, float]:
    files = {"model.safetensors": "aa" * 32, "chat_template.jinja": "bb" * 32, "config.json": "cc" * 32}
    body = {"id": settings.base, "revision": None, "size": None, "files": files}
    (out / "model.json").write_text(json.dumps(body))
    (out / "weights").mkdir()
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("chat_template.jinja", "{{ messages }}")):
        (out / "weights" / name).write_text(text)
    return {"bytes": 1.0}


def prepare(out: Path, settings: Any, machine: MachineConfig) -> dict[str, float]:
    for name, rows in (("train.jsonl", 30), ("valid.jsonl", 4)):
        lines = [
            json.dumps(
                {
                    "id": f"{name}{n}",
                    "messages": [],
                    "source": f"tickets.jsonl:{n}",
                    "privacy": settings.privacy,
                    "group": str(n),
                }
            )
            for n in range(rows)
        ]
        (out / name).write_text("\n".join(lines) + "\n")
    overlap = {"mode": "drop", "tasks": [{"name": "support_desk", "rows": 0, "not_compared": None}]}
    (out / "report.json").write_text(json.dumps({"overlap": overlap}))
    (out / "card.md").write_text("# Data\n")
    return {"rows": 34.0}


def tensors(weights: bytes) -> bytes:
    """A safetensors file that holds these bytes as one tensor."""
    head = json.dumps({"w": {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}}).encode()
    return struct.pack("<Q", len(head)) + head + weights


def train(out: Path, settings: Any, machine: MachineConfig, *, base: Path, data: Path) -> dict[str, float]:
    (out / "adapter").mkdir(exist_ok=True)
    for step in range(1, 21):
        journal.record(step=step, loss=4.0 / step, learning_rate=1e-4, tokens_per_second=1000.0 + step)
    weights = digest.of_json([settings.seed, settings.max_steps]).encode() * 500
    (out / "adapter" / "adapter_model.safetensors").write_bytes(tensors(weights))
    (out / "adapter" / "adapter_config.json").write_text(
        json.dumps({"r": settings.lora.rank, "lora_alpha": settings.lora.alpha})
    )
    return {"loss": 0.2, "steps": 20.0}


def quantize(out: Path, settings: Any, machine: MachineConfig, *, base: Path, adapter: Path) -> dict[str, float]:
    for form in ("bf16", "q8_0", "q4_0"):
        (out / form).mkdir(exist_ok=True)
        body = form.encode() * 3000 + digest.of_path(adapter).encode()
        (out / form / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + body)
    return {"kl/q8_0": 0.001}


def evaluate(
    out: Path,
    settings: Any,
    machine: MachineConfig,
    *,
    base: Path,
    tuned: Path | None = None,
    quantized: Path | None = None,
    champion: Path | None = None,
) -> dict[str, float]:
    tuned_value = 0.93 if settings.seed == 7 else 0.41
    known = read_standard(champion)
    task = SimpleNamespace(name="support_desk", digest=("ee" if "other" in settings.tasks else "dd") * 32, shows=())
    settings = hold_to_standard(
        settings, known, [task], lambda name: name in ("base", "tuned", "q8_0", "q4_0", "champion")
    )
    rows = min(settings.rows or 120, 120)
    values = {"base": 0.02, "tuned": tuned_value, "q8_0": tuned_value, "q4_0": tuned_value - 0.02}
    values |= {"champion": CHAMPION_VALUE} if known.champion and known.policy else {}
    identities = {"base": base, "tuned": tuned, "q8_0": quantized, "q4_0": quantized}
    results, differences = [], []
    for target, value in values.items():
        for done in (40, 80, 120):
            journal.record(
                target=target, task="support_desk", done=done, total=120, seconds=0.5, tokens_per_second=300.0
            )
        exact = {"value": value, "low": value - 0.02, "high": value + 0.03, "n": 120, "clusters": 12, "unscored": 0}
        fields = exact | {"value": min(1.0, value + 0.05)}
        results.append(
            {
                "task": "support_desk",
                "target": target,
                "rows": rows,
                "ends": {"stop": rows},
                "failed": 0,
                "metrics": {"field_f1": fields, "exact_match": exact},
                "slices": {},
                "speed": {"seconds_p95": 0.2, "new_tokens_per_second": 300.0},
            }
        )
        if target != "base":
            pair = {
                "task": "support_desk",
                "target": target,
                "versus": "base",
                "metric": "exact_match",
                "value": value - 0.02,
            }
            bounds = {"low": value - 0.08, "high": value + 0.03, "n": 120, "clusters": 12, "wins": 100, "losses": 2}
            differences.append(pair | bounds | {"p": 0.001, "correlation": 0.1, "method": "tango"})
    gates = [decided(gate, values) for gate in settings.gates]
    outcome = "fail" if any(gate["outcome"] == "fail" for gate in gates) else "pass" if gates else "ungated"
    privacy = {"any": 120}
    body = {
        "schema": "gemma-ops/verdict@1",
        "verdict": outcome,
        "confidence": settings.confidence,
        "seed": settings.seed,
        "gates": gates,
        "tasks": {"support_desk": {"digest": task.digest, "rows": rows, "primary": "exact_match", "privacy": privacy}},
        "results": results,
        "differences": differences,
        "targets": {name: answered(name, path) for name, path in identities.items() if path},
        "safety": SAFETY,
        "kv": [{"window": None, "bytes_per_token": 512}],
        "canary": {"tuned": 16, "q8_0": 16, "q4_0": 16},
        **standard_facts(known),
    }
    (out / "report.html").write_text("<html><body><h1>Report</h1><p>tuned 0.93</p></body></html>")
    (out / "summary.md").write_text(f"## Evaluation: {outcome}\n")
    (out / "verdict.json").write_text(json.dumps(body))
    return {"support_desk/tuned/exact_match": tuned_value}


def answered(name: str, path: Path) -> dict[str, Any]:
    """What a verdict says of a target that this run made."""
    made = json.loads((path / "artifact.json").read_text())
    file = made["files"].get(f"{name}/model.gguf")
    told = {"sha256": file["sha256"], "engine": "llama.cpp"} if file else {"engine": "transformers"}
    return {"identity": made["digest"], "artifact": made["digest"], **told}


def decided(gate: Any, values: dict[str, float]) -> dict[str, Any]:
    """A gate of the verdict, decided on the values as they are."""
    rival = values[gate.versus] if gate.versus else 0.0
    limit = -gate.margin if gate.test == "noninferior" else gate.margin
    outcome = "pass" if values[gate.target] - rival > limit else "fail"
    asked = {key: getattr(gate, key) for key in ("metric", "target", "test", "versus", "margin")}
    return {
        "task": gate.task or "support_desk",
        **asked,
        "outcome": outcome,
        "threshold": limit,
        "words": f"{gate.words}: {outcome}.",
    }


def make(
    configuration: RunConfig,
    *listeners: Listener,
    until: str | None = None,
    redo: tuple[str, ...] = (),
    steps: dict[str, Any] | None = None,
) -> dict[str, Artifact]:
    """The recipe, as `recipes/lora.py` has it, without merge. `steps` replaces some of them."""
    use = {"fetch": fetch, "prepare": prepare, "train": train, "quantize": quantize, "evaluate": evaluate} | (
        steps or {}
    )
    with contextlib.suppress(StopHere), Run(configuration, until=until, redo=redo, listeners=listeners) as run:
        base = run.step(use["fetch"], configuration.model)
        data = run.step(use["prepare"], configuration.data)
        adapter = run.step(use["train"], configuration.train, base=base, data=data, name="train")
        quantized = run.step(use["quantize"], configuration.quantize, base=base, adapter=adapter)
        known = run.step(registry.pull_champion, configuration.registered_model(), name="champion")
        verdict = run.step(
            use["evaluate"], configuration.evaluate, base=base, tuned=adapter, quantized=quantized, champion=known,
            name="evaluate",
        )  # fmt: skip
        settings = configuration.register_
        run.step(
            registry.register, settings, model=base, data=data, adapter=adapter, quantized=quantized, evaluation=verdict
        )
    return run.artifacts
