"""What differences this many rows can show, computed before any question is answered.

Normal approximations with power .8, on the standard library alone, so that the command line can warn in no time.
For paired yes/no scores what counts is the discordance, the share of rows that exactly one of the two targets gets
right (Connor, Biometrics 43, 1987). Measured here for +5 points at a score of .70 and correlation .8 (discordance
about .2): power .34 at n = 200, .96 at n = 1000.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from gemma_ops.stats.fewest import fewest
from gemma_ops.stats.look_levels import look_level

if TYPE_CHECKING:
    from gemma_ops.config import EvaluateConfig, GateConfig

POWER = 0.8
"""Probability of passing that a plan aims at when the truth is as assumed."""
DISCORDANCE: dict[Literal["superior", "noninferior"], float] = {"superior": 0.2, "noninferior": 0.05}
"""Assumed share of rows that only one target gets right: a tuned model and its base differ more than a model and its
quantized self."""


def quantiles(alpha: float, power: float = POWER) -> tuple[float, float]:
    """Return one-sided normal quantiles of the level and of the power."""
    return NormalDist().inv_cdf(1 - alpha), NormalDist().inv_cdf(power)


def gate_rows_needed(
    gap: float, variance_null: float, variance: float, alpha: float, power: float = POWER
) -> int | None:
    """Return the rows with which an estimate `gap` beyond the margin is shown at level alpha with this power.

    Variances are of one row, under the margin and under the truth. None when the gap is not positive: no number of
    rows shows what is not so.
    """
    if gap <= 1e-9:
        return None
    z_alpha, z_power = quantiles(alpha, power)
    return math.ceil(((z_alpha * math.sqrt(variance_null) + z_power * math.sqrt(variance)) / gap) ** 2)


def detectable_difference(n: int, discordance: float, alpha: float = 0.05, power: float = POWER) -> float:
    """Return the smallest true paired difference that n rows show, one-sided, against no difference.

    A difference can't exceed the discordance; where even that is not enough the discordance needed is returned.
    """
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        share = max(discordance, middle)
        needed = gate_rows_needed(middle, share, share - middle**2, alpha, power)
        low, high = (low, middle) if needed is not None and needed <= n else (middle, high)
    return high


def fewest_rows(gate: GateConfig, alpha: float) -> int | None:
    """Return the rows below which no test that holds for all scores can pass the gate, even if every answer is right
    (`at_least`) or none differs (`noninferior`): log alpha / log(margin), and log alpha / log(1 - margin). None for
    other gates, and where no number of rows passes it."""
    if not 0 < gate.margin < 1:
        return None
    if gate.test == "at_least":
        return fewest(gate.margin, 1.0, 0.0, alpha)
    return fewest(-gate.margin, 0.0, -1.0, alpha) if gate.test == "noninferior" else None


def rows_for_gate(gate: GateConfig, alpha: float, discordance: float | None = None) -> int | None:
    """Return the rows that a paired gate needs when there is no true difference (noninferior), or one of twice the
    margin and at least .05 (superior). None for `at_least` and `at_most`, whose need depends on the figure itself."""
    if gate.test not in ("noninferior", "superior"):
        return None
    # A model and a service that knows nothing of it differ on more rows than a model and its quantized self.
    strangers = ":" in gate.target or ":" in (gate.versus or "")
    share = DISCORDANCE["superior" if strangers else gate.test] if discordance is None else discordance
    if gate.test == "noninferior":
        found = gate_rows_needed(gate.margin, max(share, gate.margin), share, alpha)
        return None if found is None else max(found, fewest_rows(gate, alpha) or 0)
    truth = max(2 * gate.margin, 0.05)
    return gate_rows_needed(truth - gate.margin, max(share, truth), max(share, truth) - truth**2, alpha)


def advice(rows: dict[str, int], settings: EvaluateConfig) -> list[str]:
    """Return what the planned gates can show with this many rows per task; lines that begin with `warning:` say they
    can't."""
    lines: list[str] = []
    level = look_level(1 - settings.confidence, ())
    per_gate = level / max(len(settings.gates), 1)
    for task, n in rows.items():
        seen = detectable_difference(n, DISCORDANCE["superior"], level)
        lines.append(
            f"{task}: {n} rows show a difference of {seen:.3f} or more "
            f"(power {POWER:.0%}, {DISCORDANCE['superior']:.0%} of rows differing, one gate)"
        )
    only = next(iter(rows)) if len(rows) == 1 else None
    for gate in settings.gates:
        name = gate.task or only
        needed = rows_for_gate(gate, per_gate)
        if name in rows and needed is not None and needed > rows[name]:
            lines.append(
                f"warning: gate {gate.words} will likely end inconclusive with {rows[name]} rows of {name}: "
                f"it needs about {needed}"
            )
        if gate.test == "noninferior" and gate.margin <= 0:
            lines.append(f"warning: gate {gate.words} has no margin, so only a better target can pass it")
    return lines
