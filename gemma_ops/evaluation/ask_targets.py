"""Asking of targets what they have not answered: batch by batch, each stored as it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from gemma_ops.answer import Prompt
from gemma_ops.config import EvaluateConfig
from gemma_ops.config.policy import CHAMPION_MODEL
from gemma_ops.data.control import control_in
from gemma_ops.data.parts import media_of, text_of
from gemma_ops.data.prompt_record import read_prompting
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.privacy.classes import HERE
from gemma_ops.runs import journal
from gemma_ops.targets import spec as specs
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.target import AskingMode, Target, guard_prompts, reads
from gemma_ops.tasks import stored_answers
from gemma_ops.tasks.conditions import ConditionsFile, observe
from gemma_ops.tasks.stored_answers import AnswerFile, StoredAnswer
from gemma_ops.tasks.task import Task

_PART = 1000


def check_targets(targets: Sequence[Target], tasks: Sequence[Task]) -> None:
    """Refuse rows that a target may not see, for all targets before the first is asked. Raises BoundaryError."""
    for target in targets:
        for task in tasks:
            hidden = next((row.id for row in task.rows if row.privacy not in target.sees), "")
            held = f" (row {hidden} holds text of {task.held[hidden]})" if hidden in task.held else ""
            guard_prompts(target, [prompt_of(row) for row in task.rows], f"task {task.name}{held}")


def readable(targets: Sequence[Target], tasks: Sequence[Task]) -> None:
    """Refuse tasks with images or sounds that a target doesn't take, before anything is asked. Raises ConfigError."""
    for target in targets:
        for task in tasks:
            if lacking := sorted(task.shows - reads(target)):
                raise ConfigError(
                    f"task {task.name} shows {' and '.join(lacking)}, which target {target.name} does not take",
                    f"leave {target.name} out, or evaluate that task in a run of its own; a GGUF file needs the towers "
                    f"beside it (quantize.mmproj), and llama.cpp reads images of some sizes only as they were trained",
                )


def asking_mode(name: str, settings: EvaluateConfig, models: RunModels) -> AskingMode:
    """Return how the target of that name is asked if it is a local model: as what it is, or was tuned to, was
    trained."""
    spec = specs.parse_target(name)
    places = {"folder": Path(spec.place).expanduser(), "gguf": Path(spec.place).expanduser().parent}
    if models.champion:
        places["champion"] = models.champion / CHAMPION_MODEL
    trained = read_prompting(places.get(spec.kind, models.tuned))
    thinking = (
        trained is not None and trained.asks_to_think
        if settings.thinking == "as_trained"
        else settings.thinking == "on"
    )
    return AskingMode(thinking, settings.thought_tokens, settings.control_tokens)


def refuse_control_questions(targets: Sequence[Target], tasks: Sequence[Task]) -> None:
    """Refuse questions whose text a local model would read as structure, before anything is asked. Raises DataError."""
    if not any(target.lockstep for target in targets):
        return
    for task in tasks:
        found = [(row, token) for row in task.rows if (token := control_in(row.messages, row.tools))]
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise DataError(
                f"task {task.name}: question {found[0][0].id}{more} spells the control token {found[0][1]}, which "
                "a local model would read as structure",
                "take it out; or ask with such tokens as their characters: --set evaluate.control_tokens=spell",
            )


def answer_keys(target: Target, task: Task) -> list[str]:
    """Return the keys of a target's answers, in the task's row order."""
    generation = task.file.generation.model_dump(mode="json")
    return [stored_answers.answer_key(target.name, target.identity, task.name, row, generation) for row in task.rows]


def visible_rows(target: Target, task: Task) -> list[ScoredRow]:
    """Return the rows that the target may see."""
    return [row for row in task.rows if row.privacy in target.sees]


def complete(target: Target, task: Task, stored: AnswerFile) -> list[StoredAnswer]:
    """Return a target's answers in the task's row order; those it may not give are `hidden`."""
    return [
        stored.known[key] if row.privacy in target.sees else stored_answers.hidden(key, target.name, task.name, row.id)
        for key, row in zip(answer_keys(target, task), task.rows, strict=True)
    ]


def ask_targets(
    target: Target, tasks: Sequence[Task], stored: AnswerFile, conditions: ConditionsFile, batch: int
) -> None:
    """Let a target answer what it hasn't, and record the conditions. Batches hold rows of like length and are the same
    in every attempt, so that an interrupted run computes what an uninterrupted one would."""
    try:
        for task in tasks:
            _ask(target, task, stored, conditions, batch)
    finally:
        target.close()


def _ask(target: Target, task: Task, stored: AnswerFile, conditions: ConditionsFile, batch: int) -> None:
    known = dict(zip((row.id for row in task.rows), answer_keys(target, task), strict=True))
    rows = sorted(visible_rows(target, task), key=lambda row: (_length(row), row.id))
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    missing = [part for part in batches if any(known[row.id] not in stored.known for row in part)]
    if not missing:
        return
    done = len(rows) - sum(map(len, missing))
    journal.record(event="answering", target=target.name, task=task.name, done=done, total=len(rows))
    conditions.append([observe(target, task, sum(map(len, missing)), batch)])
    prompts = [[prompt_of(row) for row in part] for part in missing]
    began = time.perf_counter()
    replies = target.answer(prompts, max_new_tokens=task.file.generation.max_new_tokens)
    for part, found in zip(missing, replies, strict=True):
        now = time.perf_counter()
        made = []
        for row, reply in zip(part, found, strict=True):
            machine, waited = reply.seconds, reply.seconds
            if target.lockstep:
                waited = reply.seconds * len(part)
            elif target.place == HERE:
                machine = (now - began) / len(part)  # its requests overlap, so their times are no sum
            made.append(
                stored_answers.stored(
                    known[row.id], target.name, task.name, row.id, reply, seconds=machine, waited=waited
                )
            )
        began = now
        stored.append(made)
        done += len(part)
        _record(target, task, made, done, len(rows))


def _record(target: Target, task: Task, made: Sequence[StoredAnswer], done: int, total: int) -> None:
    seconds = sum(answer.seconds for answer in made)
    tokens = sum(answer.new_tokens for answer in made)
    record: dict[str, object] = {"target": target.name, "task": task.name, "done": done, "total": total}
    record |= {"seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds, 1) if seconds else 0.0}
    billed = [answer.dollars for answer in made if answer.dollars is not None]
    journal.record(**record, **({"dollars": round(sum(billed), 9)} if billed else {}))


def run_name(out: Path) -> str:
    """Return the run that a step's folder belongs to: money is counted by run."""
    return out.resolve().parent.name


def prompt_of(row: ScoredRow) -> Prompt:
    """Return a question as every target is asked it, and as its cost is forecast."""
    return Prompt(row.messages, row.privacy, row.id, media=row.media, tools=row.tools)


def _length(row: ScoredRow) -> int:
    """Return the letters of a row; an image or a sound counts as some hundreds, as the tokens it takes would."""
    words = sum(len(text_of(message.get("content", ""))) for message in row.messages)
    return words + _PART * len(media_of(row.messages))
