"""The plan behind `gemma-ops synth plan`, before anything is asked: sources, coverage, requests, tokens, dollars, time.

Tokens of prompts are counted with the tokenizer of `model.base`, which Gemini's models of this generation share; what
is written can only be bounded: every reply may fill its limit, and every one may need its one repair, which reads the
prompt and the reply again. The expected figures assume `ROW` tokens for a row and no repairs. Dollars are those of the
teacher and the judge together; `bill.py` counts them, `grading_forecast.py` says what the judge would be asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gemma_ops.config import RunConfig, SynthConfig
from gemma_ops.data import chat
from gemma_ops.errors import ServiceError
from gemma_ops.modeling.checkpoint_source import local_base, tokenizer_folder
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.synth import methods, plan_requests
from gemma_ops.synth.bill import BYTES, PlannedBill, synthesis_bill, written
from gemma_ops.synth.candidates import candidate_question
from gemma_ops.synth.grading_forecast import ROW, Grading, grading, seen
from gemma_ops.synth.material import Item, Material, Pool
from gemma_ops.synth.methods.document_qa import ANGLES
from gemma_ops.targets.spec import TargetSpec, parse_target
from gemma_ops.targets.structured import in_words
from gemma_ops.tasks.compared_questions import add_task

_FORWARD = 110 * 8e-6
"""Seconds to start the kernels of one layer's forward pass: a third of a training step's (see `planning.speed`)."""


@dataclass(frozen=True)
class Estimate:
    """The plan of a synthesis. Dollars and seconds are None where they are not known, and 0 dollars where nothing is
    billed."""

    teacher: str
    pool: Pool
    items: tuple[Item, ...]
    hidden: tuple[str, ...]
    """Sources that the teacher may not see."""
    later: int
    """Number of requests of the second round, whose rows don't exist yet."""
    prompt_tokens: int
    counted: str
    """How prompts were counted, in words."""
    worst_prompt_tokens: int
    expected_new_tokens: int
    worst_new_tokens: int
    dollars: float | None = None
    """Likely US dollars of teacher and judge, like `worst_dollars`; what an endpoint asks is not in them."""
    worst_dollars: float | None = None
    judge: Grading | None = None
    budget: float | None = None
    seconds: tuple[float, float] | None = None
    """Lower and upper estimate of the seconds, for a local teacher."""
    device: str = ""
    notes: tuple[str, ...] = ()
    by_method: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        documents = {section.document.name: section.document for section in self.pool.sections}
        asked = Counter(item.material.section.document.name for item in self.items if item.material.section)
        return {
            "teacher": self.teacher,
            "documents": [
                {
                    "name": name,
                    "sections": sum(section.document.name == name for section in self.pool.sections),
                    "privacy": document.privacy,
                    "requests": asked[name],
                }
                for name, document in documents.items()
            ],
            "unread": list(self.pool.unread),
            "hidden": list(self.hidden),
            "seeds": len(self.pool.seeds),
            "coverage": {
                "documents": [len(asked), len(documents)],
                "sections": [len(self.sections_asked()), len(self.pool.sections)],
            },
            "by_method": self.by_method,
            "requests": len(self.items) + self.later,
            "prompt_tokens": self.prompt_tokens,
            "prompt_tokens_counted": self.counted,
            "worst_prompt_tokens": self.worst_prompt_tokens,
            "expected_new_tokens": self.expected_new_tokens,
            "worst_new_tokens": self.worst_new_tokens,
            "dollars": self.dollars,
            "worst_dollars": self.worst_dollars,
            "judge": self.judge and self.judge.to_json(),
            "budget_dollars": self.budget,
            "seconds": self.seconds,
            "device": self.device,
            "notes": list(self.notes),
        }

    def sections_asked(self) -> set[tuple[str, int]]:
        found = (item.material.section for item in self.items)
        return {(section.document.name, section.number) for section in found if section}


