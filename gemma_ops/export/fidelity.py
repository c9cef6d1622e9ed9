"""Divergence of a quantized model's next-token distributions from the bf16 model's, with honest intervals.

Measured where it matters: on chat-templated validation conversations, at positions of the reference answer (or of the
bf16 model's own reply where a row has none). Raw-text perplexity of an instruction-tuned Gemma says little.

KL(bf16 || quantized) in nats. With a small vocabulary whole distributions are compared. Beyond that llama.cpp reports
the k most likely tokens: then both sides are reduced to the tokens both report plus one rest, which gives a lower bound
of the true divergence (data-processing inequality); it is named `kl_topk` and must never be compared with an exact one.

Positions of one conversation are alike, so intervals come from resampling conversations: on this family the naive
standard error of the mean is 2.6 times too small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_ops.data import chat
from gemma_ops.data.row_tokens import Manner
from gemma_ops.export.prompts import Row, export_prompt_ids
from gemma_ops.modeling.llamacpp import Distributions

EXACT_VOCABULARY = 4096  # up to here all probabilities are asked for; JSON makes it 10 µs per token and position
TOP = 256
_POSITIONS = 8  # per conversation: more of them add little, since they are alike
_LONGEST = 2048  # tokens of a conversation that are read
_CONTINUATION = 24
_RESAMPLES = 2000


@dataclass(frozen=True)
class Conversation:
    """One conversation as tokens, and the positions after which the next token is compared."""

    ids: list[int]
    positions: list[int]


@dataclass(frozen=True)
class Fidelity:
    """Divergence over all positions; intervals are 95 %, by resampling conversations."""

    kl: float
    kl_interval: tuple[float, float]
    kl_median: float
    kl_p99: float
    top1: float
    top1_interval: tuple[float, float]
    conversations: int
    positions: int
    exact: bool

    @property
    def name(self) -> str:
        """Return `kl`, or `kl_topk` for the lower bound."""
        return "kl" if self.exact else "kl_topk"

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {
            self.name: _short(self.kl),
            f"{self.name}_interval": [_short(end) for end in self.kl_interval],
            f"{self.name}_median": _short(self.kl_median),
            f"{self.name}_p99": _short(self.kl_p99),
            "top1": round(self.top1, 4),
            "top1_interval": [round(end, 4) for end in self.top1_interval],
            "conversations": self.conversations,
            "positions": self.positions,
        }

    def metrics(self) -> dict[str, float]:
        """Return the step's metrics."""
        return {
            self.name: self.kl,
            f"{self.name}_low": self.kl_interval[0],
            f"{self.name}_high": self.kl_interval[1],
            f"{self.name}_p99": self.kl_p99,
            "top1": self.top1,
            "top1_low": self.top1_interval[0],
            "top1_high": self.top1_interval[1],
        }


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
            ids, candidates = whole.ids, [place - 1 for place, flag in enumerate(whole.loss) if flag and place]
        else:
            prompt = export_prompt_ids(tokenizer, row, manner)[-_LONGEST:]
            ids = prompt + reply(prompt, _CONTINUATION)
            candidates = list(range(len(prompt) - 1, max(len(prompt), len(ids) - 1)))
        if not candidates:  # the answer begins beyond what is read
            candidates = list(range(len(ids) - _POSITIONS, len(ids)))
        picked = np.unique(np.linspace(0, len(candidates) - 1, min(_POSITIONS, len(candidates))).round().astype(int))
        found.append(Conversation(ids, [candidates[index] for index in picked]))
    return found


def compare_logits(reference: Sequence[Distributions], other: Sequence[Distributions], vocabulary: int) -> Fidelity:
    """Measure the divergence of `other` from `reference`, conversation by conversation."""
    kls = [_divergence(one, two, vocabulary) for one, two in zip(reference, other, strict=True)]
    hits = [one.ids[:, 0] == two.ids[:, 0] for one, two in zip(reference, other, strict=True)]
    every = np.concatenate(kls)
    kl, kl_interval = _mean(kls)
    top1, top1_interval = _mean(hits)
    return Fidelity(
        kl,
        kl_interval,
        float(np.median(every)),
        float(np.quantile(every, 0.99)),
        top1,
        top1_interval,
        len(kls),
        len(every),
        reference[0].ids.shape[1] == vocabulary,
    )


def from_logits(logits: np.ndarray, top: int) -> Distributions:
    """Convert raw logits, (positions, vocabulary), to the form that `GGUF.logprobs` gives."""
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    values -= np.log(np.exp(values).sum(-1, keepdims=True))
    ids = np.argsort(-values, axis=-1, kind="stable")[:, :top]
    return Distributions(ids, np.take_along_axis(values, ids, -1))


def _divergence(one: Distributions, two: Distributions, vocabulary: int) -> np.ndarray:
    """Return KL(one || two) at each position, (positions,); at least zero."""
    result = np.empty(len(one.ids))
    for place in range(len(one.ids)):
        ids, first, second = np.intersect1d(one.ids[place], two.ids[place], assume_unique=True, return_indices=True)
        p, q = one.logprobs[place][first], two.logprobs[place][second]
        total = float(np.sum(np.exp(p) * (p - q)))
        if len(ids) < vocabulary:
            rest_p, rest_q = 1 - float(np.exp(p).sum()), 1 - float(np.exp(q).sum())
            if rest_p > 1e-9 and rest_q > 1e-9:  # below that it is rounding
                total += rest_p * float(np.log(rest_p / rest_q))
        result[place] = max(total, 0.0)
    return result


def _mean(groups: list[np.ndarray]) -> tuple[float, tuple[float, float]]:
    """Return the mean over all positions and its 95 % percentile bootstrap interval over groups (conversations)."""
    sums = np.array([group.sum() for group in groups], dtype=np.float64)
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    random = np.random.default_rng(7)
    picks = random.integers(len(groups), size=(_RESAMPLES, len(groups)))
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(sums.sum() / sizes.sum()), (float(low), float(high))
