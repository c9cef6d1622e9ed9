"""Files for LiteRT-LM in the step `quantize`: one float export, from which each recipe makes a file, and what must hold
before a file is taken.

The gates in order, the first failure stops: every weight stands in the graphs (bit for bit in float, within half a step
where it is rounded); the float graphs say what transformers says; LiteRT-LM reads the checkpoint's tokens, asks its
prompts and ends where it ends. The divergence of each file from transformers is reported, for the evaluation to judge.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.config import Privacy
from gemma_ops.data import chat, published
from gemma_ops.data.prompt_record import read_prompting, write_prompting
from gemma_ops.errors import GateError
from gemma_ops.export.checkpoint import read_checkpoint_json
from gemma_ops.export.edge_graphs import TOOL, float_graphs
from gemma_ops.export.edge_probes import EDGE_PROBES, edge_conversations
from gemma_ops.export.fidelity import FileDivergence
from gemma_ops.export.measured_files import MeasuredFile
from gemma_ops.export.packed_files import PackedWork
from gemma_ops.family.formats import EDGE
from gemma_ops.modeling.load import load_tokenizer
from gemma_ops.privacy.classes import record_learned
from gemma_ops.runs import journal
from gemma_ops.toolenvs.tool_job import run_tool_job

PARITY = 1e-4
"""Largest difference of a logit between the float graphs and transformers in float32."""
_FLOAT = "float"
_NOT_RUN = (
    "no phone has run it: speed, memory and heat there, and activations on a GPU, were not measured",
    "images and sounds: the file holds the language model alone",
    "constrained decoding: LiteRT-LM 0.18.1 knows it for SentencePiece tokenizers only",
)


@dataclass(frozen=True)
class EdgeFile:
    """One file: what it holds, says, and how it ran here."""

    audit: Mapping[str, Any]
    measured: MeasuredFile
    runtime: Mapping[str, Any]
    made_by: Mapping[str, Any]
    file_bytes: int

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {
            "audit": {"file_bytes": self.file_bytes, **self.audit}, "made_by": dict(self.made_by),
            "runtime": dict(self.runtime), "not_run": list(_NOT_RUN), **self.measured.report(),
        }  # fmt: skip

    def metrics(self) -> dict[str, float]:
        """Return the step's metrics."""
        share = float(self.audit["quantized_share"])
        return {"mb": self.file_bytes / 1e6, "quantized_share": share, **self.measured.metrics()}


def make_edge_files(work: PackedWork, formats: Sequence[str], learned: Mapping[str, Privacy]) -> dict[str, EdgeFile]:
    """Make the files, and check and measure all. Raises MachineError where the tool or the memory is missing,
    ModelError for a model that isn't converted, GateError where a gate fails."""
    if not formats:
        return {}
    scratch = work.scratch / "edge"
    graphs = scratch / _FLOAT
    shutil.rmtree(graphs, ignore_errors=True)
    graphs.mkdir(parents=True)
    how = float_graphs(work.source, work.settings, work.machine, graphs, scratch / "jobs")
    bytes_of = {name: _bundle(work, name, graphs, scratch, learned[name]) for name in formats}
    audits = _audit(work, formats, graphs, scratch)
    measured = _measure(work, formats, graphs, scratch)
    found = {}
    for name in formats:
        runtime = _run(work, name, scratch)
        journal.record(event="fidelity", format=name, **measured[name].metrics())
        made = {"writer": "litert-torch", "recipe": EDGE[name].recipe, **how}
        found[name] = EdgeFile(audits[name], measured[name], runtime, made, bytes_of[name])
    return found


def _bundle(work: PackedWork, name: str, graphs: Path, scratch: Path, learned: Privacy) -> int:
    """Quantize the graphs and pack them, and return the bytes of the file."""
    form = EDGE[name]
    file = work.out / form.path
    file.parent.mkdir(parents=True, exist_ok=True)
    request = {
        "graphs": str(graphs.absolute()), "quantized": str((scratch / name).absolute()), "recipe": form.recipe,
        "model": str(work.source.folder.absolute()), "context": work.settings.edge_context,
        "out": str(file.absolute()),
    }  # fmt: skip
    made = run_tool_job(TOOL, work.machine, "edge_bundle", request, scratch / "jobs" / f"{name}-make", what=name)
    record_learned(file.parent, learned, [f"model: {learned}"])
    if prompting := read_prompting(work.source.folder):
        write_prompting(file.parent, prompting)
    return int(made["bytes"])


