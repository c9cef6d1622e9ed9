"""The rows that a gate would need if the truth is as measured or as hoped, by the test that decides the gate."""

from __future__ import annotations

import math

from gemma_ops.stats import paired, power
from gemma_ops.stats.intervals import EXACT_ROWS, Sample


def paired_rows(sample: Sample, margin: float, level: float, truth: float, *, is_difference: bool) -> int | None:
    """Return the rows with which a mean above `margin` is shown with power .8, if the truth is this sample moved to
    mean `truth`. None where no number is enough."""
    measured = abs(truth - sample.mean) < 1e-12
    if sample.binary and not is_difference:
        return power.rate_rows_needed(truth, margin, level)
    if sample.binary and sample.n <= EXACT_ROWS:
        wins, losses = float((sample.values > 0).mean()), float((sample.values < 0).mean())
        if not measured:
            # Where every row said the same, one row of the other kind makes other truths possible.
            base = [wins + 1 / (sample.n + 3), losses + 1 / (sample.n + 3), 1 - wins - losses + 1 / (sample.n + 3)]
            wins, losses, _ = power.tilted_weights([1.0, -1.0, 0.0], base, truth)
        return paired.pairs_needed(wins, losses, margin, level)
    scores = sample.bounded(-1.0 if is_difference else 0.0, 1.0)
    found = power.clusters_needed(scores, margin, level, None if measured else truth)
    return None if found is None else math.ceil(found * sample.n / sample.groups)
