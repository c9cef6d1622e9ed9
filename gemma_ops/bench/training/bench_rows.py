"""Made-up rows of chats: the same for every arm, by seed. Free of torch."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass

from gemma_ops.bench.training.bench_spec import BenchSpec

_SIGMA = 0.9
"""Standard deviation of the logarithm of a row's length."""
_SPREAD = 0.15
"""Standard deviation of the share of a row that carries loss."""
_SHORTEST = 16
_FIRST = 10
"""Lowest token id drawn: those below are padding and control tokens."""


@dataclass(frozen=True)
class BenchRow:
    """Token ids of a row, and as labels the same ids where they carry loss, -100 elsewhere."""

    input_ids: list[int]
    labels: list[int]


def draw_rows(spec: BenchSpec, vocab: int) -> list[BenchRow]:
    """Draw the rows of one optimizer step: lengths log-normal, prompts first, answers to the end.

    Lengths are drawn one from each of `batch` equally likely slices of the distribution, so that a handful of rows is
    as long on average, and as uneven, as a large data set.
    """
    chance = random.Random(spec.seed)
    return [_row(length, spec.scored, vocab, chance) for length in lengths(spec, chance)]


def lengths(spec: BenchSpec, chance: random.Random) -> list[int]:
    """Return the tokens of each row, in random order."""
    normal, centre = statistics.NormalDist(), math.log(spec.mean) - _SIGMA**2 / 2
    places = [(index + chance.uniform(0.02, 0.98)) / spec.batch for index in range(spec.batch)]
    drawn = [round(math.exp(centre + _SIGMA * normal.inv_cdf(place))) for place in places]
    cut = [max(_SHORTEST, min(spec.longest, length)) for length in drawn]
    chance.shuffle(cut)
    return cut


def _row(length: int, scored: float, vocab: int, chance: random.Random) -> BenchRow:
    ids = [chance.randrange(_FIRST, vocab) for _ in range(length)]
    share = min(0.95, max(0.1, chance.gauss(scored, _SPREAD)))
    answer = max(1, int(length * share))
    return BenchRow(ids, [-100] * (length - answer) + ids[length - answer :])


def bench_facts(rows: list[BenchRow], micro_batch: int) -> dict[str, float]:
    """Return what a reader needs to judge the numbers: tokens of a step, the longest row, the tokens of the row that an
    average token stands in, the share with loss, and how many slots padding makes of a token at `micro_batch` rows,
    over random orders."""
    sizes = [len(row.input_ids) for row in rows]
    total = sum(sizes)
    chance = random.Random(0)
    slots = []
    for _ in range(200):
        chance.shuffle(sizes)
        slots.append(sum(max(sizes[i : i + micro_batch]) * micro_batch for i in range(0, len(sizes), micro_batch)))
    return {
        "tokens": total,
        "longest": max(sizes),
        "context": sum(size**2 for size in sizes) / total,
        "labelled": sum(label != -100 for row in rows for label in row.labels[1:]) / total,
        "slots_per_token_padded": statistics.fmean(slots) / total,
    }
