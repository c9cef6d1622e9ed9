"""A game that shows a mean of F1 over labels, or a difference of two, to be above a margin, for every distribution.

A label's F1 is 2 E[hits] / E[total] per row, where a row's hit is 1 when it wants the label and gets it, and its total
counts how often the label is wanted or said: 0, 1 or 2. So with the true F1 f of every label, and any weights w,

    sum over labels of w (2 hits - f total)        minus the same of a rival, with its own true F1

is 0 on average. A player who bets on this, with bets and weights that depend on earlier rows only, has a wealth that is
a martingale for the true f, whatever the distribution; the chance that it ever reaches 1 / level is at most the level
(J. Ville, 1939). The true f is not known. But if the mean is at most the margin, it is one of the vectors whose mean is
at most that; so where the wealth of *every* such vector is above 1 / level, the mean is shown to be above the margin.
That is one test of all labels together. Bounds per label at level / K, averaged, are valid too: with 10 labels at .9
and 850 rows they pass a margin of .85 in 1 % of cases, and this game in 85 % (`gemma-ops bench gates`).

The bets are the same for all vectors, so log wealth is a sum of concave functions of f. Each is bounded from below by
its chord between the ends that f can have; what comes out is linear in f, and its least value over the vectors is found
by filling a budget (a fractional knapsack). The ends are those of bounds per label, which take a tenth of the level.
Paired targets are described by f of the rival and the difference, so that rows that both answer alike lose next to
nothing.

The weight of a label is the inverse of how often it was seen so far, which makes the sum the influence function of the
mean of F1. The bet is that of `betting.py`, at equal differences of all labels, towards a goal a little beyond 1 /
level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from gemma_ops.stats.betting import Array

Bools = npt.NDArray[np.bool_]
_STEPS = 500
"""Times that the bet is made anew, at most."""
_CHECKS = 40
"""Times that the least wealth is looked up, at most."""
_GOAL, _RUNG = 0.6, 0.5
"""Goal of the game: 1 / (this share of the level), as the worst vector has less wealth than the played one; once
reached, the goal moves this far beyond in log wealth."""
_PRIOR_ROWS, _PRIOR_SPREAD = 4.0, 0.15
"""First guess of a gain's deviation, as a share of the range of gains; it weighs as much as 4 rows."""
_MOST_BET = 0.999
"""Largest share of the wealth that is lost where the largest loss comes."""


@dataclass(frozen=True)
class LabelCounts:
    """Hits and totals [rows, games, labels] of one target, where `games` may be 1: all play with the same rows. In one
    row the totals of all labels sum to 2 at most, and so they do in a cluster after division by the size of the
    largest."""

    hits: Array
    totals: Array


@dataclass(frozen=True)
class Ends:
    """Bounds of each label [games, labels]: `low` to `high` holds its F1, or its difference from the rival's, and
    `rival` the rival's F1."""

    low: Array
    high: Array
    rival: tuple[Array, Array] | None = None


