"""Removal of duplicates: one of each is kept, the first in the order of the files.

Exact: training sees the same conversation, to the letter; only white space at the ends of a turn, which the template
takes off, makes no difference. Near: users ask nearly the same *and* the answers are nearly the same, so that two
tickets that differ in an order number, or two questions that share a canned answer, both stay; and nothing differs that
turns a text into another one with the same words: numbers, operators, indentation, superscripts, case. Of compared
answers both sides count, each as what it is: a pair the other way round is no duplicate. Rows that show an image or a
sound repeat each other only if they show the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple

import numpy as np

from gemma_ops.data.boilerplate import Boilerplate
from gemma_ops.data.example import SIDES, kind
from gemma_ops.data.hashed_words import Hashes, distinctive, hashes, jaccard, shingles, sketch
from gemma_ops.data.near_duplicates import Near
from gemma_ops.data.parts import text_of
from gemma_ops.tasks.compared_questions import asked_texts, names

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode
_UNWANTED = np.uint64(0xA5A5A5A5A5A5A5A5)


def exact_key(example: dict[str, Any]) -> bytes:
    """Return 16 bytes that conversations share exactly when training sees the same in them."""
    body = {"messages": _trimmed(example["messages"]), "tools": example.get("tools")}
    body |= {side: _trimmed(example[side]) for side in SIDES if example.get(side) is not None}
    body |= {"text": example["text"]} if example.get("text") is not None else {}
    return hashlib.blake2b(_CANONICAL(body).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _trimmed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **message,
            "content": message["content"].strip() if isinstance(message["content"], str) else message["content"],
        }
        for message in messages
    ]


def prompt_key(example: dict[str, Any]) -> bytes:
    """Return 16 bytes that conversations share when everything before the last answer is the same."""
    messages = example["messages"]
    if kind(example) == "conversation":
        messages = messages[: max(index for index, message in enumerate(messages) if message["role"] == "assistant")]
    return exact_key({"messages": messages, "tools": example.get("tools")})


class AnswerFacts(NamedTuple):
    """What decides whether a row with nearly the same question is the same row: names of what it shows, a digest of
    what turns a text into another one with the same words, and a sketch of its answers."""

    shown: tuple[str, ...]
    distinctive: bytes
    answer: Hashes


def answer_facts(example: dict[str, Any]) -> AnswerFacts:
    """Return the facts of a row."""
    parts = b"".join(distinctive(text) for text in _all_texts(example))
    own = hashlib.blake2b(parts, digest_size=16).digest()
    return AnswerFacts(names(example["messages"]), own, sketch(_joined(_answers(example))))


def repeats_answer(row: AnswerFacts, earlier: AnswerFacts, threshold: float) -> bool:
    """True if a row whose question is nearly an earlier one's nearly repeats that row altogether."""
    return row[:2] == earlier[:2] and jaccard(row.answer, earlier.answer) >= threshold


class NearDuplicates:
    """Rows seen so far, to find the ones a new row nearly repeats; for sets that memory holds. About 6 KiB a row."""

    def __init__(self, threshold: float, boilerplate: Boilerplate) -> None:
        self.threshold = threshold
        self._boilerplate = boilerplate
        self._asked = Near(threshold)
        self._facts: list[AnswerFacts] = []
        self._sources: list[str] = []

    def find_or_add(self, example: dict[str, Any]) -> tuple[str, float] | None:
        """Return the earlier row this one nearly repeats as (source, similarity of the questions); else remember it."""
        asked = _joined([shingles(self._boilerplate.residue(hashes(text))) for text in asked_texts(example)])
        facts = answer_facts(example)
        for similarity, number in self._asked.find(asked):
            if repeats_answer(facts, self._facts[number], self.threshold):
                return self._sources[number], similarity
        self._asked.add(len(self._sources), asked)
        self._facts.append(facts)
        self._sources.append(example["source"])
        return None


def _answers(example: dict[str, Any]) -> list[Hashes]:
    """Return shingles of what the model says; those of an unwanted answer are marked, so that they equal no wanted
    one's."""
    wanted = _texts(example["messages"] + (example.get("chosen") or []))
    unwanted = _texts(example.get("rejected") or [])
    return [shingles(hashes(text)) for text in wanted] + [
        np.sort(shingles(hashes(text)) ^ _UNWANTED) for text in unwanted
    ]


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    texts = []
    for message in messages:
        if message["role"] == "assistant":
            texts.append(message["content"])
            texts += [
                json.dumps(call["function"], sort_keys=True, ensure_ascii=False)
                for call in message.get("tool_calls", [])
            ]
    return texts


def _all_texts(example: dict[str, Any]) -> list[str]:
    """Return what users ask, what the model says, and what tools say in between."""
    said = example["messages"] + (example.get("chosen") or []) + (example.get("rejected") or [])
    tools = [text_of(message["content"]) for message in said if message["role"] == "tool"]
    return [*asked_texts(example), *_texts(said), *tools]


def _joined(parts: list[Hashes]) -> Hashes:
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