def _audit(work: PackedWork, formats: Sequence[str], graphs: Path, scratch: Path) -> dict[str, dict[str, Any]]:
    request = {
        "model": str(work.source.folder.absolute()), "graphs": str(graphs.absolute()),
        "quantized": {name: str((scratch / name).absolute()) for name in formats},
    }  # fmt: skip
    found = run_tool_job(TOOL, work.machine, "edge_audit", request, scratch / "jobs" / "audit", what="the byte audit")
    weights = {"weights": found["weights"], "folded_scalars": found["folded_scalars"]}
    for name in formats:
        share = found["quantized"][name]["quantized_share"]
        journal.record(event="audit", format=name, quantized_share=share)
    return {name: {**weights, **found["quantized"][name]} for name in formats}


def _measure(work: PackedWork, formats: Sequence[str], graphs: Path, scratch: Path) -> dict[str, MeasuredFile]:
    """Compare the graphs with transformers on whole conversations. Raises GateError where the float graphs differ."""
    chosen = [*work.domain, *work.general]
    places = {_FLOAT: graphs, **{name: scratch / name for name in formats}}
    job = scratch / "jobs" / "logits"
    room = work.settings.edge_context
    request = {
        "model": str(work.source.folder.absolute()), "threads": work.machine.workers or 1,
        "graphs": {name: str(place.absolute()) for name, place in places.items()}, "prefilled": [],
        "conversations": [each.ids[:room] for each in chosen],
    }  # fmt: skip
    found = run_tool_job(TOOL, work.machine, "edge_logits", request, job, what="parity of the float graphs")
    check_float_parity(found["largest"][_FLOAT])
    with np.load(job / "measured.npz") as values:
        divergences = {
            name: FileDivergence(
                chosen,
                [values[f"{name}-kl{number}"] for number in range(len(chosen))],
                [values[f"{name}-hit{number}"] for number in range(len(chosen))],
            )
            for name in formats
        }
    return {name: MeasuredFile(*each.split(len(work.domain))) for name, each in divergences.items()}


def check_float_parity(largest: float) -> None:
    """Raise GateError where float graphs and transformers differ by more than rounding of float32."""
    if not largest <= PARITY:
        raise GateError(
            f"the float graphs and transformers differ by {largest:.2g} in a logit before any quantization, and may by "
            f"{PARITY:g}",
            "this version of litert-torch does not convert this model: leave litertlm formats out",
        )


def _run(work: PackedWork, name: str, scratch: Path) -> dict[str, Any]:
    """Ask LiteRT-LM for tokens, prompts and stops, and return how it ran."""
    folder = work.source.folder
    tokenizer, template = load_tokenizer(folder), published.template_of(folder)
    asked = []
    for messages, tools in edge_conversations(template):
        prompt = chat.prompt(tokenizer, messages, tools or None, template=template)
        text = tokenizer.decode(prompt.ids, skip_special_tokens=False)
        asked.append({"messages": messages, "tools": tools, "prompt": text})
    stops = read_checkpoint_json(folder / "generation_config.json", "where replies end")["eos_token_id"]
    probes = [{"text": text, "ids": tokenizer.encode(text, add_special_tokens=False).ids} for text in EDGE_PROBES]
    request = {
        "model": str((work.out / EDGE[name].path).absolute()), "threads": work.machine.workers or 0,
        "room": work.settings.edge_context, "probes": probes, "conversations": asked,
        "stops": [stops] if isinstance(stops, int) else stops,
    }  # fmt: skip
    told = run_tool_job(TOOL, work.machine, "edge_runtime", request, scratch / "jobs" / f"{name}-run", what=name)
    speed = {key: told[key] for key in ("load_seconds", "first_seconds", "tokens_per_second", "peak_bytes")}
    journal.record(event="runtime", format=name, **speed)
    return {"engine": f"LiteRT-LM {told['runtime']}", "processor": told["processor"], "probes": len(probes),
            "prompts": len(asked), "equal": True}  # fmt: skip