def ratio_wins(
    own: LabelCounts, rival: LabelCounts | None, margin: Array, level: Array, ends: Ends, *, doubled: bool = False
) -> Bools:
    """True if the least wealth reaches 1 / level, for every game [games].

    `margin` [games] is that of the mean over labels, of the difference with a `rival`. The chance of a wrong True is at
    most the level plus the chance that `ends` miss the truth. `doubled`: one label can bring a loss of two totals in
    one row.
    """
    rows, _, labels = own.totals.shape
    box = _Box.of(ends, margin * labels)
    state = _Wealth.start(len(margin), labels)
    per = -(-rows // _STEPS)
    starts = range(0, rows, per)
    every = max(1, len(starts) // _CHECKS)
    seen, first, second = np.zeros((len(margin), labels)), np.zeros(len(margin)), np.zeros(len(margin))
    rival_hits, goal = np.zeros_like(seen), np.log(level) + math.log(_GOAL)
    won = box.excluded.copy()
    for number, begin in enumerate(starts):
        hits, totals = own.hits[begin : begin + per], own.totals[begin : begin + per]
        weights = (begin + labels) / (labels * (seen + 2.0))
        largest = _largest_loss(weights, margin, paired=rival is not None, doubled=doubled)
        gains, falls = 2.0 * hits, weights * totals
        rest = None
        if rival is not None:
            other, others = rival.hits[begin : begin + per], rival.totals[begin : begin + per]
            gains, rest = gains - 2.0 * other, weights * (totals - others)
        gain = (weights * gains).sum(2)
        value = gain - falls.sum(2) * margin
        if rest is not None:
            value = value - (rest * ((2 * rival_hits + 1.6) / (seen + 2.0))).sum(2)
        rung = np.maximum(0.0, np.ceil((state.played + goal + 0.01) / _RUNG))
        share = np.clip(np.exp(goal - _RUNG * rung + state.played), 1e-12, 1 - 1e-9)
        hazard = np.exp(-0.5 * special.ndtri(share) ** 2) / (math.sqrt(2 * math.pi) * share)
        known = begin + _PRIOR_ROWS
        spread = _PRIOR_SPREAD * (2 if rival is None else 4) * weights.max(1)
        variance = (second + _PRIOR_ROWS * spread**2) / known - (first / known) ** 2
        bet = np.minimum(_MOST_BET / largest, hazard / np.sqrt(np.maximum(variance, 1e-12) * (rows - begin)))
        state.add(bet, gain, value, falls, rest, box)
        seen += totals.sum(0) if rival is None else (totals + others).sum(0) / 2
        if rival is not None:
            rival_hits += other.sum(0)
        first += value.sum(0)
        second += (value * value).sum(0)
        if number % every == every - 1 or number == len(starts) - 1:
            won |= state.least(box) >= -np.log(level)
    return np.asarray(won & ~box.hopeless)


def _largest_loss(weights: Array, margin: Array, *, paired: bool, doubled: bool) -> Array:
    """Return what one row can lose at most, for the vectors that could be true [games]: a wrong answer costs the label
    that was wanted and the one that was said. With a rival that is right, two more. Of one label, F1 is its margin."""
    if weights.shape[1] == 1:
        return np.asarray(2 * weights[:, 0] * (1 + margin if paired else margin))
    top = np.partition(weights, -2, axis=1)[:, -2:]
    return np.asarray((2 * top[:, 1] if doubled else top.sum(1)) + (2 * top[:, 1] if paired else 0.0))


@dataclass(frozen=True)
class _Box:
    """The vectors that a mean of at most the margin allows: `low` to `high` [games, labels], summing to `most` [games]
    at most. `excluded`: there is none. `hopeless`: all that the ends allow is among them."""

    low: Array
    high: Array
    most: Array
    ends: Ends
    excluded: Bools
    hopeless: Bools

    @classmethod
    def of(cls, ends: Ends, most: Array) -> _Box:
        """Build the box of the worst vectors, which sum to `most` because wealth falls with every coordinate: each
        coordinate lies within what the others' ends leave it."""
        low, high = np.broadcast_arrays(ends.low, ends.high)
        least, top, room = low.sum(1, keepdims=True), high.sum(1, keepdims=True), most[:, None]
        raised, sunk = np.maximum(low, room - (top - high)), np.minimum(high, room - (least - low))
        excluded, hopeless = least > room, top <= room
        odd = excluded | hopeless
        low, high = np.where(odd, low, np.minimum(raised, high)), np.where(odd, high, np.maximum(sunk, low))
        return cls(low, np.maximum(low, high), most, ends, excluded[:, 0], hopeless[:, 0])


@dataclass
class _Wealth:
    """Log wealth so far: `played` [games] of the vector that is played; from below, of every vector f in the box,
    `base` - `slopes` · f - `rival_slopes` · (the rival's f)."""

    played: Array
    base: Array
    slopes: Array
    rival_slopes: Array

    @classmethod
    def start(cls, games: int, labels: int) -> _Wealth:
        return cls(np.zeros(games), np.zeros(games), np.zeros((games, labels)), np.zeros((games, labels)))

    def add(self, bet: Array, gain: Array, value: Array, falls: Array, rest: Array | None, box: _Box) -> None:
        """Enter rows: log(1 + x) by its chord between the least and the largest x that the box allows."""
        self.played = self.played + np.log1p(np.maximum(bet * value, -0.999999)).sum(0)
        top, bottom = gain - (falls * box.low).sum(2), gain - (falls * box.high).sum(2)
        if rest is not None and box.ends.rival is not None:
            sides = rest * box.ends.rival[0], rest * box.ends.rival[1]
            top, bottom = top - np.minimum(*sides).sum(2), bottom - np.maximum(*sides).sum(2)
        # No vector that could be true loses everything, so x below that belongs to none of them.
        top, bottom = (np.maximum(bet * end, -1 + 1e-9) for end in (top, bottom))
        width, floor = top - bottom, np.log1p(bottom)
        slope = np.where(width > 1e-9, (np.log1p(top) - floor) / np.maximum(width, 1e-9), 1 / (1 + top))
        self.base = self.base + (floor + slope * (bet * gain - bottom)).sum(0)
        self.slopes = self.slopes + ((slope * bet)[..., None] * falls).sum(0)
        if rest is not None:
            self.rival_slopes = self.rival_slopes + ((slope * bet)[..., None] * rest).sum(0)

    def least(self, box: _Box) -> Array:
        """Least log wealth [games] over the box: the budget beyond all lower ends goes to the steepest labels first."""
        order = np.argsort(-self.slopes, axis=1)
        slopes, low, width = (
            np.take_along_axis(part, order, axis=1) for part in (self.slopes, box.low, box.high - box.low)
        )
        left = np.maximum(box.most - box.low.sum(1), 0.0)[:, None]
        filled = np.clip(left - (np.cumsum(width, axis=1) - width), 0.0, width)
        worst = self.base - (slopes * (low + filled)).sum(1)
        if box.ends.rival is not None:
            sides = self.rival_slopes * box.ends.rival[0], self.rival_slopes * box.ends.rival[1]
            worst = worst - np.maximum(*sides).sum(1)
        return np.asarray(worst)
