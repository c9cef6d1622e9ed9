"""Looks: every verdict on the same targets and task is recorded, and what it spent of the level is gone for later ones.

The record is a file next to the step's folder in the run, `evaluate.looks.jsonl`, which `--redo evaluate` leaves alone;
the verdict repeats it, so that the registered version carries it. Records of other runs in the same folder count too.
Two verdicts share their level when a gate of each asks about the same model (by the digest of its files) on the task of
the same name, against the same rival. The same answers judged again, as after a crash or with another metric, are the
same look.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_ops.config import EvaluateConfig
from gemma_ops.errors import DataError
from gemma_ops.evaluation.answer_cost import Facts
from gemma_ops.runs import digest
from gemma_ops.runs.durable import write_text
from gemma_ops.stats.look_levels import look_level
from gemma_ops.tasks.grades import Graded
from gemma_ops.verdicts import Look


@dataclass(frozen=True)
class NextLook:
    """The look that is to be taken: itself, its number, and the looks before it."""

    look: Look
    earlier: tuple[Look, ...]
    later: float
    """Level that the look after it will have."""


def look_place(out: Path) -> Path:
    """Return where the looks of a step's folder are recorded, while it is made and after."""
    return out.with_name(f"{out.name.removesuffix('.partial')}.looks.jsonl")


def read_looks(path: Path) -> list[Look]:
    """Read all recorded looks, the oldest first. Raises DataError where a line can't be read: what was spent is not
    known then."""
    if not path.is_file():
        return []
    try:
        return [Look.made(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except ValueError as error:
        raise DataError(
            f"{path} can't be read: {str(error).splitlines()[0]}",
            "restore it from a copy; it says how much of the gates' level earlier evaluations spent",
        ) from error


def known_looks(out: Path, registered: Sequence[Look] = ()) -> list[Look]:
    """Return the looks of a step's folder, and before them those of the runs next to it and of `registered` versions: a
    model that another run evaluated, or a copy of the run, begins with no clean slate. Each is there once."""
    own = look_place(out)
    others = (path for path in sorted(own.parent.parent.glob(f"*/{own.name}")) if path.parent != own.parent)
    beside = [look for path in others if (path.parent / "config.json").is_file() for look in read_looks(path)]
    once = {(look.evidence, look.subjects): look for look in reversed([*registered, *beside, *read_looks(own)])}
    return list(reversed(once.values()))


def take_look(graded: Sequence[Graded], settings: EvaluateConfig, facts: Facts, known: Sequence[Look]) -> NextLook:
    """Return the look that these answers are, after those that are known."""
    subjects = subjects_of([item.task.name for item in graded], settings, facts)
    asked = {(gate.task or graded[0].task.name, name) for gate in settings.gates for name in (gate.target, gate.versus)}
    timed = {gate.target for gate in settings.gates if gate.test == "at_most"}
    pages = [item for item in graded if (item.task.name, item.target) in asked]
    answers = [
        [item.task.name, item.target, answer.row, answer.text, answer.end]
        + ([answer.seconds, answer.waited, answer.dollars] if item.target in timed else [])
        for item in pages
        for answer in item.answers
    ]
    evidence = digest.of_json(sorted(answers, key=str))[:32]
    related = [look for look in known if set(look.subjects) & set(subjects)]
    same = next((index for index, look in enumerate(related) if look.evidence == evidence), None)
    earlier = related if same is None else related[:same]
    total = 1 - settings.confidence
    level = look_level(total, [look.level for look in earlier]) if same is None else related[same].level
    rows = max((len(item.task.rows) for item in pages), default=0)
    look = Look(subjects=subjects, evidence=evidence, rows=rows, level=level)
    spent = [one.level for one in related] + ([level] if same is None else [])
    return NextLook(look, tuple(earlier), look_level(total, spent))


def subjects_of(tasks: Sequence[str], settings: EvaluateConfig, facts: Facts) -> tuple[str, ...]:
    """Return what the gates ask about."""

    def who(name: str | None) -> str:
        return "" if name is None else str(facts.get("targets", {}).get(name, {}).get("identity") or name)

    found = {f"{gate.task or tasks[0]} {who(gate.target)} {who(gate.versus)}".strip() for gate in settings.gates}
    return tuple(sorted(found))


def record_look(path: Path, standing: NextLook, verdict: str) -> None:
    """Record the look, unless it is there. The file is replaced whole, so that a crash loses none."""
    known = read_looks(path)
    if any(look.evidence == standing.look.evidence and look.subjects == standing.look.subjects for look in known):
        return
    lines = [look.model_dump_json() for look in (*known, standing.look.model_copy(update={"verdict": verdict}))]
    write_text(path, "".join(f"{line}\n" for line in lines))
