"""Evidence on F1: the counts of every label from graded answers, and the words for labels that have too few rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gemma_ops.metrics.metric import RowCounts
from gemma_ops.stats import ratio_rows
from gemma_ops.stats.betting import Array
from gemma_ops.stats.ratios import RatioSample

_NAMED = 5
"""Labels that are named in a sentence at most."""


def ratio_sample(counts: Sequence[RowCounts], clusters: Sequence[str] | None) -> RatioSample:
    """Return one target's counts, or those of two on the same rows, summed over clusters; None makes every row its
    own."""
    own, rival = counts[0], counts[1] if len(counts) > 1 else None
    rows = len(own.hits)
    if clusters is None or len(set(clusters)) == rows:
        index = np.arange(rows)
    else:
        _, index = np.unique(np.asarray(clusters), return_inverse=True)

    def summed(part: Array) -> Array:
        total = np.zeros((int(index.max()) + 1, part.shape[1]))
        np.add.at(total, index, part)
        return total

    return RatioSample(
        summed(own.hits), summed(own.totals), summed(own.wanted), np.bincount(index).astype(np.float64),
        None if rival is None else summed(rival.hits), None if rival is None else summed(rival.totals),
    )  # fmt: skip


def label_rows_needed(sample: RatioSample, margin: float, level: float) -> int | None:
    """Return the rows for power .8 if the sample is the truth; None where it is not beyond the margin, or lacks a
    label."""
    groups = ratio_rows.groups_needed(sample, margin, level) if ratio_rows.occurs(sample).all() else None
    return None if groups is None else int(np.ceil(groups * sample.sizes.sum() / len(sample.sizes)))


def missing_labels(sample: RatioSample, labels: Sequence[str], margin: float, level: float) -> str | None:
    """Return what keeps a gate on F1 from passing: labels with too few rows for any answers, labels without a row, or
    the figure itself. None where more rows like these would pass it. `labels` is empty for micro F1, which is one
    ratio."""
    short = too_few(sample, labels, margin, level)
    if short is not None:
        return short
    if labels and not ratio_rows.occurs(sample).all():
        return (
            f"labels without a row count as wrong ({_few(sample, labels, 1)}); add rows of them, or take them out of "
            f"the choices"
        )
    if sample.value > margin:
        return None
    return "what was measured is not beyond the margin; more rows pass it only if the truth is better"


def too_few(sample: RatioSample, labels: Sequence[str], margin: float, level: float) -> str | None:
    """Return why no answers to these rows pass the gate; None where the best ones do."""
    unit = "clusters" if (sample.sizes != 1).any() else "rows"
    each = ratio_rows.groups_each(sample, margin, level)
    if each is None:
        return "no number of rows would pass it"
    if not each:
        return None
    best = "every answer of both is right" if sample.rival_hits is not None and margin < 0 else "all answers are right"
    if not labels:
        return f"{len(sample.sizes):,} {unit} can't show it, {each:,} could even if {best}"
    least = "one of each" if each == 1 else f"{each:,} of each"
    return f"its labels have too few {unit} ({_few(sample, labels, each)}); {least} could show it if {best}"


def _few(sample: RatioSample, labels: Sequence[str], each: int) -> str:
    """Name the labels with fewer groups than `each`, fewest first: `'owl' none, 'eel' 2, and 3 more`."""
    counts = ratio_rows.groups_with(sample)
    short = sorted((int(count), label) for label, count in zip(labels, counts, strict=True) if count < each)
    told = ", ".join(f"'{label}' {count or 'none'}" for count, label in short[:_NAMED])
    return told + (f", and {len(short) - _NAMED:,} more" if len(short) > _NAMED else "")
