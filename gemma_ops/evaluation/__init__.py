"""The evaluation room: tasks, targets, metrics, statistics, gates, and the step `evaluate`.

The functions here only hand over, so that importing the room (a kept step does) costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_ops.config import EvaluateConfig, MachineConfig

if TYPE_CHECKING:
    from gemma_ops.verdicts import Verdict


def evaluate(
    out: Path,
    settings: EvaluateConfig,
    machine: MachineConfig,
    *,
    base: Path | None = None,
    tuned: Path | None = None,
    quantized: Path | None = None,
    data: Path | None = None,
    source: Path | None = None,
    calibration: Path | None = None,
    champion: Path | None = None,
    tasks: tuple[Path, ...],
) -> dict[str, float]:
    """Ask every target every question, grade, and decide.

    Inputs: `base` and `tuned` are artifacts that hold a checkpoint, `quantized` the one of the step `quantize`, `data`
    that of `prepare` (named in the report), `champion` that of the step `champion` (the registry's policy, and the
    version to be compared with), `source` the user's data folder for tasks whose rows aren't shipped, `tasks` the task
    folders. Writes answers.jsonl, scores.jsonl, verdict.json, report.html, summary.md, junit.xml below `out`. Raises
    ConfigError and DataError for everything that is wrong before a model is loaded.
    """
    from gemma_ops.evaluation.evaluate_step import evaluate as run

    return run(
        out, settings, machine, base=base, tuned=tuned, quantized=quantized, data=data, source=source,
        calibration=calibration, champion=champion, tasks=tasks,
    )  # fmt: skip


def regrade(
    out: Path,
    settings: EvaluateConfig,
    machine: MachineConfig,
    *,
    answers: Path,
    source: Path | None = None,
    tasks: tuple[Path, ...],
) -> dict[str, float]:
    """Grade the answers of an earlier `evaluate` folder again, after a metric or a gate changed. No model is loaded."""
    from gemma_ops.evaluation.evaluate_step import regrade as run

    return run(out, settings, machine, answers=answers, source=source, tasks=tasks)


def forecast(
    settings: EvaluateConfig,
    machine: MachineConfig,
    *,
    before: Path,
    source: Path | None = None,
    tasks: tuple[Path, ...],
) -> dict[str, Any]:
    """What an evaluation can show, sends and may cost; `before` is the folder of this run's evaluation, if there was
    one.

    Nothing is asked and no model is loaded.
    """
    from gemma_ops.evaluation.evaluation_checks import load_checked
    from gemma_ops.evaluation.evaluation_forecast import forecast_evaluation as make

    return make(settings, machine, load_checked(settings, tasks, source, before.parent), before)


def forecast_lines(plan: dict[str, Any]) -> list[str]:
    """A forecast for the terminal."""
    from gemma_ops.evaluation.evaluation_forecast import forecast_text

    return forecast_text(plan)


def needs_source(folder: Path) -> bool:
    """Whether a task's rows are not shipped, so that `evaluate` needs the user's data folder as `source`."""
    from gemma_ops.tasks.task import task_needs_source as ask

    return ask(folder)


def summary_lines(verdict: Verdict, folder: Path | None = None) -> list[str]:
    """A verdict in a few plain lines for the terminal; `folder` is where `report.html` stands."""
    from gemma_ops.evaluation.verdict_summary import verdict_lines

    return verdict_lines(verdict, folder)
