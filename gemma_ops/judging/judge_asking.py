"""Asking one judge all questions: what is known is not asked again, what is said is on disk at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from gemma_ops.answer import Prompt
from gemma_ops.errors import BoundaryError
from gemma_ops.judging import judgements
from gemma_ops.judging.judge_canaries import CanaryQuestion
from gemma_ops.judging.judge_material import JudgedPair
from gemma_ops.judging.judge_protocol import Mode, Protocol
from gemma_ops.judging.judgements import Judgement, JudgementFile, JudgePlace
from gemma_ops.runs import journal
from gemma_ops.targets.asked import in_parts
from gemma_ops.targets.structured import ask_structured
from gemma_ops.targets.target import Target
from gemma_ops.tasks.grades import FAILED


def decided(pair: JudgedPair, what: str = "pairs") -> float | None:
    """Return the outcome where no judge is needed. Of a pair: a failed answer loses to one that is there, and equal
    texts tie. Of one side alone, when `what` names it: a failed answer scores 0."""
    lost = [end in FAILED for end in (pair.first_end, pair.second_end)]
    if what != "pairs" or pair.second is None:
        return 0.0 if lost[what == "second"] else None
    if any(lost) or pair.first.strip() == pair.second.strip():
        return 0.5 + (lost[1] - lost[0]) / 2
    return None


def judge_questions(pairs: Sequence[JudgedPair], mode: Mode, repeats: int) -> list[CanaryQuestion]:
    """Return every question about the pairs: both orders of two answers, or each answer alone."""
    found: list[CanaryQuestion] = []
    for repeat in range(repeats):
        for pair in pairs:
            if mode == "pairwise" and decided(pair) is None and pair.second is not None:
                found.append(CanaryQuestion(JudgePlace("pair", pair.id, "AB", repeat), pair, (pair.first, pair.second)))
                found.append(CanaryQuestion(JudgePlace("pair", pair.id, "BA", repeat), pair, (pair.second, pair.first)))
            elif mode == "pointwise":
                if pair.first_end not in FAILED:
                    found.append(CanaryQuestion(JudgePlace("pair", pair.id, "first", repeat), pair, (pair.first,)))
                if pair.second is not None and pair.second_end not in FAILED:
                    found.append(CanaryQuestion(JudgePlace("pair", pair.id, "second", repeat), pair, (pair.second,)))
    return found


def collect_judgements(
    judge: Target,
    asked: Sequence[CanaryQuestion],
    protocol: Protocol,
    file: JudgementFile,
    *,
    max_new_tokens: int,
    batch: int,
) -> list[Judgement]:
    """Return the verdicts on `asked`, in order. Raises BoundaryError when the judge may not see one of the items."""
    shape = protocol.shape
    schema = shape.model_json_schema()
    prompts = [
        Prompt(protocol.messages(question.pair, question.answers), question.pair.privacy, question.pair.id,
            question.place.repeat)
        for question in asked
    ]  # fmt: skip
    _guard(judge, asked)
    keys = [
        judgements.judgement_key(judge.name, judge.identity, prompt.messages, schema, question.place.repeat)
        for question, prompt in zip(asked, prompts, strict=True)
    ]
    missing = file.missing(keys)  # an identical canary may be a pair's very question: one key, asked once
    done = len(asked) - len(missing)
    if missing:
        journal.record(event="judging", target=judge.name, done=done, total=len(asked))
    # Gemini's answers are stored as they come, so all may go at once; others are filed batch by batch.
    step = len(missing) if judge.name.startswith("gemini:") else batch
    for part in in_parts(missing, step):
        found = ask_structured(
            judge, [prompts[index] for index in part], shape, max_new_tokens=max_new_tokens, batch=batch
        )
        file.append(
            judgements.judgement(keys[index], judge.name, asked[index].place, item)
            for index, item in zip(part, found, strict=True)
        )
        done += len(part)
        journal.record(target=judge.name, done=done, total=len(asked))
    return [_placed(record, question) for record, question in zip(file.all_of(keys), asked, strict=True)]


def _guard(judge: Target, asked: Sequence[CanaryQuestion]) -> None:
    """Refuse before the first question is sent; a row is asked about several times, and counted once."""
    rows = {question.pair.id: question.pair.privacy for question in asked}
    hidden = [name for name, privacy in rows.items() if privacy not in judge.sees]
    if hidden:
        raise BoundaryError(
            f"{len(hidden)} of {len(rows)} rows that need a judge are {rows[hidden[0]]} and {judge.name} may not see "
            f"them (the first: {hidden[0]})",
            "take a judge on this machine; or, if they may leave it, relax `privacy`: of a task in its task.yaml, of "
            "files in "
            'every row of both ("privacy": "paid" or "any"; a row without it is local_only)',
        )


def _placed(found: Judgement, question: CanaryQuestion) -> Judgement:
    """Return the verdict where this question wants it."""
    return found if found.place == question.place else replace(found, **asdict(question.place))
