"""From documents, seeds and tool declarations to checked, attributed training rows; the step `synthesize`.

sources.py     documents as they lie in files: text, privacy, licence, digest (readers.py: md, txt, html, jsonl, pdf)
sections.py    parts of a document by heading, each with its place in the source
material.py    what a request is made from: a section, seeds, tools, or an earlier row
plan_requests.py    spreads requests over the material
methods/       one file per method: the prompt, the shape of the reply, how it becomes rows
replies.py     asks the teacher and keeps every reply at once, so that a killed run goes on
candidates.py  replies to rows that passed the checks, and to rejections; none vanishes
row_checks.py      is it usable: language.py, quotations.py (the quotation stands in the source)
filters.py     duplicates, overlap with evaluation tasks, personal data; judge_filter.py asks a judge
rows.py        rows with their provenance; synth_report.py counts, synth_card.py says it to people
estimate.py    what `gemma-ops synth plan` says before anything is asked (estimate_text.py writes it out)
grading_forecast.py     the judge's part of that; bill.py counts the dollars of both
synthesize_step.py    the step
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemma_ops.config import ModelConfig, SynthConfig
from gemma_ops.errors import ConfigError
from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.synth.synthesize_step import synthesize
else:
    synthesize = later("gemma_ops.synth.synthesize_step", "synthesize")

__all__ = ["synthesis_inputs", "synthesize", "teacher_model"]


def synthesis_inputs(settings: SynthConfig) -> dict[str, Path | None]:
    """Return where documents, seeds and tools lie, as inputs of the step. Raises ConfigError for one that isn't
    there."""
    found: dict[str, Path | None] = {}
    for name, given in (("documents", settings.documents), ("seeds", settings.seeds), ("tools", settings.tools)):
        found[name] = Path(given).expanduser() if given else None
        path = found[name]
        if path is not None and not path.exists():
            raise ConfigError(
                f"synth.{name} {given!r} does not exist",
                "give a file or folder; relative paths count from the configuration's folder",
            )
    return found


def teacher_model(settings: SynthConfig) -> ModelConfig | None:
    """Return the checkpoint to fetch for a teacher that is neither this run's base nor a service: a folder or a Hub
    id."""
    name = settings.teacher
    return ModelConfig(base=name) if name == "nano" or ("/" in name and ":" not in name) else None
