"""Forecast of what the judge of a synthesis would be asked, before any row is written: as many grades as rows were
asked for.

Filters leave fewer rows to grade. A row is as long as the teacher's limit lets it be in the worst case, and `ROW`
tokens in the likely one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gemma_ops.config import MachineConfig, Privacy, RunConfig
from gemma_ops.modeling.checkpoint_source import local_base
from gemma_ops.privacy.classes import answers_class, learned_class, stricter
from gemma_ops.synth import judge_filter, plan_requests
from gemma_ops.synth.bill import BYTES, PlannedBill, synthesis_bill, written
from gemma_ops.synth.material import Draft, Item, Material, written_by
from gemma_ops.targets.endpoint_target import classes_of, learned_by_endpoint
from gemma_ops.targets.gemini_target import seen_by
from gemma_ops.targets.spec import TargetSpec, parse_target
from gemma_ops.targets.structured import in_words
from gemma_ops.targets.target import LOCAL

ROW = 160
"""Tokens of one written row with its quotation, and of thoughts per row where a service thinks: an assumption."""
GRADE = 80
"""Tokens of one grade with its reason: an assumption."""
_TURNS = 512
"""Bytes around the parts of a row as the judge is shown it."""


@dataclass(frozen=True)
class Grading:
    """The judge's part of the plan. Dollars are None where they are not known, and 0 where nothing is billed."""

    judge: str
    requests: int
    prompt_tokens: int
    expected_new_tokens: int
    hidden: tuple[str, ...]
    """Sources whose rows it may not see: the run would refuse."""
    dollars: float | None = None
    worst_dollars: float | None = None
    tier: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"hidden": list(self.hidden)}


def seen(spec: TargetSpec, machine: MachineConfig) -> frozenset[str]:
    """Return the privacy classes that may be shown to a target, without opening it."""
    if spec.kind == "gemini":
        return seen_by(spec.model, machine.gemini)
    return classes_of(spec, machine) if spec.kind == "openai" else LOCAL


def _learned(config: RunConfig, teacher: TargetSpec) -> Privacy:
    """Return the class of what a teacher learned, as far as it is here: one that is yet to be fetched comes from
    elsewhere."""
    if not teacher.local:
        return "any" if teacher.kind == "gemini" else learned_by_endpoint(teacher, config.machine)
    own = config.synth.teacher == "base"
    folder = local_base(config.model.base if own else config.synth.teacher)
    found = learned_class(folder) if folder else "any"
    return stricter(found, config.model.privacy or "any") if own else found


def grading(
    config: RunConfig,
    items: Sequence[Item],
    later: Item | None,
    teacher: TargetSpec,
    count: Callable[[Sequence[dict[str, Any]]], int],
) -> Grading | None:
    """Return the judge's part of the plan; None without a judge. `later` stands for the second round, `wanted` times.

    Raises ConfigError for a judge that can't be, BudgetError for a Gemini model whose price is not known.
    """
    settings = config.synth
    if settings.judge is None:
        return None
    spec = parse_target(settings.judge)
    most = BYTES * written(teacher, settings.max_new_tokens)
    planned: list[PlannedBill] = []
    for item in items:
        planned += _rows(item.material, item.wanted, 1, most, count)
    if later:
        planned += _rows(later.material, later.wanted, later.wanted, most, count)
    answers = answers_class(_learned(config, teacher), config.release)
    hidden = plan_requests.unseen([written_by(item, answers) for item in items], seen(spec, config.machine))
    made = Grading(
        settings.judge,
        sum(item.times for item in planned),
        sum(item.times * item.tokens for item in planned),
        sum(item.times for item in planned) * GRADE,
        tuple(hidden),
    )
    if spec.kind != "gemini":
        cost = 0.0 if spec.local else None
        return replace(made, dollars=cost, worst_dollars=cost)
    found = synthesis_bill(
        planned, spec, config.machine.gemini, reply=judge_filter.LIMIT, output=GRADE + ROW, use="judge"
    )
    return replace(made, dollars=found.likely, worst_dollars=found.worst, tier=found.tiers)


def _rows(
    material: Material, rows: int, replies: int, most: int, count: Callable[[Sequence[dict[str, Any]]], int]
) -> list[PlannedBill]:
    """Return the grades of rows from one material. The rows of a reply share its limit, so one of them at most is as
    long as that."""
    question, schema = judge_filter.grading_question(Draft([]), material), judge_filter.Grade.model_json_schema()
    tokens = count(in_words(question.messages, schema)) + ROW
    found = [
        PlannedBill("judge", question.messages, schema, tokens, _TURNS + most, replies),
        PlannedBill("judge", question.messages, schema, tokens, _TURNS, rows - replies),
    ]
    return [item for item in found if item.times]
