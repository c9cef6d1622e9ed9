"""A file's answers to a task's questions in llama.cpp, without a drafter, with the stock one and with the tuned one.

Questions are asked one at a time, each of the three ways in turn, so that whatever else the machine does falls on all
of them.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gemma_ops.answer import Prompt
from gemma_ops.config import DraftConfig
from gemma_ops.drafting.draft_figures import ALONE, STOCK, TUNED, AskedRow, summarize_task
from gemma_ops.metrics.metric import ScoredRow
from gemma_ops.modeling.generate import STOPS, read_reply
from gemma_ops.modeling.llamacpp_drafts import TimedGguf, TimedReply
from gemma_ops.modeling.thoughts import left_open
from gemma_ops.runs import journal
from gemma_ops.targets.prompt_encoder import Encoder
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts.drafter_record import DraftedTask

_WAYS = (ALONE, STOCK, TUNED)
_SLACK = 8


@dataclass(frozen=True)
class TriedFile:
    """A GGUF file, and the drafters that are tried with it."""

    file: Path
    stock: Path
    tuned: Path
    threads: int | None


def measure_task(tried: TriedFile, task: Task, encode: Encoder, settings: DraftConfig, form: str) -> DraftedTask:
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
                    tried.file, context=context, threads=tried.threads, drafter=drafter,
                    drafted=settings.tokens if drafter else 0,
                )
            )
            for way, drafter in ((ALONE, None), (STOCK, tried.stock), (TUNED, tried.tuned))
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


def _score(
    task: Task, row: ScoredRow, reply: TimedReply, encode: Encoder, prompt: list[int], column: str
) -> float | None:
    stops = {encode.tokenizer.token_to_id(token) for token in STOPS}
    said = read_reply(encode.tokenizer, reply.tokens, stops, opened=left_open(encode.tokenizer, prompt))
    return task.score(said.text, row).values[column]
