"""Rows that a test of F1 takes: how many of each label could pass it at best, and how many give it a power of .8."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from gemma_ops.stats.betting import Array
from gemma_ops.stats.power import POWER
from gemma_ops.stats.ratio_game import Bools, LabelCounts
from gemma_ops.stats.ratios import RatioSample, ratio_shown

_MOST_EACH = 20_000
"""Largest number of groups of one label that is looked for."""
_GAMES = 200
_MOST_PLAYED = 8_000_000
"""Rows times games times labels that are played at most; beyond, rows are estimated from the width of the bound."""
_AT_ONCE = 1_000_000


def groups_with(sample: RatioSample) -> Array:
    """Return how many groups hold a row that wants each label [labels]."""
    return np.asarray((sample.wanted > 0).sum(0), dtype=np.float64)


def at_best(sample: RatioSample, margin: float, each: int = 0) -> RatioSample:
    """Return the sample with the best answers there are, and with at least `each` groups for every label: all are
    right; a rival's too where the margin is below 0, else they are all wrong, with no label said."""
    size = max(1.0, round(float(sample.sizes.mean())))
    added = np.repeat(np.arange(sample.wanted.shape[1]), np.maximum(0, each - groups_with(sample)).astype(int))
    wanted = np.concatenate([sample.wanted, size * np.eye(sample.wanted.shape[1])[added]])
    grown = replace(
        sample, hits=wanted, totals=2 * wanted, wanted=wanted, sizes=np.append(sample.sizes, np.full(len(added), size)),
        rival_hits=None, rival_totals=None,
    )  # fmt: skip
    if sample.rival_hits is None:
        return grown
    right = margin < 0
    return replace(grown, rival_hits=wanted * right, rival_totals=wanted * (1 + right))


def groups_each(sample: RatioSample, margin: float, level: float) -> int | None:
    """Return the groups of every label with which the best answers show a value above `margin`: 0 where those of the
    sample do, None where no number does. To 2 %."""
    if at_best(sample, margin).shows(margin, level):
        return 0
    if margin >= (1.0 if sample.rival_hits is None or margin >= 0 else 0.0):
        return None
    few, enough = 0, 4
    while not at_best(sample, margin, enough).shows(margin, level):
        few, enough = enough, 2 * enough
        if enough > _MOST_EACH:
            return None
    while enough - few > max(1, enough // 50):
        middle = (few + enough) // 2
        few, enough = (few, middle) if at_best(sample, margin, middle).shows(margin, level) else (middle, enough)
    return enough


def occurs(sample: RatioSample) -> Bools:
    """True if a label is wanted or said anywhere, for each label [labels]."""
    return np.asarray(np.any([totals.any(axis=0) for _, totals in sample.sides()], axis=0))


def groups_needed(sample: RatioSample, margin: float, level: float) -> int | None:
    """Return the groups with which a value above `margin` is shown with power .8, if the sample is the truth: played
    with rows drawn from it, or where that takes too long, as in clusters, told from how often the sample must be
    repeated to show it, which is a power of a half. None where no number is enough."""
    if sample.value - margin <= 1e-6:
        return None
    z = NormalDist().inv_cdf(1 - level)
    guess = math.ceil(_repeated(sample, margin, level) * (1 + NormalDist().inv_cdf(POWER) / max(z, 1.0)) ** 2)
    if (sample.sizes != 1).any() or guess * _GAMES * sample.hits.shape[1] > _MOST_PLAYED:
        return guess
    few, enough = 0, 0
    for _ in range(8):
        if power_of_rows(sample, guess, margin, level) >= POWER:
            enough = guess
        else:
            few = guess
        if enough and few and enough - few <= max(1, enough // 12):
            break
        guess = math.ceil(1.3 * few) if not enough else math.floor(enough / 1.3) if not few else (few + enough) // 2
    return enough or math.ceil(1.3 * few)


def _repeated(sample: RatioSample, margin: float, level: float) -> int:
    """Return the groups, to a tenth, with which the sample itself, repeated or cut short, shows a value above `margin`;
    at most a thousand times its own."""

    def shown(n: int) -> bool:
        taken = np.arange(n) % groups
        sides = [(hits[taken], totals[taken]) for hits, totals in sample.sides()]
        rival = sides[1] if len(sides) > 1 else (None, None)
        return RatioSample(*sides[0], sample.wanted[taken], sample.sizes[taken], *rival).shows(margin, level)

    groups = len(sample.sizes)
    few, enough = 0, groups
    while not shown(enough) and enough < 1000 * groups and enough * sample.hits.size // groups < _MOST_PLAYED:
        few, enough = enough, 2 * enough
    while enough - few > max(1, enough // 10):
        middle = (few + enough) // 2
        few, enough = (few, middle) if shown(middle) else (middle, enough)
    return enough


def power_of_rows(sample: RatioSample, n: int, margin: float, level: float, games: int = _GAMES) -> float:
    """Return the chance that n independent rows drawn from the sample show a value above `margin`."""
    rng, shown = np.random.default_rng(n), 0
    at_once = max(1, _AT_ONCE // (n * sample.hits.shape[1]))
    for begin in range(0, games, at_once):
        count = min(at_once, games - begin)
        drawn = rng.integers(0, len(sample.sizes), (n, count))
        own, *rival = (LabelCounts(hits[drawn], totals[drawn]) for hits, totals in sample.sides())
        margins, levels = np.full(count, margin), np.full(count, level)
        shown += int(ratio_shown(own, rival[0] if rival else None, margins, levels).sum())
    return shown / games
