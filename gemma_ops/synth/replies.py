"""Asking of teacher and judge, which keeps every reply at once: `replies.jsonl` grows line by line and survives a kill
at any moment.

A reply's key covers who was asked, what, and in which shape, so a step that is started again asks only what has no
reply yet. A service's own store answers what was paid for but not yet written here. At the end the file is rewritten in
the order of the requests, so that it doesn't tell how often the step was interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from gemma_ops.answer import Prompt
from gemma_ops.config import Privacy
from gemma_ops.runs import digest, journal
from gemma_ops.targets.asked import AskedFile, StructuredRecord, asked_key, in_parts
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
        """Return the digest of the messages: 32 hex digits."""
        return digest.of_json(list(self.messages))[:32]


@dataclass(frozen=True, kw_only=True)
class TeacherReply(StructuredRecord):
    """One line of `replies.jsonl`."""

    LINE: ClassVar[tuple[str, ...]] = (
        "key", "what", "name", "value", "problem", "tries", "end", "prompt_tokens", "new_tokens", "thought_tokens",
        "cached_tokens", "dollars", "model", "response_id", "tier",
    )  # fmt: skip

    what: str
    name: str
    value: dict[str, Any] | None
    """Value of the reply; None when no reply was valid, and `problem` says why."""


class Replies(AskedFile[TeacherReply]):
    """File of what the teacher and the judge said, which grows as it comes."""

    kind, noun, again = TeacherReply, "a reply", "run again"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._asked: list[str] = []

    def ask(
        self,
        target: Target,
        questions: Sequence[TeacherQuestion],
        shape: type[BaseModel],
        *,
        max_new_tokens: int,
        batch: int,
    ) -> list[TeacherReply]:
        """Return a reply to every question, in order: those that are known, and the others from the target.

        A local model is asked batch by batch, and each batch is on disk before the next; a service is asked for all at
        once, so that it can send them together or as one batch, and keeps what was paid for in its own store.
        """
        keys = [_key(target, question, shape, max_new_tokens) for question in questions]
        missing = self.missing(keys)
        done = len(questions) - len(missing)
        for part in in_parts(missing, batch if target.lockstep else len(missing)):
            prompts = [_prompt(questions[index]) for index in part]
            found = ask_structured(target, prompts, shape, max_new_tokens=max_new_tokens, batch=batch)
            self.append(_reply(keys[index], questions[index], item) for index, item in zip(part, found, strict=True))
            done += len(part)
            journal.record(phase="ask", what=questions[0].what, done=done, of=len(questions))
        self._asked += keys
        return self.all_of(keys)

    def settle(self) -> list[TeacherReply]:
        """Rewrite the file in the order of the questions, and return what it holds."""
        return self.finish(self._asked)


def _prompt(question: TeacherQuestion) -> Prompt:
    return Prompt(question.messages, question.privacy, f"{question.what} of {question.name}", question.turn)


def _key(target: Target, question: TeacherQuestion, shape: type[BaseModel], limit: int) -> str:
    schema = shape.model_json_schema()
    return asked_key(target.name, target.identity, list(question.messages), schema, limit, question.turn)


def _reply(key: str, question: TeacherQuestion, found: Structured) -> TeacherReply:
    value = None if found.value is None else found.value.model_dump(mode="json")
    return TeacherReply.of_structured(found, key=key, what=question.what, name=question.name, value=value)
