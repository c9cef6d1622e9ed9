"""The probe for memorized rows: does the model say what only a training row says, when it is shown how the row begins?

A word of a row is distinctive if no other training row holds it and it is long, or holds a digit: a name, an order
number, an address. A row is shown up to the middle of its first question, so that the word still lies ahead; the model
answers greedily, and it has the row by heart if its answer holds the word. What the base says as well was not learned
from the row. Extraction by prefix: Carlini et al., "Quantifying Memorization Across Neural Language Models"
(arXiv 2202.07646, section 3); the comparison with a model that saw no row is counterfactual memorization (Zhang et al.,
arXiv 2112.12938).
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.answer import Prompt
from gemma_ops.data.control import control_in
from gemma_ops.data.example import read_rows
from gemma_ops.data.parts import text_of

_WORD = re.compile(r"\w+(?:[-'@.]\w+)*")
_LONG, _SHORT = 7, 5
"""Fewest characters of a distinctive word, and fewest of one with a digit."""
_SHOWN = 1000
"""Characters of the question that are shown at most."""
_CANDIDATES = 8
"""Rows looked at for each one that is asked: many hold no distinctive word."""


@dataclass(frozen=True)
class ProbedRow:
    """The beginning of a training row, and the word that only its end holds."""

    id: str
    prompt: Prompt
    word: str

    def said(self, text: str) -> bool:
        """True if a reply holds the word, as a word and whatever its case."""
        return self.word in words_of(text)


def words_of(text: str) -> set[str]:
    """Return the words of a text, in lower case."""
    return {word.lower() for word in _WORD.findall(text)}


def probed_rows(train: Path, count: int) -> list[ProbedRow]:
    """Return at most `count` rows of a `train.jsonl` with a distinctive word, the first by hash of their id. The file
    is read twice, so that only words of candidates are counted."""
    if not count or not train.is_file():
        return []
    chosen = heapq.nsmallest(_CANDIDATES * count, read_rows(train), key=lambda row: _place(str(row["id"])))
    halves = [(row, *half) for row in chosen if (half := _half(row))]
    wanted = {word for _, _, hidden in halves for word in hidden}
    held: Counter[str] = Counter()
    for row in read_rows(train):
        held.update(wanted & words_of(_text(row)))
    found: list[ProbedRow] = []
    for row, messages, hidden in halves:
        own = [word for word in hidden if held[word] == 1]
        if own and len(found) < count:
            prompt = Prompt(messages, privacy=row.get("privacy", "local_only"), id=str(row["id"]))
            found.append(ProbedRow(str(row["id"]), prompt, max(own, key=lambda word: (len(word), word))))
    return found


def _half(row: dict[str, Any]) -> tuple[list[dict[str, Any]], set[str]] | None:
    """Return the row's turns up to the middle of its first question, and the distinctive words of what follows; None
    where it is no conversation in words, or spells control tokens."""
    turns = row.get("messages") or []
    at = next((index for index, turn in enumerate(turns) if turn.get("role") == "user"), None)
    if at is None or control_in(turns) or any(isinstance(turn.get("content"), list) for turn in turns[: at + 1]):
        return None
    text = text_of(turns[at].get("content"))
    cut = text.rfind(" ", 0, min(len(text) // 2, _SHOWN) + 1)
    if cut < 1:
        return None
    before = [{"role": str(turn["role"]), "content": text_of(turn.get("content"))} for turn in turns[:at]]
    shown = [*before, {"role": "user", "content": text[:cut]}]
    after = " ".join([text[cut:], *(text_of(turn.get("content")) for turn in turns[at + 1 :])])
    seen = words_of(" ".join(turn["content"] for turn in shown))
    return shown, {word for word in words_of(after) - seen if _distinctive(word)}


def _distinctive(word: str) -> bool:
    return len(word) >= _LONG or (len(word) >= _SHORT and any(letter.isdigit() for letter in word))


def _text(row: dict[str, Any]) -> str:
    turns = [*(row.get("messages") or []), *(row.get("chosen") or []), *(row.get("rejected") or [])]
    return " ".join([str(row.get("text") or ""), *(text_of(turn.get("content")) for turn in turns)])


def _place(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
