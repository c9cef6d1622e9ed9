"""The style of the two sides: length and formatting, which judges may prefer for their own sake."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gemma_ops.judging import winrate
from gemma_ops.judging.judge_material import JudgedPair

_FORMATS = {
    "headings": re.compile(r"^#{1,6} ", re.MULTILINE),
    "lists": re.compile(r"^\s*(?:[-*+]|\d+[.)]) ", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*"),
    "code": re.compile(r"```"),
    "names a model": re.compile(
        r"\b(?:gemma|gemini|chatgpt|gpt-\d|claude|llama|mistral|qwen|deepseek)\b", re.IGNORECASE
    ),
}
"""Patterns of formatting, for the share of answers in which each is found. An answer that names its model is no longer
blind."""


def gap(pair: JudgedPair) -> int:
    """Return the words of the first answer minus words of the second."""
    return len(pair.first.split()) - len((pair.second or "").split())


def describe_style(pairs: Sequence[JudgedPair]) -> dict[str, Any]:
    """Return words and formatting per side, and how often the first is the longer one."""
    sides = {"first": [pair.first for pair in pairs]}
    if pairs and pairs[0].second is not None:
        sides["second"] = [pair.second or "" for pair in pairs]
    found: dict[str, Any] = {name: _side(answers) for name, answers in sides.items()}
    if "second" in sides:
        gaps = [gap(pair) for pair in pairs]
        found["first_longer"] = sum(value > 0 for value in gaps) / len(gaps)
        found["second_longer"] = sum(value < 0 for value in gaps) / len(gaps)
    return found


def longer_wins(
    pairs: Sequence[JudgedPair], scores: Mapping[str, float], clusters: Mapping[str, str] | None, confidence: float
) -> winrate.Rate | None:
    """Return how often the longer answer of a pair is preferred, a tie counting one half."""
    chosen = [(pair.id, scores[pair.id], gap(pair)) for pair in pairs if pair.id in scores and gap(pair)]
    return winrate.win_rate(
        [score if longer > 0 else 1 - score for _, score, longer in chosen],
        None if clusters is None else [clusters[name] for name, *_ in chosen],
        confidence,
    )


def _side(answers: Sequence[str]) -> dict[str, float]:
    words = np.array([len(answer.split()) for answer in answers], dtype=float)
    return {
        "words_mean": float(words.mean()),
        "words_p50": float(np.quantile(words, 0.5)),
        "words_p95": float(np.quantile(words, 0.95)),
    } | {name: sum(bool(mark.search(answer)) for answer in answers) / len(answers) for name, mark in _FORMATS.items()}
