"""The canary: before an engine takes traffic, it answers questions that were recorded, as the evaluation recorded them.

A wrong file, base weights, another template, thinking left on, or an adapter that was not applied all load without a
word, and answer. What they can't do is say what the evaluated model said. First each question is rendered again: the
prompt must be the recorded one, token for token. Then the engine answers it greedily.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.errors import GateError, ModelError
from gemma_ops.serving.engine import Sampling
from gemma_ops.serving.model import Said, ServedModel
from gemma_ops.verdicts import CANARY_SCHEMA
from gemma_ops.wire.ask import Ask, RefusalError

SHARE = 0.8
"""Of the recorded answers that must be the same: a batch of another shape rounds otherwise, and now and then two tokens
are that close."""


@dataclass(frozen=True)
class CanaryResult:
    """What came of it. `same` of `asked` answers were the recorded ones; `as_base` were the base's where that said
    otherwise."""

    asked: int
    same: int
    as_base: int
    other_prompts: int

    @property
    def good(self) -> bool:
        """Whether the engine serves what was evaluated."""
        return (
            not self.other_prompts
            and self.same >= SHARE * self.asked
            and (not self.as_base or self.as_base < self.same)
        )

    @property
    def words(self) -> str:
        """One sentence."""
        if self.other_prompts:
            share = f"{self.other_prompts} of {self.asked} prompts"
            return f"{share} are not those of the evaluation: another template, tokenizer or mode"
        base = f", {self.as_base} what only its base says" if self.as_base else ""
        return f"{self.same} of {self.asked} recorded answers came back word for word{base}"


def canary_words(results: Sequence[CanaryResult]) -> str:
    """One sentence of every replica's result: the worst's, where they differ."""
    worst = min(results, key=lambda one: (one.good, one.same))
    if len(results) == 1:
        return worst.words
    return f"{worst.words} in {'each' if len(set(results)) == 1 else 'the worst'} of {len(results)} replicas"


def read_rows(path: Path, target: str) -> list[dict[str, Any]]:
    """What was recorded of a target's answers. Raises ModelError for a file that is no record."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["schema"] != CANARY_SCHEMA:
            raise ValueError(body["schema"])
        return [row for row in body["rows"] if target in row["answers"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is no record of answers: {error}", "evaluate again") from error


async def run_canary(model: ServedModel, rows: list[dict[str, Any]], target: str) -> CanaryResult:
    """Ask the recorded questions, and compare with what `target` said then."""
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
            said = Said()
            limit = int(row["max_new_tokens"])
            async for _ in model.answer(prompt, Sampling(limit, schema=row.get("schema")), said):
                pass
            return True, said.text

    found = await asyncio.gather(*(one(row) for row in rows))
    same = sum(text == row["answers"][target] for row, (told, text) in zip(rows, found, strict=True) if told)
    as_base = sum(
        text == row["answers"].get("base") != row["answers"][target]
        for row, (told, text) in zip(rows, found, strict=True)
        if told
    )
    return CanaryResult(len(rows), same, as_base, sum(not told for told, _ in found))


def check_canary(result: CanaryResult, source: str) -> None:
    """Raise GateError where the engine doesn't serve what was evaluated."""
    if not result.good:
        raise GateError(
            f"the canary of {source} failed: {result.words}",
            "serve the version it was made from, or look at what differs with --set serve.canary=reported",
        )
