"""Divergence of a quantized model's next-token distributions from the bf16 model's, with honest intervals.

Measured where it matters: on chat-templated validation conversations, at the positions of the reference answer (or of
the bf16 model's own reply where a row has none), and next to that at every position, over the whole vocabulary.
Raw-text perplexity of an instruction-tuned Gemma says little.

KL(bf16 || quantized) in nats. Positions of one conversation are alike, so intervals come from resampling conversations:
on this family the naive standard error of the mean is 2.6 times too small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_ops.data import chat
from gemma_ops.data.row_tokens import Manner
from gemma_ops.export.prompts import Row, export_prompt_ids
from gemma_ops.stats.divergence import position_divergences

_LONGEST = 2048  # tokens of a conversation that are read
_CONTINUATION = 24
_RESAMPLES = 2000


@dataclass(frozen=True)
class Conversation:
    """One conversation as tokens, and the positions after which a token of the answer comes."""

    ids: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Divergence:
    """Divergence over some positions; intervals are 95 %, by resampling conversations."""

    kl: float
    kl_interval: tuple[float, float]
    kl_median: float
    kl_p99: float
    top1: float
    top1_interval: tuple[float, float]
    conversations: int
    positions: int

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {
            "kl": _short(self.kl),
            "kl_interval": [_short(end) for end in self.kl_interval],
            "kl_median": _short(self.kl_median),
            "kl_p99": _short(self.kl_p99),
            "top1": round(self.top1, 4),
            "top1_interval": [round(end, 4) for end in self.top1_interval],
            "conversations": self.conversations,
            "positions": self.positions,
        }

    def metrics(self) -> dict[str, float]:
        """Return the step's metrics."""
        return {
            "kl": self.kl,
            "kl_low": self.kl_interval[0],
            "kl_high": self.kl_interval[1],
            "kl_p99": self.kl_p99,
            "top1": self.top1,
            "top1_low": self.top1_interval[0],
            "top1_high": self.top1_interval[1],
        }


@dataclass(frozen=True)
class FileDivergence:
    """Divergence of one file from another, position by position of each conversation, (tokens,) arrays."""

    conversations: Sequence[Conversation]
    kls: list[np.ndarray]
    """KL in nats."""
    hits: list[np.ndarray]
    """Whether the likeliest token is the same."""

    def answers(self) -> Divergence:
        """Summarize the positions of answers."""
        return summarize_divergence(self._of_answers(self.kls), self._of_answers(self.hits))

    def every_token(self) -> Divergence:
        """Summarize all positions, those of prompts among them."""
        return summarize_divergence(self.kls, self.hits)

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`: of answers, and under `every_token` of all positions."""
        return {**self.answers().report(), "every_token": self.every_token().report()}

    def metrics(self) -> dict[str, float]:
        """Return the step's metrics: of answers, and of all positions."""
        every = self.every_token()
        return {**self.answers().metrics(), "every_token_kl": every.kl, "every_token_top1": every.top1}

    def split(self, count: int) -> tuple[FileDivergence, FileDivergence]:
        """Return the parts of the first `count` conversations and of the others."""
        first, second = (
            FileDivergence(self.conversations[part], self.kls[part], self.hits[part])
            for part in (slice(count), slice(count, None))
        )
        return first, second

    def gain_over(self, other: FileDivergence) -> tuple[Gain, Gain]:
        """Compare with another file on the same conversations: on answers, and on every token."""
        return (
            divergence_gain(self._of_answers(self.kls), other._of_answers(other.kls)),
            divergence_gain(self.kls, other.kls),
        )

    def _of_answers(self, values: list[np.ndarray]) -> list[np.ndarray]:
        return [found[each.answer] for each, found in zip(self.conversations, values, strict=True)]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def fidelity_conversations(
    tokenizer: Any, rows: list[Row], *, manner: Manner, reply: Callable[[list[int], int], list[int]]
) -> list[Conversation]:
    """Return the conversations that are compared: each row with its reference answer, or with the reply `reply(prompt,
    count)` gives."""
    found = []
    for row in rows:
        if row["messages"][-1]["role"] == "assistant":
            asked = manner.of(row["messages"])
            whole = chat.encode_chat(tokenizer, row["messages"], row.get("tools"), max_length=_LONGEST, **asked)
            ids, answer = whole.ids, [place - 1 for place, flag in enumerate(whole.loss) if flag and place]
        else:
            prompt = export_prompt_ids(tokenizer, row, manner)[-_LONGEST:]
            ids = prompt + reply(prompt, _CONTINUATION)
            answer = list(range(len(prompt) - 1, max(len(prompt), len(ids) - 1)))
        if not answer:  # it begins beyond what is read
            answer = list(range(max(0, len(ids) - _CONTINUATION), len(ids)))
        found.append(Conversation(ids, answer))
    return found


def logits_divergence(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Divergence:
    """Compare logits, conversation by conversation: a pair is the reference's and the other's, (positions,
    vocabulary)."""
    return summarize_divergence(*zip(*(position_divergences(*pair) for pair in pairs), strict=True))


def summarize_divergence(kls: Sequence[np.ndarray], hits: Sequence[np.ndarray]) -> Divergence:
    """Summarize what `position_divergences` found in each conversation."""
    every = np.concatenate(list(kls))
    kl, kl_interval = _mean(kls)
    top1, top1_interval = _mean(hits)
    return Divergence(
        kl,
        kl_interval,
        float(np.median(every)),
        float(np.quantile(every, 0.99)),
        top1,
        top1_interval,
        len(kls),
        len(every),
    )


@dataclass(frozen=True)
class Gain:
    """Divergence of a fitted file as a share of the plain file's, on the same positions; the interval is 95 %, by
    resampling conversations."""

    ratio: float
    interval: tuple[float, float]

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {"kl_ratio": _short(self.ratio), "kl_ratio_interval": [_short(end) for end in self.interval]}


def divergence_gain(fitted: Sequence[np.ndarray], plain: Sequence[np.ndarray]) -> Gain:
    """Compare the divergences of two files, (positions,) for each conversation."""
    over = np.array([group.sum() for group in fitted])
    under = np.array([group.sum() for group in plain])
    picks = np.random.default_rng(7).integers(len(over), size=(_RESAMPLES, len(over)))
    low, high = np.quantile(over[picks].sum(1) / np.maximum(under[picks].sum(1), 1e-300), [0.025, 0.975])
    return Gain(float(over.sum() / max(under.sum(), 1e-300)), (float(low), float(high)))


def _mean(groups: Sequence[np.ndarray]) -> tuple[float, tuple[float, float]]:
    """Return the mean over all positions and its 95 % percentile bootstrap interval over groups (conversations)."""
    sums = np.array([group.sum() for group in groups], dtype=np.float64)
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    random = np.random.default_rng(7)
    picks = random.integers(len(groups), size=(_RESAMPLES, len(groups)))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / sizes.sum()), (float(low), float(high))
