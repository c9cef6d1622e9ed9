"""The step `synthesize`: from documents, seeds and tools to checked rows that know where they came from.

The teacher is asked in two rounds: from the material, then from rows that passed the checks. Everything after its
replies is arithmetic on them, so a step that is killed and started again ends with the same rows as one that was not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig, SynthConfig
from gemma_ops.data.example import write_rows
from gemma_ops.errors import BudgetError, DataError
from gemma_ops.gemini import models
from gemma_ops.judging.judge_lineage import related
from gemma_ops.privacy.classes import release_of
from gemma_ops.privacy.text_copies import FILE as PRIVATE
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.runs import journal
from gemma_ops.synth import candidates as checked
from gemma_ops.synth import judge_filter, methods, plan_requests, synth_card
from gemma_ops.synth import rows as finished
from gemma_ops.synth.candidates import Rejected, RowCandidate, candidates
from gemma_ops.synth.filters import Filters
from gemma_ops.synth.material import Item, written_by
from gemma_ops.synth.replies import FILE, Replies, TeacherQuestion, TeacherReply
from gemma_ops.synth.rows import Maker
from gemma_ops.synth.synth_facts import SynthesisCounts
from gemma_ops.targets import open_target
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.spec import parse_target
from gemma_ops.targets.target import Target, guard_prompts, learned_by
from gemma_ops.tasks.compared_questions import add_task, read_task


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
    """Write `rows.jsonl`, `preferences.jsonl`, `rejected.jsonl`, `replies.jsonl`, `report.json` and `card.md` below
    `out`.

    `base` is the checkpoint of a teacher called `base`, `teacher` that of another local one; `tasks` are folders of
    evaluation tasks, `source` where those whose questions aren't shipped find them. Raises ConfigError, DataError
    (unusable files, no row left), BoundaryError (the teacher or judge may not see something) and what the teacher
    raises (BudgetError, ServiceError).
    """
    private = PrivateTexts()
    for folder in tasks:
        add_task(private, folder, source)
    pool = plan_requests.gather(settings, documents=documents, seeds=seeds, tools=tools, private=private)
    private.save(out / PRIVATE)
    questions = [read_task(folder, source) for folder in tasks]
    run = out.absolute().parent.name
    replies = Replies(out / FILE)
    judge_sees = _judge_sees(settings, machine, run, base)
    with closing(_open(settings.teacher, machine, run, base, teacher)) as target:
        facts = SynthesisCounts(pool, _maker(settings.teacher, target, machine, teacher or base), questions, judge_sees)
        rejected = Rejected()
        found = _ask(target, settings, machine, replies, facts, plan_requests.first(settings, pool), rejected)
        parents = [item.as_material() for item in found if not item.pair and item.item.method != "tool_calls"]
        found += _ask(
            target, settings, machine, replies, facts, plan_requests.second(settings, pool, parents), rejected
        )
    facts.passed += [("written", facts.written), ("checks", len(found))]
    filters = Filters(
        [item.draft.messages for item in found],
        questions,
        near_duplicates=settings.near_duplicates,
        personal=settings.pii,
    )
    kept = _filtered(found, filters, rejected, facts)
    grades: dict[str, dict[str, Any]] = {}
    if settings.judge and kept:
        kept, grades = _judged(kept, settings, machine, run, replies, facts, rejected, base=base)
    names = ["shape", "language", "evidence", *filters.names, *(["judge"] if settings.judge else [])]
    for item in kept:
        line = finished.synthetic_row(item, facts.teacher, names, grades.get(_mark(item)))
        (facts.pairs if item.pair else facts.rows).append(line)
    facts.rejected = rejected.rows
    facts.overlaps, facts.personal = filters.overlaps, filters.personal
    write_rows(out / "rejected.jsonl", facts.rejected)
    if not facts.rows and not facts.pairs:
        codes = ", ".join(
            f"{code} {count}" for code, count in Counter(row["code"] for row in facts.rejected).most_common(5)
        )
        raise DataError(
            f"no row is left of {facts.written} that {settings.teacher} wrote: {codes or 'nothing was asked'}",
            f"read {out / 'rejected.jsonl'}; a larger teacher, or shorter sections, may do better",
        )
    write_rows(out / "rows.jsonl", facts.rows)
    write_rows(out / "preferences.jsonl", facts.pairs)
    replies.settle()
    return synth_card.write_synthesis(out, settings, facts)


def _open(spec: str, machine: MachineConfig, run: str, base: Path | None, teacher: Path | None) -> Target:
    """Open the teacher; a local one that a recipe fetched answers under the name `base`: it is the checkpoint that was
    given."""
    if teacher is not None:
        return open_target("base", machine, run=run, use="synth", models=RunModels(base=teacher))
    return open_target(spec, machine, run=run, use="synth", models=RunModels(base=base))


def _judge_sees(settings: SynthConfig, machine: MachineConfig, run: str, base: Path | None) -> frozenset[str] | None:
    """Return what the judge may see. It is opened for this before the teacher is paid, so that one that can't be is
    told now; raises what `open_target` raises, and BudgetError for a judge that costs money where there is no
    budget."""
    if settings.judge is None:
        return None
    with closing(open_target(settings.judge, machine, run=run, use="judge", models=RunModels(base=base))) as judge:
        spec = parse_target(settings.judge)
        if spec.kind == "gemini" and machine.gemini.budget_usd is None and models.model_facts(spec.model).paid_tier:
            raise BudgetError(
                f"the judge {settings.judge} costs money, and this run has no budget; nothing was asked",
                "set machine.gemini.budget_usd to the most that this run may spend",
            )
        return judge.sees


def _maker(spec: str, target: Target, machine: MachineConfig, folder: Path | None) -> Maker:
    terms = None
    if spec.startswith("gemini:"):
        from gemma_ops.gemini.notice import record_notice

        terms = record_notice(machine.gemini)
    file = folder / "model.json" if folder and terms is None else None
    body = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    model = {key: body[key] for key in ("id", "revision", "size") if body.get(key)}
    return Maker(spec, target.family, target.identity, model, terms, learned_by(target), release_of(machine))


def _ask(
    target: Target,
    settings: SynthConfig,
    machine: MachineConfig,
    replies: Replies,
    facts: SynthesisCounts,
    wanted: Sequence[Item],
    rejected: Rejected,
) -> list[RowCandidate]:
    """Run one round: ask for everything the teacher may see, and check what it wrote. Raises BoundaryError before
    anything is asked when the judge may not see the rows that would come of it."""
    items, hidden = plan_requests.visible(wanted, target.sees, settings)
    if facts.judge_sees is not None:
        plan_requests.gradable([written_by(item, facts.teacher.answers) for item in items], facts.judge_sees, settings)
    facts.hidden += [name for name in hidden if name not in facts.hidden]
    found: list[RowCandidate] = []
    for name, method in methods.METHODS.items():
        mine = [item for item in items if item.method == name]
        if not mine:
            continue
        asked = [checked.candidate_question(item) for item in mine]
        answers = replies.ask(
            target, asked, method.shape, max_new_tokens=settings.max_new_tokens, batch=machine.eval_batch
        )
        rows, written = candidates([written_by(item, facts.teacher.answers) for item in mine], answers, rejected)
        facts.items += mine
        facts.replies += answers
        facts.written += written
        found += rows
        journal.record(phase="checked", method=name, requests=len(mine), written=written, usable=len(rows))
    return found


def _filtered(
    found: list[RowCandidate], filters: Filters, rejected: Rejected, facts: SynthesisCounts
) -> list[RowCandidate]:
    kept: list[RowCandidate] = []
    gone: Counter[str] = Counter()
    for item in found:
        why = filters.find(item.id, item.draft.messages, item.draft.tools, item.draft.rejected)
        if why is None:
            kept.append(item)
        else:
            gone[why.code] += 1
            rejected.add(item.item, item.reply, why, item.draft)
    left = len(found)
    for code in ("exact_duplicate", "overlap", "pii", "near_duplicate"):
        left -= gone[code]
        facts.passed.append((code, left))
    return kept


def _judged(
    found: list[RowCandidate],
    settings: SynthConfig,
    machine: MachineConfig,
    run: str,
    replies: Replies,
    facts: SynthesisCounts,
    rejected: Rejected,
    *,
    base: Path | None,
) -> tuple[list[RowCandidate], dict[str, dict[str, Any]]]:
    """Return the rows the judge lets pass, and their grades."""
    assert settings.judge
    asked: list[TeacherQuestion] = [judge_filter.graded_question(item) for item in found]
    with closing(open_target(settings.judge, machine, run=run, use="judge", models=RunModels(base=base))) as judge:
        from gemma_ops.answer import Prompt

        guard_prompts(
            judge, [Prompt(item.messages, item.privacy, item.name) for item in asked], "the rows to be judged"
        )
        answers = replies.ask(
            judge, asked, judge_filter.Grade, max_new_tokens=judge_filter.LIMIT, batch=machine.eval_batch
        )
        kin = related(facts.teacher.family, judge.family)
    kept, grades, counts = [], {}, Counter[str]()
    for item, reply in zip(found, answers, strict=True):
        grade, why = judge_filter.verdict(reply, settings.judge_minimum)
        counts[str(grade or "none")] += 1
        if why is None:
            kept.append(item)
            grades[_mark(item)] = {"name": settings.judge, "grade": grade, "related": kin}
        else:
            rejected.add(item.item, item.reply, why, item.draft)
    facts.passed.append(("judge", len(kept)))
    facts.judge = {
        "name": settings.judge,
        "family": parse_target(settings.judge).family,
        "related": kin,
        "least": settings.judge_minimum,
        "grades": dict(sorted(counts.items())),
        "dollars": _sum(answers),
    }
    return kept, grades


def _mark(item: RowCandidate) -> str:
    return f"{item.id}:{item.draft.rejected}"


def _sum(answers: Sequence[TeacherReply]) -> float | None:
    paid = [answer.dollars for answer in answers if answer.dollars is not None]
    return round(sum(paid), 9) if paid else None
