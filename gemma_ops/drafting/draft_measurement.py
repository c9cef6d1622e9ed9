"""A file's answers to a task's questions in llama.cpp, without a drafter, with the stock one and with the tuned one.

Questions are asked one at a time, each of the three ways in turn, so that whatever else the machine does falls on all
of them. What is drafted, how long it took and whether answers differ is a matter of single rows; figures over them are
ratios of sums, with intervals by resampling of rows, or of their clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.answer import Prompt
from gemma_ops.config import DraftConfig, GateConfig
from gemma_ops.gates.gate_decision import GateEvidence, decide_gates
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.modeling.generate import STOPS, read_reply
from gemma_ops.modeling.llamacpp_drafts import TimedGguf, TimedReply
from gemma_ops.modeling.thoughts import left_open
from gemma_ops.runs import journal
from gemma_ops.stats.intervals import Sample, bootstrap_interval, resample_mean
from gemma_ops.targets.prompt_encoder import Encoder
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts.drafter_record import DraftedTask, Measured

ALONE, STOCK, TUNED = "alone", "stock", "tuned"
_WAYS = (ALONE, STOCK, TUNED)
_SLACK = 8


@dataclass(frozen=True)
class DraftedFileAsked:
    """A GGUF file, and the drafters that are tried with it."""

    file: Path
    stock: Path
    tuned: Path
    threads: int | None


@dataclass(frozen=True)
class AskedRow:
    """One question with its answers by way, and what the metric says of them."""

    row: ScoredRow
    replies: dict[str, TimedReply]
    scores: dict[str, float]


def measure_task(asked: DraftedFileAsked, task: Task, encode: Encoder, settings: DraftConfig, form: str) -> DraftedTask:
    """Ask a task's questions of a file in all ways, and return what came of it. Raises ModelError when llama.cpp
    refuses a file or a question."""
    limit = task.file.generation.max_new_tokens + encode.thoughts
    prompts = [encode(Prompt(row.messages, row.privacy, row.id, tools=row.tools)) for row in task.rows]
    context = max(map(len, prompts)) + limit + settings.tokens + _SLACK
    column = task.file.primary if task.file.primary in task.columns else task.columns[0]
    found: list[AskedRow] = []
    with ExitStack() as stack:
        ways = {
            way: stack.enter_context(
                TimedGguf(
                    asked.file, context=context, threads=asked.threads, drafter=drafter,
                    drafted=settings.tokens if drafter else 0,
                )
            )
            for way, drafter in ((ALONE, None), (STOCK, asked.stock), (TUNED, asked.tuned))
        }  # fmt: skip
        for way in ways.values():
            way.timed_reply(prompts[0], limit)  # loads it, and warms it up
        for number, (row, prompt) in enumerate(zip(task.rows, prompts, strict=True)):
            first = number % len(_WAYS)
            replies = {way: ways[way].timed_reply(prompt, limit) for way in (*_WAYS[first:], *_WAYS[:first])}
            scores = {way: _score(task, row, reply, encode, prompt, column) for way, reply in replies.items()}
            found.append(AskedRow(row, replies, scores))
            journal.record(event="drafted", format=form, task=task.name, done=number + 1, total=len(prompts))
    return summarize_task(found, task, column, settings)


def _score(task: Task, row: ScoredRow, reply: TimedReply, encode: Encoder, prompt: list[int], column: str) -> float:
    stops = {encode.tokenizer.token_to_id(token) for token in STOPS}
    said = read_reply(encode.tokenizer, reply.tokens, stops, opened=left_open(encode.tokenizer, prompt))
    return float(task.score(said.text, row).values[column] or 0.0)


def summarize_task(found: Sequence[AskedRow], task: Task, column: str, settings: DraftConfig) -> DraftedTask:
    """Return the figures of a task's answers, and whether those with the tuned drafter are not worse."""
    clusters = [row.row.cluster or row.row.id for row in found]
    differences = [row.scores[TUNED] - row.scores[ALONE] for row in found]
    sample = Sample.of(differences, clusters)
    gate = GateConfig(
        metric=column, task=task.name, target="with the drafter", test="noninferior", versus="without it",
        margin=settings.margin,
    )  # fmt: skip
    (decision,) = decide_gates([gate], [GateEvidence(sample, True, sample.mean)], settings.confidence)

    def figures(way: str) -> dict[str, Any]:
        one = [row.replies[way] for row in found]
        alone = [row.replies[ALONE] for row in found]
        written = np.array([len(reply.tokens) - 1.0 for reply in one])
        steps, seconds = np.array([float(reply.steps) for reply in one]), np.array([reply.seconds for reply in one])
        drafted, kept = np.array([float(reply.drafted) for reply in one]), np.array([float(r.kept) for r in one])
        before = np.array([reply.seconds for reply in alone])
        wrote_before = np.array([len(reply.tokens) - 1.0 for reply in alone])

        def measured(statistic: Callable[[Any], float]) -> dict[str, Any]:
            every = np.arange(len(found))
            draws = resample_mean(statistic, clusters, settings.seed)
            made = bootstrap_interval(statistic(every), draws, settings.confidence, len(found), sample.groups)
            return {name: float(f"{getattr(made, name):.4g}") for name in ("value", "low", "high")}

        def speed(at: Any) -> float:
            rate, usual = written[at].sum() / seconds[at].sum(), wrote_before[at].sum() / before[at].sum()
            return float(rate / usual)

        return {
            "tokens_per_step": measured(lambda at: float(written[at].sum() / max(1.0, steps[at].sum()))),
            "accepted": measured(lambda at: float(kept[at].sum() / max(1.0, drafted[at].sum()))),
            "speed": measured(speed),
            "tokens_per_second": round(float(written.sum() / seconds.sum()), 1),
        }

    alone = [row.replies[ALONE] for row in found]
    return DraftedTask.made(
        {
            "task": task.name,
            "digest": task.digest,
            "rows": len(found),
            "clusters": sample.groups,
            "tokens_per_second": round(
                sum(len(one.tokens) - 1 for one in alone) / max(1e-9, sum(one.seconds for one in alone)), 1
            ),
            "stock": figures(STOCK),
            "tuned": figures(TUNED),
            "equal": sum(row.replies[TUNED].tokens == row.replies[ALONE].tokens for row in found),
            "metric": column,
            "score": round(float(np.mean([row.scores[TUNED] for row in found])), 6),
            "score_alone": round(float(np.mean([row.scores[ALONE] for row in found])), 6),
            "outcome": decision.outcome,
            "words": decision.words,
        }
    )


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
    return True, "; ".join(
        f"{task.task}: {_times(task.tuned.speed)} the tokens a second, {task.words}" for task in tasks
    )


def _times(speed: Measured) -> str:
    return f"{speed.value:.2f}× ({speed.low:.2f} to {speed.high:.2f})"