def estimate_synthesis(
    config: RunConfig,
    paths: dict[str, Path | None],
    device: str | None = None,
    tasks: Sequence[Path] = (),
    source: Path | None = None,
) -> Estimate:
    """Plan the step `synthesize` of a configuration; `paths` are its documents, seeds and tools, `tasks` the folders of
    evaluation tasks whose private questions count, `source` where unshipped ones lie. Asks nothing.

    Raises ConfigError, DataError, and BudgetError for a Gemini model whose price is not known.
    """
    settings = config.synth
    private = PrivateTexts()
    for folder in tasks:
        add_task(private, folder, source)
    given = {name: paths[name] for name in ("documents", "seeds", "tools")}
    pool = plan_requests.gather(settings, **given, private=private)
    spec = _spec(settings.teacher)
    sees = seen(spec, config.machine)
    items, hidden = _first(settings, pool, sees)
    later = _second(settings, items)
    count, how = _counter(config)
    most = BYTES * written(spec, settings.max_new_tokens)
    planned = [_planned(item, count, 0) for item in items]
    longest = max((item.tokens for item in planned), default=0) + settings.max_new_tokens  # a row and its section
    if later:
        planned.append(replace(_planned(later, count, most), tokens=longest, times=later.wanted))
    prompts, limit = [item.tokens for item in planned for _ in range(item.times)], settings.max_new_tokens
    rows = sum(item.wanted for item in items) + (later.wanted if later else 0)
    expected = min(rows * ROW, len(prompts) * limit)
    judge = grading(config, items, later, spec, count)
    made = Estimate(
        teacher=settings.teacher,
        pool=pool,
        items=tuple(items),
        hidden=tuple(hidden),
        later=later.wanted if later else 0,
        prompt_tokens=sum(prompts),
        counted=how,
        worst_prompt_tokens=sum(2 * size + limit + ROW for size in prompts),
        expected_new_tokens=expected,
        worst_new_tokens=2 * limit * len(prompts),
        judge=judge,
        notes=_notes(config, pool, items, hidden, judge),
        by_method=_by_method(items, plan_requests.counts(settings), later.wanted if later else 0),
    )
    if spec.kind == "gemini":
        each = 2 * expected // max(1, len(prompts))
        found = synthesis_bill(planned, spec, config.machine.gemini, reply=limit, output=each, use="synth")
        made = replace(
            made,
            dollars=found.likely,
            worst_dollars=found.worst,
            worst_new_tokens=found.worst_new_tokens,
            device=found.tiers,
        )
    elif spec.local:
        made = _timed(made, config, prompts, expected, device)
    return _with_judge(made, config, spec)


def _first(settings: SynthConfig, pool: Pool, sees: frozenset[str]) -> tuple[list[Item], list[str]]:
    """Return the requests that are known before anything is asked, and the sources that may not be shown."""
    everything = plan_requests.first(settings, pool)
    if not _parents([item for item in everything if item.material.privacy in sees]):
        everything += plan_requests.second(settings, pool, [])  # from the seeds then
    return [item for item in everything if item.material.privacy in sees], plan_requests.unseen(everything, sees)


def _second(settings: SynthConfig, items: Sequence[Item]) -> Item | None:
    """Return what stands for the requests that will be made from rows, `wanted` of them: the longest source, without
    the row."""
    found = _parents(items)
    if not found or not settings.count.evolve:
        return None
    longest = max(found, key=lambda material: len(material.section.text.encode()) if material.section else 0)
    return Item("evolve", longest, settings.count.evolve, 0)


def _parents(items: Sequence[Item]) -> list[Material]:
    """Return what the rows of the second round may be from."""
    return [item.material for item in items if item.method in ("document_qa", "self_instruct")]


def _planned(item: Item, count: Callable[[Sequence[dict[str, Any]]], int], later: int) -> PlannedBill:
    """Return the planned request, with the shape in words for a local model, and next to them for a service (which is
    billed as well)."""
    messages = candidate_question(item).messages
    schema = methods.METHODS[item.method].shape.model_json_schema()
    return PlannedBill(item.method, messages, schema, 0 if later else count(in_words(messages, schema)), later)


