"""What `gemma-ops synth plan` says before anything is asked: sources, coverage, requests, tokens, dollars, time.

Tokens of prompts are counted with the tokenizer of `model.base`, which Gemini's models of this generation share; what is
written can only be bounded: every reply may fill its limit, and every one may need its one repair, which reads the prompt
and the reply again. The expected figures assume `ROW` tokens for a row and no repairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemma_ops.config import RunConfig
from gemma_ops.data import chat
from gemma_ops.errors import ServiceError
from gemma_ops.modeling.source import local, tokenizer_folder
from gemma_ops.synth import methods, planning
from gemma_ops.synth.candidates import question_of
from gemma_ops.synth.material import Item, Pool
from gemma_ops.synth.methods.document_qa import ANGLES
from gemma_ops.targets.spec import Spec, parse
from gemma_ops.targets.structured import in_words

ROW = 160
"""Tokens of one written row with its quotation, and of thoughts per row where the teacher thinks: an assumption."""
_FORWARD = 110 * 8e-6
"""Seconds to start the kernels of one layer's forward pass: a third of a training step's (see `planning.speed`)."""


@dataclass(frozen=True)
class Estimate:
    """The plan. Dollars and seconds are None where they are not known, and 0 dollars where nothing is billed."""

    teacher: str
    pool: Pool
    items: tuple[Item, ...]
    hidden: tuple[str, ...]
    """Sources the teacher may not see."""
    later: int
    """Requests of the second round, whose rows don't exist yet."""
    prompt_tokens: int
    counted: str
    """How prompts were counted, in words."""
    worst_prompt_tokens: int
    expected_new_tokens: int
    worst_new_tokens: int
    dollars: float | None = None
    worst_dollars: float | None = None
    budget: float | None = None
    seconds: tuple[float, float] | None = None
    """From and to, for a local teacher."""
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
            "budget_dollars": self.budget,
            "seconds": self.seconds,
            "device": self.device,
            "notes": list(self.notes),
        }

    def sections_asked(self) -> set[tuple[str, int]]:
        found = (item.material.section for item in self.items)
        return {(section.document.name, section.number) for section in found if section}


def estimate(config: RunConfig, paths: dict[str, Path | None], device: str | None = None) -> Estimate:
    """Plan the step `synthesize` of a configuration; `paths` are its documents, seeds and tools. Asks nothing.

    Raises ConfigError, DataError, and BudgetError for a Gemini model whose price is not known.
    """
    settings = config.synth
    pool = planning.gather(settings, **paths)
    spec = _spec(settings.teacher)
    everything = planning.first(settings, pool)
    sees = _sees(config, spec)
    items = [item for item in everything if item.material.privacy in sees]
    hidden = tuple(dict.fromkeys(item.material.name for item in everything if item.material.privacy not in sees))
    later = settings.count.evolve if items or pool.seeds else 0
    count, how = _counter(config)
    sizes = [count(_asked(item, spec)) for item in items]
    prompts = (
        sizes + [max(sizes, default=2000) + settings.max_new_tokens] * later
    )  # a row and its section: at most that
    rows = sum(item.wanted for item in items) + later
    limits = [settings.max_new_tokens] * len(prompts)
    expected = min(rows * ROW, sum(limits))
    made = Estimate(
        teacher=settings.teacher,
        pool=pool,
        items=tuple(items),
        hidden=hidden,
        later=later,
        prompt_tokens=sum(prompts),
        counted=how,
        worst_prompt_tokens=sum(2 * size + limit + ROW for size, limit in zip(prompts, limits, strict=True)),
        expected_new_tokens=expected,
        worst_new_tokens=2 * sum(limits),
        notes=_notes(config, pool, items, hidden),
        by_method=_by_method(items, planning.counts(settings), later),
    )
    if spec.kind == "gemini":
        return _priced(made, config, spec, prompts, expected)
    return _timed(made, config, prompts, expected, device) if spec.local else made


def _spec(teacher: str) -> Spec:
    """A Hub id or folder answers as the checkpoint that the recipe fetches."""
    return parse("base") if local(teacher) else parse(teacher)


def _sees(config: RunConfig, spec: Spec) -> frozenset[str]:
    from gemma_ops.targets.base import LOCAL

    if spec.kind == "gemini":
        from gemma_ops.gemini.models import facts

        gemini = config.machine.gemini
        paid = facts(spec.model).paid_tier and (gemini.tier == "paid" or gemini.enterprise)
        return frozenset({"any", "paid"}) if paid else frozenset({"any"})
    return LOCAL


