"""Duplicates out, one of each kept: the first in the order of the files.

Exact: the same conversation after normalising (case, white space, Unicode form). Near: users ask nearly the same *and*
the answers are nearly the same, so that two tickets that differ in an order number, or two questions that share a canned
answer, both stay. Of compared answers both sides count, each as what it is: a pair the other way round is no duplicate.
Rows that show an image or a sound repeat each other only if they show the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np

from gemma_ops.data.example import SIDES, kind
from gemma_ops.data.near import Near
from gemma_ops.data.tasks import asked_texts, names
from gemma_ops.data.words import Boilerplate, Hashes, hashes, jaccard, normal, shingles, sketch

_UNWANTED = np.uint64(0xA5A5A5A5A5A5A5A5)


def exact_key(example: dict[str, Any]) -> bytes:
    """16 bytes that conversations share exactly when they are the same after normalising."""
    body = {"messages": example["messages"], "tools": example.get("tools")}
    body |= {side: example[side] for side in (*SIDES, "text") if example.get(side) is not None}
    text = normal(json.dumps(body, ensure_ascii=False, sort_keys=True))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def prompt_key(example: dict[str, Any]) -> bytes:
    """16 bytes that conversations share when everything before the last answer is the same after normalising."""
    messages = example["messages"]
    if kind(example) == "conversation":
        messages = messages[: max(index for index, message in enumerate(messages) if message["role"] == "assistant")]
    return exact_key({"messages": messages, "tools": example.get("tools")})


class NearDuplicates:
    """Rows seen so far, to find the ones a new row nearly repeats. Memory: about 6 KiB a row."""

    def __init__(self, threshold: float, boilerplate: Boilerplate) -> None:
        self.threshold = threshold
        self._boilerplate = boilerplate
        self._asked = Near(threshold)
        self._answers: list[Hashes] = []
        self._sources: list[str] = []
        self._shown: list[tuple[str, ...]] = []

    def find_or_add(self, example: dict[str, Any]) -> tuple[str, float] | None:
        """The earlier row this one nearly repeats as (source, similarity of the questions); else remember it."""
        asked = _joined([shingles(self._boilerplate.residue(hashes(text))) for text in asked_texts(example)])
        answer = sketch(_joined(_answers(example)))
        shown = names(example["messages"])
        for similarity, number in self._asked.find(asked):
            if shown == self._shown[number] and jaccard(answer, self._answers[number]) >= self.threshold:
                return self._sources[number], similarity
        self._asked.add(len(self._sources), asked)
        self._answers.append(answer)
        self._shown.append(shown)
        self._sources.append(example["source"])
        return None


def _answers(example: dict[str, Any]) -> list[Hashes]:
    """Shingles of what the model says; those of an unwanted answer are marked, so that they equal no wanted one's."""
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


def _joined(parts: list[Hashes]) -> Hashes:
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