def _with_judge(made: Estimate, config: RunConfig, spec: TargetSpec) -> Estimate:
    """Add the judge's figures, and the budget where any of it is billed by Gemini."""
    judge, kinds = made.judge, [spec.kind]
    parts = [(made.dollars, made.worst_dollars)]
    if judge:
        kinds.append(parse_target(judge.judge).kind)
        parts.append((judge.dollars, judge.worst_dollars))
    if "gemini" in kinds:
        made = replace(made, budget=config.machine.gemini.budget_usd)
    elif "openai" in kinds:
        return replace(made, dollars=None, worst_dollars=None)
    return replace(
        made, dollars=sum(likely or 0.0 for likely, _ in parts), worst_dollars=sum(worst or 0.0 for _, worst in parts)
    )


def _spec(teacher: str) -> TargetSpec:
    """Return the teacher's specification; a Hub id or folder answers as the checkpoint that the recipe fetches."""
    return parse_target("base") if local_base(teacher) else parse_target(teacher)


def _counter(config: RunConfig) -> tuple[Callable[[Sequence[dict[str, Any]]], int], str]:
    """Return a counter of a conversation's tokens: by the tokenizer, or where it can't be had by the letters, rounded
    up."""
    try:
        folder = tokenizer_folder(config.model)
        tokenizer = chat.load_tokenizer(folder)
    except ServiceError:
        return lambda messages: sum(len(str(m["content"]).encode()) for m in messages) // 2 + 16, (
            "bounded by their bytes: the tokenizer of model.base is not here"
        )
    return lambda messages: len(
        chat.chat_prompt_ids(tokenizer, list(messages))
    ), f"counted with the tokenizer of {config.model.base}"


def _by_method(items: list[Item], counts: dict[str, int], later: int) -> dict[str, dict[str, int]]:
    requests = Counter(item.method for item in items)
    requests["evolve"] += later
    return {name: {"rows": count, "requests": requests[name]} for name, count in counts.items() if count}


def _notes(
    config: RunConfig, pool: Pool, items: list[Item], hidden: list[str], judge: Grading | None
) -> tuple[str, ...]:
    notes = []
    most = 1 + max((item.turn for item in items if item.material.section), default=0)
    if most > ANGLES:
        notes.append(
            f"sections are asked up to {most} times, and there are {ANGLES} ways to ask: more documents, shorter "
            "sections (synth.section_words) or fewer rows would repeat less"
        )
    if pool.unread:
        notes.append(f"{len(pool.unread)} files are of other types and are not read: {', '.join(pool.unread[:3])}")
    if hidden:
        what = "the run would refuse" if config.synth.hidden == "refuse" else "left out"
        notes.append(f"{len(hidden)} sources may not be shown to this teacher ({what}), the first: {hidden[0]}")
    if judge and judge.hidden:
        notes.append(
            f"rows of {len(judge.hidden)} sources may not be shown to the judge (the run would refuse), the first: "
            f"{judge.hidden[0]}"
        )
    return tuple(notes)


def _timed(made: Estimate, config: RunConfig, prompts: list[int], expected: int, device: str | None) -> Estimate:
    """Add the time on this machine: reading is bound by arithmetic; writing, for each token of a batch, by reading all
    weights once or by starting the kernels of a forward pass, whichever takes longer."""
    from gemma_ops.planning.speed import FACTOR_ROUGH
    from gemma_ops.planning.training_plan import pick_device, resolve_base

    target = pick_device(config, device)
    base = config.model.base if config.synth.teacher == "base" else config.synth.teacher
    if config.synth.teacher.startswith("gguf:") or not target.peak:
        return replace(made, dollars=0.0, worst_dollars=0.0, device=target.name)
    shape, _ = resolve_base(base)
    reading = sum(prompts) * 2.0 * shape.active_per_token() / (target.peak * 1e12 * target.sustained)
    weights = 2.0 * (shape.counts().text - shape.counts().per_layer_table) / (target.bandwidth * 1e9)
    seconds = reading + expected / config.machine.eval_batch * max(weights, len(shape.layers) * _FORWARD)
    span = (seconds / FACTOR_ROUGH, seconds * FACTOR_ROUGH)
    return replace(made, dollars=0.0, worst_dollars=0.0, seconds=span, device=target.name)
