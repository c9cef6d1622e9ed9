"""The conditions that answers were timed under: when they were asked, how many at once, on what, and how busy it was.

`conditions.jsonl` stands next to the answers and is no part of their identity: answers of versions that recorded no
conditions stay valid, and their load is told as not recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gemma_ops.privacy.classes import HERE
from gemma_ops.runs import digest
from gemma_ops.runs.keyed import KeyedFile
from gemma_ops.targets.target import Target, pace_of
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import Verdict
from gemma_ops.verdicts.document import AskedFacts

FILE = "conditions.jsonl"
UNKNOWN = "load not recorded"


@dataclass(frozen=True)
class Conditions:
    """One line of `conditions.jsonl`: one attempt to let a target answer what it had not answered of a task."""

    key: str
    target: str
    identity: str
    task: str
    began: str
    """Time of the first question: UTC, ISO 8601, to the second."""
    rows: int
    """Number of questions that were open then."""
    at_once: int
    """Prompts decoded together, or concurrent requests."""
    here: bool
    """Whether the questions stayed on this machine."""
    device: str
    """Device that computed; empty where the target's engine is not ours, so that it is not known."""
    threads: int | None
    """CPU threads that the target's engine computes with."""
    cores: int | None
    """CPU cores of this machine."""
    load: float | None
    """Load average of this machine over the minute before the first question."""


class ConditionsFile(KeyedFile[Conditions]):
    """The conditions of an evaluation's answers, attempt by attempt."""

    kind, noun, again = Conditions, "a record of conditions", "evaluate again"


def observe(target: Target, task: Task, rows: int, batch: int) -> Conditions:
    """Describe the moment before a target is asked `rows` questions in batches of `batch`."""
    pace, began = pace_of(target), _now()
    return Conditions(
        key=digest.of_json([target.name, target.identity, task.name, began, rows])[:32],
        target=target.name,
        identity=target.identity,
        task=task.name,
        began=began,
        rows=rows,
        at_once=min(pace.at_once or batch, rows),
        here=target.place == HERE,
        device=pace.device,
        threads=pace.threads,
        cores=os.cpu_count(),
        load=_load(),
    )


def asked_facts(
    known: Iterable[Conditions], targets: Sequence[Target], tasks: Sequence[Task], shown: dict[tuple[str, str], int]
) -> list[AskedFacts]:
    """Sum up what is known about every target's answers to every task, for the verdict. `shown` counts the questions by
    (target, task); what no record covers is left out, and `whole` is false where records cover a part only."""
    found: list[AskedFacts] = []
    records = list(known)
    for task in tasks:
        for target in targets:
            own = [one for one in records if (one.target, one.task) == (target.name, task.name)]
            if not own:
                continue
            loads = sorted({one.load for one in own if one.load is not None})
            found.append(
                AskedFacts(
                    task=task.name,
                    target=target.name,
                    began=min(one.began for one in own),
                    at_once=tuple(sorted({one.at_once for one in own})),
                    device=tuple(sorted({one.device for one in own if one.device})),
                    threads=tuple(sorted({one.threads for one in own if one.threads})),
                    cores=max((one.cores for one in own if one.cores), default=None),
                    load=(loads[0], loads[-1]) if loads else None,
                    here=all(one.here for one in own),
                    whole=sum(one.rows for one in own) >= shown[target.name, task.name],
                )
            )
    return found


def date_of(asked: Sequence[AskedFacts]) -> str | None:
    """Return when the first of the answers was asked for, UTC; None where nothing recorded it."""
    return min((one.began for one in asked), default=None)


def load_words(verdict: Verdict, task: str, target: str) -> str:
    """Return under which load a target's answers to a task were timed, in words."""
    found = next((one for one in verdict.asked if (one.task, one.target) == (task, target)), None)
    if found is None:
        return UNKNOWN
    what = "at once" if found.device else "requests at once"
    parts = [f"{_either(found.at_once)} {what}"]
    if found.device:
        threads = f" ({_either(found.threads)} of {found.cores} threads)" if found.threads else ""
        parts.append(f"{' or '.join(found.device)}{threads}")
    else:
        parts.append("a server's device, not known" if found.here else "a service's device, not known")
    if found.load is None:
        parts.append("load average not recorded")
    else:
        low, high = (f"{value:.2f}" for value in found.load)
        cores = f" on {found.cores} cores" if found.cores else ""
        parts.append(f"load average {low if low == high else f'{low} to {high}'}{cores} before")
    if not found.whole:
        parts.append("recorded for a part of the answers")
    return ", ".join(parts)


def _either(values: Sequence[int]) -> str:
    return " or ".join(f"{value:,}" for value in values)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _load() -> float | None:
    """Return the load average; None on systems that keep none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None
