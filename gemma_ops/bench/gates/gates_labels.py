"""Gates on F1 whose truth stands at the margin: micro and macro, rare labels, and targets in pairs; and their power."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemma_ops.bench.gates.gates_tables import SIDE, Bools, ErrorRates
from gemma_ops.stats.betting import Array
from gemma_ops.stats.ratio_game import LabelCounts
from gemma_ops.stats.ratios import label_ends, ratio_shown

_AT_ONCE = 1_000_000
"""Rows times repetitions times labels that are played at once."""


@dataclass(frozen=True)
class LabelCase:
    """Rows that want a label, drawn by `shares`. A target says it with rate `right`, no label with rate `invalid`, else
    one drawn by the shares. A rival says the same but for a share `apart` of rows, where it draws anew by the
    shares."""

    name: str
    shares: tuple[float, ...]
    right: float
    macro: bool
    invalid: float = 0.0
    apart: float | None = None

    def draw(self, rng: np.random.Generator, times: int, n: int) -> tuple[LabelCounts, LabelCounts | None]:
        """Draw the counts [n, times, labels] of the target and of its rival; micro F1 has one label."""
        labels = len(self.shares)
        wanted = rng.choice(labels, (n, times), p=self.shares)
        luck = rng.random((n, times))
        said = np.where(luck < self.right, wanted, rng.choice(labels, (n, times), p=self.shares))
        said = np.where(luck > 1 - self.invalid, labels, said)
        if self.apart is None:
            return self._counts(wanted, said), None
        other = np.where(rng.random((n, times)) < self.apart, rng.choice(labels, (n, times), p=self.shares), said)
        return self._counts(wanted, other), self._counts(wanted, said)

    @property
    def truth(self) -> float:
        """Return the F1 of the whole population; the difference from the rival, which is the better one."""
        drawn, own = np.asarray(self.shares), np.diag(self.right * np.asarray(self.shares))
        own = np.hstack([own, self.invalid * drawn[:, None]])
        own[:, :-1] += (1 - self.right - self.invalid) * np.outer(drawn, drawn)
        if self.apart is None:
            return self._f1(own)
        other = (1 - self.apart) * own
        other[:, :-1] += self.apart * np.outer(drawn, drawn)
        return self._f1(other) - self._f1(own)

    def _f1(self, joint: Array) -> float:
        """Return F1 from the probability of each pair of a wanted label and a said one, or none [labels, labels +
        1]."""
        hits, totals = np.diag(joint[:, :-1]), joint.sum(1) + joint[:, :-1].sum(0)
        return float((2 * hits / totals).mean() if self.macro else 2 * hits.sum() / totals.sum())

    def _counts(self, wanted: np.ndarray, said: np.ndarray) -> LabelCounts:
        every = np.arange(len(self.shares))
        want, say = (part[..., None] == every for part in (wanted, said))
        hits, totals = (want & say).astype(np.float64), want.astype(np.float64) + say
        if self.macro:
            return LabelCounts(hits, totals)
        return LabelCounts(hits.sum(2, keepdims=True), totals.sum(2, keepdims=True))


_RARE = (0.55, 0.3, 0.09, 0.04, 0.02)
_EVEN = (1 / 3,) * 3


def label_cases() -> list[LabelCase]:
    """Return all kinds of labels."""
    return [
        LabelCase("micro F1 at least, 5% no label", _EVEN, 0.85, macro=False, invalid=0.05),
        LabelCase("macro F1 at least, 3 even labels", _EVEN, 0.85, macro=True),
        LabelCase("macro F1 at least, 5 labels, the rarest 2%", _RARE, 0.8, macro=True),
        LabelCase("macro F1 at least, 10 even labels", (0.1,) * 10, 0.85, macro=True),
        LabelCase("micro F1 noninferior, 5% no label", _EVEN, 0.85, macro=False, invalid=0.05, apart=0.06),
        LabelCase("macro F1 noninferior, 3 even labels", _EVEN, 0.85, macro=True, apart=0.06),
        LabelCase("macro F1 noninferior, 5 labels, the rarest 2%", _RARE, 0.8, macro=True, apart=0.06),
    ]


def _shown(case: LabelCase, n: int, times: int, seed: int, asked: list[tuple[float, float, bool]]) -> list[Bools]:
    """Return for each (margin, level, below) whether it is shown [times], on the same data."""
    rng, found = np.random.default_rng(seed), [list[Bools]() for _ in asked]
    at_once = max(1, _AT_ONCE // (n * len(case.shares)))
    for begin in range(0, times, at_once):
        count = min(at_once, times - begin)
        own, rival = case.draw(rng, count, n)
        for shown, (margin, level, below) in zip(found, asked, strict=True):
            shown.append(ratio_shown(own, rival, np.full(count, margin), np.full(count, level), below=below))
    return [np.concatenate(shown) for shown in found]


def label_errors(case: LabelCase, n: int, times: int, seed: int) -> ErrorRates:
    """Measure one line of the table."""
    truth = case.truth
    asked = [(truth, level, below) for level in (0.05, SIDE) for below in (False, True)]
    above, below, low, high = _shown(case, n, times, seed, asked)
    return ErrorRates(case.name, n, times, float(above.mean()), float(below.mean()), 1 - float((low | high).mean()))


@dataclass(frozen=True)
class LabelPower:
    """Power of a gate: how often a macro F1 of even labels passes a margin; `per_label` is how often bounds of each
    label at its share of the level do, averaged."""

    labels: int
    value: float
    margin: float
    n: int
    times: int
    passes: float
    per_label: float


def label_power(labels: int, value: float, margin: float, n: int, times: int, seed: int) -> LabelPower:
    """Measure the power for labels of equal shares and equal F1 `value`; a wrong answer is any other label."""
    even = (1 / labels,) * labels
    case = LabelCase("", even, (value * labels - 1) / (labels - 1), macro=True)
    (passed,) = _shown(case, n, times, seed, [(margin, 0.05, False)])
    own, _ = case.draw(np.random.default_rng(seed), times, n)
    least, _ = label_ends(own, np.full(times, 0.05 / labels))
    passes, per_label = float(passed.mean()), float((least.mean(1) > margin).mean())
    return LabelPower(labels, value, margin, n, times, passes, per_label)
