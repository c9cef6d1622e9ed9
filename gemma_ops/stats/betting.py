"""Tests and bounds for the mean of bounded values that hold for every distribution and every number of rows.

The test is a game (I. Waudby-Smith, A. Ramdas, JRSS-B 86, 2024). A player who believes that the mean is above a margin
m starts with 1 and bets a share b of his wealth on each value x, which becomes wealth · (1 + b (x - m) / (m - low)). If
the mean is at most m, the game is at best fair, whatever the distribution, as long as b, in [0, 1], depends on earlier
values only; so the chance that the wealth ever reaches 1 / level is at most the level (J. Ville, 1939).

Valid for every bet, powerful for good ones. The bet here is the one that has the best chance of reaching a goal by a
deadline (S. Browne, Adv. Appl. Probab. 31, 1999): with r values to go, wealth W and estimated deviation s of a gain,

    b = phi(d) / (Phi(d) s sqrt(r)),    d = Phi^-1(level · W)

In the limit of many rows of small gains the game is won exactly when a one-sided z-test rejects. Measured at sd .15 in
[-1, 1], level .05 (`gemma-ops bench gates`): power .80 with 1.1 to 1.6 times the rows of a t-test, where plug-in bets
need 1.5 to 1.7 times as many and Gaffke's bound, which is not proven, 1.1 to 1.8.

Clusters enter by their sums and sizes: the mean of all rows is above m when sum - m · size is above 0 on average, and
that is bounded by the size of the largest cluster. So informative sizes are allowed, and the mean is that of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
_HASTE = 1.15
"""Factor by which a bet exceeds the one for normal gains: gains are not normal, and what is left at the deadline is
lost."""
_PRIOR_ROWS, _PRIOR_SPREAD = 4.0, 0.075
"""First guess of the deviation, as a share of the range, before any value is seen; it weighs as much as 4 rows."""
_STEPS = 2000
"""Times that the bet is made anew, at most."""
LEVELS: Array = 0.05 * 1.05 ** np.arange(47, -222, -1.0)
"""Levels at which a p-value is looked for, from .50 to .000001. It is known to 5 %."""
_GRID = 128
"""Margins tried in each of two passes that look for a bound."""


def wins(
    sums: Array, sizes: Array, margin: Array, low: float, spread: Array | float, level: Array
) -> npt.NDArray[np.bool_]:
    """True if the player reaches a wealth of 1 / level, for every game.

    `sums` and `sizes` [rows, games] or [rows, 1]: what each row brings, sizes at most 1 each; `margin` and `level`
    [games]; `low` is the least value, `spread` the range of values. Margins are above `low`. Of more than 2,000 rows
    the bet is made anew only every so many.
    """
    rows, width = len(sums), margin - low
    per = -(-rows // _STEPS)
    if rows % per:
        sums, sizes = (np.pad(part, ((0, per - rows % per), (0, 0))) for part in (sums, sizes))
    prior = _PRIOR_ROWS * (_PRIOR_SPREAD * spread / width) ** 2
    wealth = np.ones(np.broadcast_shapes(margin.shape, level.shape, sums.shape[1:]))
    first, second, won = np.zeros_like(wealth), np.zeros_like(wealth), np.zeros(wealth.shape, dtype=bool)
    for seen in range(0, rows, per):
        gains = (sums[seen : seen + per] - margin * sizes[seen : seen + per]) / width
        weight = seen + _PRIOR_ROWS
        variance = (second + prior) / weight - (first / weight) ** 2
        share = np.clip(level * wealth, 1e-12, 1 - 1e-9)
        hazard = np.exp(-0.5 * special.ndtri(share) ** 2) / (math.sqrt(2 * math.pi) * share)
        bet = np.minimum(1.0, _HASTE * hazard / np.sqrt(variance * (rows - seen)))
        wealth = np.where(won, wealth, wealth * np.maximum(0.0, 1 + bet * gains).prod(0))
        won |= wealth * level >= 1 - 1e-12
        first += gains.sum(0)
        second += (gains * gains).sum(0)
    return won


@dataclass(frozen=True)
class BoundedSample:
    """Values in [low, high], independent: sums and sizes of clusters of rows, where rows come in clusters. Without an
    upper end, `high` is infinite, and nothing can be said of the mirrored sample."""

    sums: Array
    sizes: Array
    low: float
    high: float

    def __post_init__(self) -> None:
        """Raise ValueError where a value lies outside [low, high]: no result would hold."""
        if (self.sums < self.low * self.sizes - 1e-9).any() or (self.sums > self.high * self.sizes + 1e-9).any():
            raise ValueError(f"a value lies outside {self.low:g} to {self.high:g}")

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.sizes.sum())

    def mirrored(self) -> BoundedSample:
        """Return the sample with every sign reversed."""
        return BoundedSample(-self.sums, self.sizes, -self.high, -self.low)

    def shows(self, margin: float, level: float) -> bool:
        """True if a mean above `margin` is shown at this level."""
        return bool(self._wins(np.array([margin]), np.array([level]))[0])

    def p_value(self, margin: float) -> float:
        """Return the smallest level at which, and at all larger ones up to .50, a mean above `margin` is shown; 1 when
        not at .50.

        P(p <= level) is at most the level, since p <= level means that the game for that level was won.
        """
        won = self._wins(np.full(len(LEVELS), margin), LEVELS)
        count = len(won) if won.all() else int(np.argmin(won))
        return float(LEVELS[count - 1]) if count else 1.0

    def bound(self, level: float) -> float:
        """Lower bound of the mean: the least margin above which the mean is not shown to be, to 1/10,000 of the
        range."""
        bottom, top = self.low, min(self.mean, self.high)
        for _ in range(2):
            if top - bottom <= 1e-12:
                break
            margins = np.linspace(bottom, top, _GRID + 1)
            won = self._wins(margins[1:], np.full(_GRID, level))
            first = _GRID - 1 if won.all() else int(np.argmin(won))
            bottom, top = float(margins[first]), float(margins[first + 1])
        return bottom

    def _spread(self, margins: Array) -> Array | float:
        """Return the range of values; without an upper end, twice the distance from the lower end to the margin."""
        return self.high - self.low if math.isfinite(self.high) else 2 * (margins - self.low)

    def _wins(self, margins: Array, levels: Array) -> npt.NDArray[np.bool_]:
        sums, sizes = dealt(self.sums, self.sizes)
        found = np.zeros(np.broadcast_shapes(margins.shape, levels.shape), dtype=bool)
        inside = (margins > self.low) & (margins < self.high)
        # Below the least value every mean is; a mean of exactly the least value is shown false by any larger one.
        found[margins < self.low] = True
        found[margins == self.low] = bool((sums > self.low * sizes + 1e-12).any())
        if inside.any():
            found[inside] = wins(
                sums[:, None], sizes[:, None], margins[inside], self.low, self._spread(margins[inside]), levels[inside]
            )
        return found


def dealt(sums: Array, sizes: Array) -> tuple[Array, Array]:
    """Return sums and sizes in the order in which they are played, scaled so that no size exceeds 1.

    The order must not depend on the values, or the game is none: an order drawn from a digest of the values themselves
    errs .068 instead of .05 where values are few and coarse. So it depends on the number of values only, and mixes rows
    that a file holds sorted. Whoever brings values brings them in an order that doesn't depend on them.
    """
    order = np.random.default_rng(len(sums)).permutation(len(sums))
    sums, sizes = sums[order], sizes[order]
    most = sizes.max()
    return sums / most, sizes / most
