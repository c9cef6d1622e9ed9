"""Figures of a task's answers with and without a drafter, the gate "not worse with it", and the recommendation.

What is drafted, how long it took and whether answers differ is a matter of single rows. Figures over them are ratios of
sums, with intervals by resampling of rows, or of their clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_ops.config import DraftConfig, GateConfig
from gemma_ops.gates.gate_decision import GateEvidence, decide_gates
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.modeling.llamacpp_drafts import TimedReply
from gemma_ops.stats.intervals import Sample, bootstrap_interval, resample_mean
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts.drafter_record import DraftedTask, Measured

ALONE, STOCK, TUNED = "alone", "stock", "tuned"
_LEAST = 1e-9


@dataclass(frozen=True)
class AskedRow:
    """One question with its answers by way (`ALONE`, `STOCK`, `TUNED`), and what the metric says of them; None where it
    can't score them."""

    row: ScoredRow
    replies: dict[str, TimedReply]
    scores: dict[str, float | None]

    @property
    def cluster(self) -> str:
        return self.row.cluster or self.row.id


def summarize_task(found: Sequence[AskedRow], task: Task, column: str, settings: DraftConfig) -> DraftedTask:
    """Return the figures of a task's answers, and whether those with the tuned drafter are not worse in the metric
    `column`."""
    outcome, words = _not_worse(found, task, column, settings)
    written, _, seconds = _sums(found, ALONE)
    body = {
        "task": task.name,
        "digest": task.digest,
        "rows": len(found),
        "clusters": len({row.cluster for row in found}),
        "tokens_per_second": round(float(written.sum() / max(_LEAST, seconds.sum())), 1),
        "stock": _answers(found, STOCK, settings),
        "tuned": _answers(found, TUNED, settings),
        "equal": sum(row.replies[TUNED].tokens == row.replies[ALONE].tokens for row in found),
        "metric": column,
        "score": _mean(found, TUNED),
        "score_alone": _mean(found, ALONE),
        "outcome": outcome,
        "words": words,
    }
    return DraftedTask.made(body)


def recommend(tasks: Sequence[DraftedTask]) -> tuple[bool, str]:
    """Return whether a file is better served with the drafter, and why: answers must be shown to be no worse, and
    faster."""
    for task in tasks:
        if task.outcome != "pass":
            return False, f"{task.task}: {task.words}"
    for task in tasks:
        if task.tuned.speed.low <= 1:
            slower = "slower" if task.tuned.speed.high < 1 else "not shown to be faster"
            return False, f"{task.task}: {slower} with the drafter, {_times(task.tuned.speed)} the tokens a second"
    return True, "; ".join(f"{task.task}: {_times(task.tuned.speed)} the tokens a second" for task in tasks)


def _times(speed: Measured) -> str:
    return f"{speed.value:.2f}× ({speed.low:.2f} to {speed.high:.2f})"


def _not_worse(found: Sequence[AskedRow], task: Task, column: str, settings: DraftConfig) -> tuple[str, str]:
    """Return how the gate ends, and a sentence about it."""
    pairs = [(row.scores[TUNED], row.scores[ALONE], row.cluster) for row in found]
    scored = [(one - other, cluster) for one, other, cluster in pairs if one is not None and other is not None]
    if not scored:
        return "inconclusive", f"no question of it can be scored by {column}"
    sample = Sample.of([difference for difference, _ in scored], [cluster for _, cluster in scored])
    gate = GateConfig(
        metric=column, task=task.name, target="with the drafter", test="noninferior", versus="without it",
        margin=settings.margin,
    )  # fmt: skip
    (decision,) = decide_gates([gate], [GateEvidence(sample, True, sample.mean)], settings.confidence)
    return decision.outcome, decision.words


def _answers(found: Sequence[AskedRow], way: str, settings: DraftConfig) -> dict[str, Any]:
    """Return the figures of the answers of a way, as `DraftedAnswers` holds them."""
    written, steps, seconds = _sums(found, way)
    usual, _, usual_seconds = _sums(found, ALONE)
    drafted, kept = (
        np.array([float(getattr(row.replies[way], name)) for row in found]) for name in ("drafted", "kept")
    )

    def ratio(above: Any, below: Any) -> Callable[[Any], float]:
        return lambda at: float(above[at].sum() / max(_LEAST, below[at].sum()))

    rate, usual_rate = ratio(written, seconds), ratio(usual, usual_seconds)
    measured = {
        "tokens_per_step": ratio(written, steps),
        "accepted": ratio(kept, drafted),
        "speed": lambda at: rate(at) / max(_LEAST, usual_rate(at)),
    }
    figures: dict[str, Any] = {name: _interval(figure, found, settings) for name, figure in measured.items()}
    return figures | {"tokens_per_second": round(rate(np.arange(len(found))), 1)}


def _sums(found: Sequence[AskedRow], way: str) -> tuple[Any, Any, Any]:
    """Return, by row, the tokens after the first, the steps that they took, and the seconds."""
    replies = [row.replies[way] for row in found]
    facts = [(len(reply.tokens) - 1.0, float(reply.steps), reply.seconds) for reply in replies]
    written, steps, seconds = np.array(facts).T
    return written, steps, seconds


def _interval(figure: Callable[[Any], float], found: Sequence[AskedRow], settings: DraftConfig) -> dict[str, float]:
    clusters = [row.cluster for row in found]
    value, draws = figure(np.arange(len(found))), resample_mean(figure, clusters, settings.seed)
    made = bootstrap_interval(value, draws, settings.confidence, len(found), len(set(clusters)))
    return {name: float(f"{getattr(made, name):.4g}") for name in ("value", "low", "high")}


def _mean(found: Sequence[AskedRow], way: str) -> float | None:
    scores = [score for row in found if (score := row.scores[way]) is not None]
    return round(float(np.mean(scores)), 6) if scores else None
