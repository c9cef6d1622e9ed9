"""A figure that no bound carries: macro F1 with rare labels. Its gate must not decide, and its interval is shown only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemma_ops.config import GateConfig
from gemma_ops.evaluation import gates, statistics
from gemma_ops.evaluation.statistics import Sample
from gemma_ops.metrics.labels import f1_aggregate

SHARES = (0.55, 0.3, 0.09, 0.04, 0.02)
"""How often each of five labels is the right one."""


@dataclass(frozen=True)
class Undecided:
    """How often the gate passed and failed, and how often the interval that is shown held the truth."""

    case: str
    n: int
    times: int
    passes: float
    fails: float
    shown_coverage: float


def macro_f1(n: int, times: int, seed: int) -> Undecided:
    """At least the true macro F1, on n rows of five labels, the rarest of them in one row of fifty."""
    rng, labels = np.random.default_rng(seed), tuple("abcde")
    figure = f1_aggregate(labels, macro=True)

    def details(count: int) -> list[dict[str, str]]:
        wanted = rng.choice(5, count, p=SHARES)
        said = np.where(rng.random(count) < 0.8, wanted, rng.choice(5, count, p=SHARES))
        return [{"wanted": labels[one], "label": labels[other]} for one, other in zip(wanted, said, strict=True)]

    truth = figure([], details(400_000))(np.arange(400_000))
    asked = GateConfig(metric="f1_macro", test="at_least", margin=truth)
    ends, held = {"pass": 0, "fail": 0, "inconclusive": 0}, 0
    for _ in range(times):
        ask = figure([], details(n))
        value = ask(np.arange(n))
        draws = statistics.recentre(value, statistics.resample(ask, [str(row) for row in range(n)], 7, times=200), n)
        found = statistics.bootstrap_interval(value, draws, 0.95, n, n)
        held += found.low <= truth <= found.high
        evidence = gates.Evidence(Sample.of([0.0] * n), False, value, draws)
        ends[gates.judge([asked], [evidence], 0.05)[0][0]] += 1
    return Undecided("macro F1 with rare labels", n, times, ends["pass"] / times, ends["fail"] / times, held / times)
