"""The canary: before an engine takes traffic, it answers recorded questions, and must answer them as in the evaluation.

A wrong file, base weights, another template, thinking left on, or an adapter that was not applied all load without a
word, and answer. What they can't do is say what the evaluated model said. First each question is rendered again: the
prompt must be the recorded one, token for token. Then the engine answers it greedily.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.errors import ConfigError, GateError, ModelError
from gemma_ops.modeling.generate import STOPS, read_reply
from gemma_ops.modeling.thoughts import left_open
from gemma_ops.serving.engine import Sampling
from gemma_ops.serving.model import Said, ServedModel
from gemma_ops.verdicts import CANARY_SCHEMA
from gemma_ops.wire.ask import Ask, RefusalError

SHARE = 0.8
"""Share of the answers that the format repeated in its evaluation which must be the same: on another machine sums are
rounded otherwise, and now and then two tokens are that close."""
_LEAST = 0.5
"""Share of its own answers that a format must repeat for them to tell anything."""


@dataclass(frozen=True)
class CanaryResult:
    """Result of the canary. `same` of `asked` answers were the recorded ones; `as_base` were the base's where that said
    otherwise."""

    asked: int
    same: int
    as_base: int
    other_prompts: int
    repeats: float = 1.0
    """Share of its recorded answers, from 0 to 1, that the format gave again when its evaluation asked it twice."""

    @property
    def good(self) -> bool:
        """True if the engine serves what was evaluated."""
        return (
            not self.other_prompts
            and self.repeats >= _LEAST
            and self.same >= SHARE * self.repeats * self.asked
            and (not self.as_base or self.as_base < self.same)
        )

    @property
    def words(self) -> str:
        """Return one sentence."""
        if self.other_prompts:
            share = f"{self.other_prompts} of {self.asked} prompts"
            return f"{share} are not those of the evaluation: another template, tokenizer or mode"
        base = f", {self.as_base} what only its base says" if self.as_base else ""
        again = f" (asked twice, the evaluation repeated {self.repeats:.0%})" if self.repeats < 1 else ""
        return f"{self.same} of {self.asked} recorded answers came back word for word{again}{base}"


def canary_words(results: Sequence[CanaryResult]) -> str:
    """Return one sentence about every replica's result: the worst's, where they differ."""
    worst = min(results, key=lambda one: (one.good, one.same))
    if len(results) == 1:
        return worst.words
    return f"{worst.words} in {'each' if len(set(results)) == 1 else 'the worst'} of {len(results)} replicas"


@dataclass(frozen=True)
class RecordedAnswers:
    """Answers that an evaluation recorded of one target."""

    rows: tuple[dict[str, Any], ...]
    repeats: float = 1.0
    """Share of them, from 0 to 1, that it gave again when it was asked twice; 1 where nobody asked."""


def read_answers(path: Path, target: str) -> RecordedAnswers:
    """Read what was recorded of a target's answers. Raises ModelError for a file that is no record."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["schema"] != CANARY_SCHEMA:
            raise ValueError(body["schema"])
        rows = tuple(row for row in body["rows"] if target in row["answers"])
        again = body.get("repeats", {}).get(target) or {"asked": 1, "same": 1}
        return RecordedAnswers(rows, again["same"] / again["asked"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ModelError(f"{path} is no record of answers: {error}", "evaluate again") from error


def recorded_of(path: Path | None, target: str) -> RecordedAnswers | None:
    """Read what was recorded of a target's answers; None where there is no record, or none of this target: nothing of
    it can be compared."""
    found = read_answers(path, target) if path else None
    return found if found and found.rows else None


async def run_canary(model: ServedModel, recorded: RecordedAnswers, target: str) -> CanaryResult:
    """Ask the recorded questions, and compare with what `target` said then. Raises ConfigError where the context has no
    room for one."""
    rows = recorded.rows
    longest = max((len(row["ids"]) for row in rows), default=0)
    if longest >= model.engine.context:
        raise ConfigError(
            f"the canary's questions take up to {longest:,} tokens, and serve.context is {model.engine.context:,}",
            "set serve.context to what its evaluation allowed: prompt and reply together",
        )
    gate = asyncio.Semaphore(model.engine.slots)

    async def one(row: dict[str, Any]) -> tuple[bool, str]:
        async with gate:
            ask = Ask(messages=row["messages"], tools=row.get("tools") or (), schema=row.get("schema"))
            try:
                prompt = model.prompt(ask)
            except RefusalError:
                return False, ""
            if prompt.ids != row["ids"]:
                return False, ""
            said = Said(ids=[])
            limit = int(row["max_new_tokens"])
            with contextlib.suppress(RefusalError):  # what it said until then is no recorded answer
                async for _ in model.answer(prompt, Sampling(limit, schema=row.get("schema")), said):
                    pass
            return True, _as_evaluated(model.tokenizer, said.ids or [], prompt.ids)

    found = await asyncio.gather(*(one(row) for row in rows))
    same = sum(text == row["answers"][target] for row, (told, text) in zip(rows, found, strict=True) if told)
    as_base = sum(
        text == row["answers"].get("base") != row["answers"][target]
        for row, (told, text) in zip(rows, found, strict=True)
        if told
    )
    return CanaryResult(len(rows), same, as_base, sum(not told for told, _ in found), recorded.repeats)


def _as_evaluated(tokenizer: Any, ids: list[int], prompt: list[int]) -> str:
    """Return the text that an evaluation reads from a reply's tokens, with function calls in it."""
    stops = {tokenizer.token_to_id(name) for name in STOPS}
    return read_reply(tokenizer, ids, stops, opened=left_open(tokenizer, prompt)).text


def check_canary(result: CanaryResult, source: str) -> None:
    """Raise GateError where the engine doesn't serve what was evaluated."""
    if not result.good:
        raise GateError(
            f"the canary of {source} failed: {result.words}",
            "serve the version it was made from, or look at what differs with --set serve.canary=reported",
        )
