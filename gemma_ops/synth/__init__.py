"""From documents, seeds and tool declarations to checked, attributed training rows; the step `synthesize`.

sources.py     documents as they lie in files: text, privacy, licence, digest (readers.py: md, txt, html, jsonl, pdf)
sections.py    parts of a document by heading, each with its place in the source
material.py    what a request is made from: a section, seeds, tools, or an earlier row; plan_requests.py spreads requests over it
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

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from gemma_ops.config import MachineConfig, ModelConfig, SynthConfig


def synthesize(
    out: Path,
    settings: SynthConfig,
    machine: MachineConfig,
    *,
    base: Path | None = None,
    teacher: Path | None = None,
    documents: Path | None = None,
    seeds: Path | None = None,
    tools: Path | None = None,
    tasks: tuple[Path, ...] = (),
    source: Path | None = None,
) -> dict[str, float]:
    """The step `synthesize`; see `synthesize_step.synthesize_rows`."""
    from gemma_ops.synth.synthesize_step import synthesize_rows as run

    return run(
        out,
        settings,
        machine,
        base=base,
        teacher=teacher,
        documents=documents,
        seeds=seeds,
        tools=tools,
        tasks=tasks,
        source=source,
    )


def inputs(settings: SynthConfig) -> dict[str, Path | None]:
    """Where documents, seeds and tools lie, as inputs of the step. Raises ConfigError for one that isn't there."""
    from pathlib import Path

    from gemma_ops.errors import ConfigError

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
    """The checkpoint to fetch for a teacher that is neither this run's base nor a service: a folder or a Hub id."""
    from gemma_ops.config import ModelConfig

    name = settings.teacher
    return ModelConfig(base=name) if name == "nano" or ("/" in name and ":" not in name) else None
