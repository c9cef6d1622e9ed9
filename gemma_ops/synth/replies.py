"""Asking, and keeping every reply at once: `replies.jsonl` grows line by line and survives a kill at any moment.

A reply's key covers who was asked, what, and in which shape, so a step that is started again asks only what has no reply
yet. A service's own store answers what was paid for but not yet written here. At the end the file is rewritten in the
order of the requests, so that it doesn't tell how often the step was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gemma_ops.answer import End, Prompt
from gemma_ops.config import Privacy
from gemma_ops.runs import digest, journal
from gemma_ops.runs.keyed import KeyedFile
from gemma_ops.targets.structured import Structured, ask_structured
from gemma_ops.targets.target import Target

FILE = "replies.jsonl"


@dataclass(frozen=True)
class TeacherQuestion:
    """One request: `what` it is for and `name` where it is from, for logs; the rest decides the reply."""

    what: str
    name: str
    messages: tuple[dict[str, Any], ...]
    privacy: Privacy
    turn: int = 0

    @property
    def prompt(self) -> str:
        """Digest of the messages: 32 hex digits."""
        return digest.of_json(list(self.messages))[:32]


@dataclass(frozen=True)
class TeacherReply:
    """One line of `replies.jsonl`. `value` is None when no reply was valid, and `problem` says why. Tokens and dollars are
    those of all `tries`."""

    key: str
    what: str
    name: str
    value: dict[str, Any] | None
    problem: str
    tries: int
    end: End
    prompt_tokens: int
    new_tokens: int
    thought_tokens: int
    cached_tokens: int
    dollars: float | None
    model: str
    response_id: str
    tier: str


class Replies(KeyedFile[TeacherReply]):
    """What the teacher and the judge said, as it comes."""

    kind, noun, again = TeacherReply, "a reply", "run again"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._asked: list[str] = []

    def lasts(self, record: TeacherReply) -> bool:
        """Failures count until the step ends, and are asked again when it is taken up."""
        return record.end != "error"

    def ask(
        self,
        target: Target,
        questions: Sequence[TeacherQuestion],
        shape: type[BaseModel],
        *,
        max_new_tokens: int,
        batch: int,
    ) -> list[TeacherReply]:
        """A reply to every question, in order: those that are known, and the others from the target.

        A local model is asked batch by batch, and each batch is on disk before the next; a service is asked for all at
        once, so that it can send them together or as one batch, and keeps what was paid for in its own store.
        """
        keys = [_key(target, question, shape, max_new_tokens) for question in questions]
        missing = list(dict.fromkeys(key for key in keys if key not in self.known))
        by_key = dict(zip(keys, questions, strict=True))
        step = batch if target.lockstep else max(1, len(missing))
        for start in range(0, len(missing), step):
            chosen = missing[start : start + step]
            prompts = [
                Prompt(
                    by_key[key].messages,
                    by_key[key].privacy,
                    f"{by_key[key].what} of {by_key[key].name}",
                    by_key[key].turn,
                )
                for key in chosen
            ]
            found = ask_structured(target, prompts, shape, max_new_tokens=max_new_tokens, batch=batch)
            self.append([_reply(key, by_key[key], item) for key, item in zip(chosen, found, strict=True)])
            done = len(questions) - len(missing) + start + len(chosen)
            journal.record(phase="ask", what=questions[0].what, done=done, of=len(questions))
        self._asked += keys
        return [self.known[key] for key in keys]

    def settle(self) -> list[TeacherReply]:
        """Rewrite the file in the order of the questions; returns what it holds."""
        return self.finish(self._asked)


def _key(target: Target, question: TeacherQuestion, shape: type[BaseModel], limit: int) -> str:
    schema = shape.model_json_schema()
    return digest.of_json([target.name, target.identity, list(question.messages), schema, limit, question.turn])[:32]


def _reply(key: str, question: TeacherQuestion, found: Structured) -> TeacherReply:
    answer = found.answer
    return TeacherReply(
        key=key,
        what=question.what,
        name=question.name,
        value=None if found.value is None else found.value.model_dump(mode="json"),
        problem=found.problem,
        tries=found.tries,
        end=answer.end,
        prompt_tokens=answer.prompt_tokens,
        new_tokens=answer.new_tokens,
        thought_tokens=answer.thought_tokens,
        cached_tokens=answer.cached_tokens,
        dollars=answer.dollars,
        model=answer.model,
        response_id=answer.response_id,
        tier=answer.tier,
    )