def _counter(config: RunConfig) -> tuple[Callable[[Sequence[dict[str, Any]]], int], str]:
    """Tokens of a conversation: by the tokenizer, or where it can't be had by the letters, rounded up."""
    try:
        folder = tokenizer_folder(config.model)
        tokenizer = chat.load_tokenizer(folder)
    except ServiceError:
        return lambda messages: sum(len(str(m["content"]).encode()) for m in messages) // 2 + 16, (
            "bounded by their bytes: the tokenizer of model.base is not here"
        )
    return lambda messages: len(
        chat.prompt_ids(tokenizer, list(messages))
    ), f"counted with the tokenizer of {config.model.base}"


def _asked(item: Item, spec: Spec) -> list[dict[str, Any]]:
    """The conversation; a local model is told the shape in words, a service beside them (which is billed as well)."""
    return in_words(question_of(item).messages, methods.METHODS[item.method].shape.model_json_schema())


def _by_method(items: list[Item], counts: dict[str, int], later: int) -> dict[str, dict[str, int]]:
    requests = Counter(item.method for item in items)
    requests["evolve"] += later
    return {name: {"rows": count, "requests": requests[name]} for name, count in counts.items() if count}


def _notes(config: RunConfig, pool: Pool, items: list[Item], hidden: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    most = 1 + max((item.turn for item in items if item.material.section), default=0)
    if most > ANGLES:
        notes.append(
            f"sections are asked up to {most} times, and there are {ANGLES} ways to ask: more documents, shorter sections "
            "(synth.section_words) or fewer rows would repeat less"
        )
    if pool.unread:
        notes.append(f"{len(pool.unread)} files are of other types and are not read: {', '.join(pool.unread[:3])}")
    if hidden:
        what = "the run would refuse" if config.synth.hidden == "refuse" else "left out"
        notes.append(f"{len(hidden)} sources may not be shown to this teacher ({what}), the first: {hidden[0]}")
    return tuple(notes)


def _priced(made: Estimate, config: RunConfig, spec: Spec, prompts: list[int], expected: int) -> Estimate:
    """Dollars at today's prices, by the tiers that would be taken. Thoughts are billed as output."""
    from gemma_ops.gemini import prices
    from gemma_ops.gemini.door import MANY
    from gemma_ops.gemini.models import facts
    from gemma_ops.gemini.usage import Usage
    from gemma_ops.targets.gemini import output_limit

    gemini, now = config.machine.gemini, datetime.now(UTC)
    limit = output_limit(facts(spec.model), spec.thinking, config.synth.max_new_tokens)
    always = gemini.batch == "always"
    batches = "batch" in facts(spec.model).tiers and not gemini.enterprise and (always or gemini.batch == "auto")
    methods_asked = [*(item.method for item in made.items), *["evolve"] * made.later]
    requests = Counter(methods_asked)  # each method is asked for at once, and so are repairs, which may be few
    many = {
        name for name, count in requests.items() if batches and (always or (gemini.tier == "paid" and count >= MANY))
    }
    tiers = ["batch" if name in many else gemini.service_tier for name in methods_asked]
    repair = "batch" if batches and always else gemini.service_tier
    output = 2 * expected // max(1, len(prompts))
    cost, most = 0, 0
    for size, tier in zip(prompts, tiers, strict=True):
        cost += prices.price(spec.model, Usage(prompt=size, output=output), tier=tier, at=now)
        most += prices.worst(spec.model, size, limit, tier=tier, at=now)
        most += prices.worst(spec.model, size + limit + ROW, limit, tier=repair, at=now)
    return replace(
        made,
        dollars=cost / prices.NANO,
        worst_dollars=most / prices.NANO,
        worst_new_tokens=2 * limit * len(prompts),
        budget=gemini.budget_usd,
        device=f"{' and '.join(sorted(set(tiers)) or [gemini.service_tier])} tier",
    )


def _timed(made: Estimate, config: RunConfig, prompts: list[int], expected: int, device: str | None) -> Estimate:
    """Time on this machine: reading is bound by arithmetic; writing, for each token of a batch, by reading all weights once or
    by starting the kernels of a forward pass, whichever takes longer."""
    from gemma_ops.planning.make import pick, resolve
    from gemma_ops.planning.speed import FACTOR_ROUGH

    target = pick(config, device)
    base = config.model.base if config.synth.teacher == "base" else config.synth.teacher
    if config.synth.teacher.startswith("gguf:") or not target.peak:
        return replace(made, dollars=0.0, worst_dollars=0.0, device=target.name)
    shape, _ = resolve(base)
    reading = sum(prompts) * 2.0 * shape.active_per_token() / (target.peak * 1e12 * target.sustained)
    weights = 2.0 * (shape.counts().text - shape.counts().per_layer_table) / (target.bandwidth * 1e9)
    seconds = reading + expected / config.machine.eval_batch * max(weights, len(shape.layers) * _FORWARD)
    span = (seconds / FACTOR_ROUGH, seconds * FACTOR_ROUGH)
    return replace(made, dollars=0.0, worst_dollars=0.0, seconds=span, device=target.name)
