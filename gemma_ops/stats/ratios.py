"""Tests and bounds for F1 that hold for every distribution and every number of rows: micro, macro, and differences of
both.

The game that is played is told in `ratio_game.py`; here are its players. Macro F1 is the mean over labels that occur. A
label that no row wants and no answer says could be one of them, with any F1: it counts as the worst on either side.

The bounds of each label, which narrow the game, hold for every distribution too. Given the rows where a label is wanted
or said, hits are binomial with a rate J (Jaccard's index), and F1 = 2 J / (1 + J); so the exact bounds of J (C.
Clopper, E. Pearson, Biometrika 26, 1934) are those of F1. In clusters they are bounds of a ratio of sums
(`betting.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from gemma_ops.stats.betting import LEVELS, Array, dealt, wins
from gemma_ops.stats.ratio_game import Bools, Ends, LabelCounts, ratio_wins

_SHARE = 0.1
"""Share of the level that is spent on the bounds per label."""
_GRID = 128
"""Margins tried in each of two passes that look for a bound."""
_COARSE = 64
"""Values of F1 at which the bounds per label are tried for clusters."""


@dataclass(frozen=True)
class RatioSample:
    """Hits, totals and wanted rows [groups, labels] of independent groups of rows; `sizes` [groups] counts their rows.

    Micro F1 is one ratio: hits and totals are summed over labels beforehand, and labels is 1. `rival_hits` and
    `rival_totals` are another target's on the same rows; then everything is about the difference.
    """

    hits: Array
    totals: Array
    wanted: Array
    sizes: Array
    rival_hits: Array | None = None
    rival_totals: Array | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where the counts are none of rows with one label wanted and at most one said: the bounds
        per label and the largest loss would be too narrow."""
        for hits, totals in self.sides():
            twice = hits.shape[1] > 1 and (totals > hits + self.sizes[:, None]).any()
            if twice or (hits < 0).any() or (2 * hits > totals).any() or (totals.sum(1) > 2 * self.sizes).any():
                raise ValueError("hits and totals are none of rows that want one label and get one")

    @property
    def value(self) -> float:
        """Return the mean F1 over the labels that occur, or the difference from the rival's where there is one. 0
        without any label."""
        figures = [
            float((2 * hits.sum(0) / np.maximum(totals.sum(0),
                        1e-300))[totals.sum(0) > 0].mean()) if totals.any() else 0.0
            for hits, totals in self.sides()
        ]  # fmt: skip
        return figures[0] - sum(figures[1:])

    @property
    def low(self) -> float:
        """Return the least value that F1, or a difference, can take."""
        return 0.0 if self.rival_hits is None else -1.0

    def shows(self, margin: float, level: float, *, below: bool = False) -> bool:
        """True if a value above `margin` is shown at this level; with `below`, one below it."""
        return bool(self._wins(np.array([margin]), np.array([level]), below=below)[0])

    def p_value(self, margin: float, *, below: bool = False) -> float:
        """Return the smallest level at which, and at all larger ones up to .50, the value is shown; 1 when not at .50.

        P(p <= level) is at most the level, since p <= level means that the game for that level was won.
        """
        won = self._wins(np.full(len(LEVELS), margin), LEVELS, below=below)
        count = len(won) if won.all() else int(np.argmin(won))
        return float(LEVELS[count - 1]) if count else 1.0

    def bound(self, level: float, *, upper: bool = False) -> float:
        """One-sided bound of the value: the last margin of a fixed grid up to which all are shown, to 1/8,000, and
        never beyond the value itself."""
        begin, end = (1.0, self.low) if upper else (self.low, 1.0)
        for _ in range(2):
            margins = np.linspace(begin, end, _GRID + 1)
            won = self._wins(margins[1:], np.full(_GRID, level), below=upper)
            first = _GRID - 1 if won.all() else int(np.argmin(won))
            begin, end = float(margins[first]), float(margins[first + 1])
        return max(begin, self.value) if upper else min(begin, self.value)

    def sides(self) -> list[tuple[Array, Array]]:
        """Return hits and totals of the target, and of its rival where there is one."""
        rival = [] if self.rival_hits is None or self.rival_totals is None else [(self.rival_hits, self.rival_totals)]
        return [(self.hits, self.totals), *rival]

    def _wins(self, margins: Array, levels: Array, *, below: bool) -> Bools:
        sides = self.sides()
        joined = np.concatenate([part for side in sides for part in side], axis=1)
        played = joined.any(axis=1)  # given which rows play, they are as independent as all are
        inside = (margins > self.low) & (margins < 1)
        # Beyond the ends every value lies on one side; at an end, one that differs from it shows that it is not there.
        found = (margins > 1) if below else (margins < self.low)
        if below and len(sides) == 1:
            found = found | ((margins == 1) & bool((2 * self.hits < self.totals).any()))
        elif not below and len(sides) == 1:
            found = found | ((margins == 0) & bool(self.hits.any()))
        if inside.any() and played.any():
            counted, _ = dealt(joined[played], self.sizes[played])
            parts = [part[:, None, :] for part in np.split(counted, 2 * len(sides), axis=1)]
            own, *rival = (LabelCounts(*parts[place : place + 2]) for place in range(0, len(parts), 2))
            clustered = bool((self.sizes != 1).any())
            found[inside] = ratio_shown(
                own, rival[0] if rival else None, margins[inside], levels[inside], below=below, clustered=clustered
            )
        return np.asarray(found)


