"""Answers of a given shape: a JSON schema is sent with the question, and the reply is checked here.

No engine is believed: a service may be told a schema and return JSON that breaks it, or half of one. A reply that is
not valid gets one more try, with the reply and what is wrong with it put before the model. A reply that was refused,
cut or failed is none, and is never read as if it were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from gemma_ops.answer import Answer, Prompt

if TYPE_CHECKING:
    from gemma_ops.targets.target import Target

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_REPAIR = "That reply is not valid: {problem}\nReply again with the corrected JSON alone."
_UNFINISHED = {"length": "cut at the token limit", "blocked": "refused", "error": "failed"}


@dataclass(frozen=True)
class Structured:
    """Outcome of one question. `value` is None when no reply was valid, and `problem` then says why.

    `answer` is the last reply; its tokens, seconds and dollars are those of all `tries`.
    """

    value: BaseModel | None
    answer: Answer
    tries: int
    problem: str = ""


def ask_structured(
    target: Target, prompts: Sequence[Prompt], shape: type[BaseModel], *, max_new_tokens: int, batch: int = 16
) -> list[Structured]:
    """Ask every prompt for JSON of a pydantic model's shape; one result per prompt, in order."""
    schema = shape.model_json_schema()
    results = _round(target, prompts, shape, schema, max_new_tokens, batch)
    failed = [index for index, result in enumerate(results) if result.value is None and result.answer.end == "stop"]
    again = [_repairing(prompts[index], results[index]) for index in failed]
    for index, second in zip(failed, _round(target, again, shape, schema, max_new_tokens, batch), strict=True):
        results[index] = replace(second, answer=_both(results[index].answer, second.answer), tries=2)
    return results


def in_words(messages: Sequence[dict[str, Any]], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the conversation with the schema at the end of its last turn, for models that are not given it in another
    way."""
    *before, last = messages
    wish = (
        f"Answer with one JSON value and nothing else. It must follow this JSON "
        f"schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )
    said = last.get("content") or ""
    if isinstance(said, list):
        return [*before, {**last, "content": [*said, {"type": "text", "text": wish}]}]
    return [*before, {**last, "content": f"{said}\n\n{wish}"}]


def read_structured(text: str, shape: type[BaseModel]) -> BaseModel:
    """Return the value in a reply, which may stand in a code fence. Raises ValidationError."""
    fenced = _FENCE.search(text)
    return shape.model_validate_json(fenced.group(1) if fenced else text)


def _round(
    target: Target, prompts: Sequence[Prompt], shape: type[BaseModel], schema: dict[str, Any], limit: int, batch: int
) -> list[Structured]:
    """Ask once. Prompts of like length go together, so that little is computed on padding."""
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda index: (_length(prompts[index]), index))
    chosen = [order[start : start + batch] for start in range(0, len(order), batch)]
    replies = target.answer(
        [[prompts[index] for index in part] for part in chosen], max_new_tokens=limit, schema=schema
    )
    found: dict[int, Structured] = {}
    for part, answers in zip(chosen, replies, strict=True):
        found |= {index: _checked(answer, shape) for index, answer in zip(part, answers, strict=True)}
    return [found[index] for index in range(len(prompts))]


def _checked(answer: Answer, shape: type[BaseModel]) -> Structured:
    if answer.end != "stop":
        why = f": {answer.reason}" if answer.reason else ""
        return Structured(None, answer, 1, f"the reply was {_UNFINISHED[answer.end]}{why}")
    try:
        return Structured(read_structured(answer.text, shape), answer, 1)
    except ValidationError as error:
        return Structured(None, answer, 1, _told(error))


def _told(error: ValidationError, most: int = 3) -> str:
    """Return the first problems, each with its place. Values are left out: they may be long, and the reply stands
    beside."""
    parts = [f"{'.'.join(map(str, item['loc'])) or 'reply'}: {item['msg']}" for item in error.errors()]
    return "; ".join(parts[:most]) + (f"; and {len(parts) - most} more" if len(parts) > most else "")


def _repairing(prompt: Prompt, failed: Structured) -> Prompt:
    turns = [
        {"role": "assistant", "content": failed.answer.text or "(nothing)"},
        {"role": "user", "content": _REPAIR.format(problem=failed.problem)},
    ]
    return replace(prompt, messages=[*prompt.messages, *turns])


def _both(first: Answer, second: Answer) -> Answer:
    paid = [answer.dollars for answer in (first, second) if answer.dollars is not None]
    return replace(
        second,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        new_tokens=first.new_tokens + second.new_tokens,
        thought_tokens=first.thought_tokens + second.thought_tokens,
        cached_tokens=first.cached_tokens + second.cached_tokens,
        seconds=first.seconds + second.seconds,
        dollars=sum(paid) if paid else None,
    )


def _length(prompt: Prompt) -> int:
    return sum(len(str(message.get("content", ""))) for message in prompt.messages)