def ratio_shown(
    own: LabelCounts,
    rival: LabelCounts | None,
    margin: Array,
    level: Array,
    *,
    below: bool = False,
    clustered: bool = False,
) -> Bools:
    """True if a mean F1, or a difference, above `margin` is shown, for every game [games]; with `below`, one below it.
    Each game has its own rows where counts are [rows, games, labels]. Rows in clusters play with sums of clusters.

    Below is above for what is mirrored: the rival's lead, or 1 - F1 = 2 (total / 2 - hits) / total.
    """
    if rival is not None and below:
        return ratio_shown(rival, own, -margin, level, clustered=clustered)
    games, labels = len(margin), own.totals.shape[2]
    if labels == 1 and rival is None:  # the one vector at the margin is the worst
        ends = Ends(np.zeros((games, 1)), np.ones((games, 1)))
    else:
        part = _SHARE * level / (labels * (2 if rival is None else 6))
        low, high = (np.broadcast_to(end, (games, labels)) for end in label_ends(own, part, clustered=clustered))
        level, ends = (1 - _SHARE) * level, Ends(low, high)
        if rival is not None:
            least, most = (
                np.broadcast_to(end, (games, labels)) for end in label_ends(rival, part, clustered=clustered)
            )
            ends = Ends(low - most, high - least, (least, most))
            if labels > 1 and not clustered:
                behind, ahead = _paired_ends(own, rival, low, least, part)
                ends = Ends(np.maximum(ends.low, behind), np.minimum(ends.high, ahead), (least, most))
    if not below:
        return ratio_wins(own, rival, margin, level, ends)
    mirrored = LabelCounts(own.totals / 2 - own.hits, own.totals)
    return ratio_wins(mirrored, None, 1 - margin, level, Ends(1 - ends.high, 1 - ends.low), doubled=True)


def label_ends(counts: LabelCounts, level: Array, *, clustered: bool = False) -> tuple[Array, Array]:
    """Lower and upper bound of each label's F1 [games, labels], each at `level` [games]."""
    if clustered:
        return _cluster_ends(counts, level)
    hits, involved, tail = counts.hits.sum(0), (counts.totals > 0).sum(0), level[:, None]
    if counts.totals.shape[2] > 1:
        low, high = _rate_ends(hits, involved, tail)
        return 2 * low / (1 + low), 2 * high / (1 + high)
    # One ratio over all labels: a row's total is 1 where the answer is no label at all, so two rates are needed.
    low, high = _rate_ends(hits, involved, tail / 2)
    few, many = _rate_ends((counts.totals == 2).sum(0), involved, tail / 2)
    return 2 * low / (1 + many), np.minimum(2 * high / (1 + few), 1.0)


def _paired_ends(own: LabelCounts, rival: LabelCounts, low: Array, least: Array, level: Array) -> tuple[Array, Array]:
    """Return lower and upper bounds of each label's difference [games, labels], narrow where both targets answer alike.
    `low` and `least` bound F1 of the target and of the rival from below.

    Of rows where either has the label, with a rate p of those that speak for the target and q of those that speak for
    the rival: F1 - rival's F1 = E[2 (difference of hits) - rival's F1 (difference of totals)] / E[total]. A row that
    speaks for the target adds at most 2 - rival's F1, and E[total] is at least (1 - p) (1 + J), since only such rows
    can lack it.
    """
    either, tail = ((own.totals > 0) | (rival.totals > 0)).sum(0), level[:, None]
    hits, totals = own.hits - rival.hits, own.totals - rival.totals
    ahead, behind = (
        ((hits > 0) | ((hits == 0) & (totals < 0))).sum(0),
        ((hits < 0) | ((hits == 0) & (totals > 0))).sum(0),
    )
    (_, more), (_, less) = (_rate_ends(count, either, tail) for count in (ahead, behind))
    scale = (2 - least) / np.maximum((1 - more) * (1 + low / (2 - low)), 1e-12)
    return -less * scale, more * scale


def _rate_ends(hits: Array, rows: Array, level: Array) -> tuple[Array, Array]:
    """Return Clopper's and Pearson's bounds of a rate."""
    missed = rows - hits
    low = np.where(hits > 0, stats.beta.ppf(level, np.maximum(hits, 1e-9), missed + 1), 0.0)
    high = np.where(missed > 0, stats.beta.isf(level, hits + 1, np.maximum(missed, 1e-9)), 1.0)
    return low, high


def _cluster_ends(counts: LabelCounts, level: Array) -> tuple[Array, Array]:
    """Return bounds per label of sums over clusters [clusters, 1, labels] on a grid, at the power of √10 next below
    each level."""
    powers, place = np.unique(np.ceil(-2 * np.log10(level)), return_inverse=True)
    labels = counts.totals.shape[2]
    low, high = np.zeros((len(powers), labels)), np.ones((len(powers), labels))
    grid = np.arange(1, _COARSE) / _COARSE
    margins, levels = np.tile(grid, len(powers)), np.repeat(10.0 ** (-powers / 2), len(grid))
    for label in range(labels):
        totals = counts.totals[:, 0, label]
        kept = totals > 0
        if not kept.any():
            continue
        sums, sizes = dealt(2 * counts.hits[kept, 0, label], totals[kept])
        above = wins(sums[:, None], sizes[:, None], margins, 0.0, 1.0, levels).reshape(len(powers), -1)
        under = wins(-sums[:, None], sizes[:, None], -margins, -1.0, 1.0, levels).reshape(len(powers), -1)[:, ::-1]
        low[:, label] = np.cumprod(above, axis=1).sum(1) / _COARSE
        high[:, label] = 1 - np.cumprod(under, axis=1).sum(1) / _COARSE
    return low[place], high[place]
