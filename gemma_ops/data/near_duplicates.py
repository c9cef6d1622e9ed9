"""Near duplicates: MinHash finds candidates, and the similarity itself decides.

Signatures are datasketch's of 32 bits, bit for bit (its permutations, its mixing), computed for many sets at once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from gemma_ops.data.hashed_words import Counts, Hashes, Texts, distinct, jaccard, sketch

PERMUTATIONS = 128
Signatures = np.ndarray[Any, np.dtype[np.uint32]]
_AT_ONCE = 1024
"""Elements whose permutations are computed at once: 512 KiB, which a cache holds."""


@lru_cache(maxsize=64)
def bands(threshold: float) -> tuple[int, int]:
    """Return bands b and rows r with b·r ≤ 128 that find a pair of exactly this similarity with a probability of 0.95
    or more.

    The longest rows are taken, for the fewest candidates; 1 - (1 - s^r)^b is the chance that some band agrees
    (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4).
    """
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** count >= 0.95:
            return count, rows
    return PERMUTATIONS, 1


@lru_cache(maxsize=1)
def _permutations() -> tuple[Signatures, Signatures]:
    """Return the factors, which are odd, and summands of the permutations, as datasketch draws them by default."""
    draw = np.random.RandomState(1)
    factors = draw.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, draw.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)


def _mixed(low: Signatures) -> Signatures:
    """Return 32-bit hashes after MurmurHash3's finalizer."""
    low = (low ^ (low >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    low = (low ^ (low >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return low ^ (low >> np.uint32(16))


def signatures(values: Hashes, places: Counts) -> Signatures:
    """Return the MinHash signatures [sets, 128] of sets that lie one behind the other: set i is
    `values[places[i]:places[i + 1]]`. That of an empty set is all ones."""
    factors, summands = _permutations()
    found = np.full((len(places) - 1, PERMUTATIONS), 0xFFFFFFFF, np.uint32)
    some = np.flatnonzero(np.diff(places))
    low = _mixed(values.astype(np.uint32))
    begin = 0
    while begin < len(some):
        first = places[some[begin]]
        end = max(begin + 1, int(np.searchsorted(places[some + 1], first + _AT_ONCE, side="right")))
        chosen = some[begin:end]
        mixed = low[first : places[chosen[-1] + 1], None] * factors + summands
        found[chosen] = np.minimum.reduceat(mixed, places[chosen] - first, axis=0)
        begin = end
    return found


def band_keys(signature: Signatures, threshold: float) -> Hashes:
    """Return 64-bit hashes [sets, bands] of the bands of signatures: sets that share one are candidates."""
    count, rows = bands(threshold)
    weights = np.random.default_rng(9).integers(0, 1 << 64, rows, np.uint64, endpoint=False) | np.uint64(1)
    parts = signature[:, : count * rows].reshape(-1, count, rows).astype(np.uint64)
    keys = (parts * weights).sum(axis=2, dtype=np.uint64)
    keys ^= keys >> np.uint64(29)
    found: Hashes = keys * np.uint64(0x9E3779B97F4A7C15)
    return found


def asked_sets(texts: Texts, places: Counts) -> tuple[Hashes, Counts]:
    """Return the distinct shingles of rows, sorted and one behind the other, and where each row's begin; row i has the
    texts from `places[i]` to `places[i + 1]`."""
    values, owner = texts.ngrams(5)
    row_of = np.repeat(np.arange(len(places) - 1), np.diff(places))
    values, owner = distinct(values, row_of[owner] if len(owner) else owner)
    counts = np.bincount(owner, minlength=len(places) - 1)
    return values, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


class Near:
    """Sets of shingles to look up by similarity, under numbers; about 4 KiB of memory a set."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._buckets: list[dict[int, list[int]]] = [{} for _ in range(bands(threshold)[0])]
        self._sketches: dict[int, Hashes] = {}

    def find(self, items: Hashes) -> list[tuple[float, int]]:
        """Return (similarity, number) of the sets at least `threshold` similar to this one, the most similar first."""
        return self.find_by_keys(self._keys(items), sketch(items)) if len(items) and self._sketches else []

    def find_by_keys(self, keys: list[int], mine: Hashes) -> list[tuple[float, int]]:
        """Return what `find` does, for a set that is not empty, of its band keys and its sketch."""
        found = {number for bucket, key in zip(self._buckets, keys, strict=True) for number in bucket.get(key, ())}
        close = [(jaccard(mine, self._sketches[number]), number) for number in found]
        return sorted((pair for pair in close if pair[0] >= self.threshold), key=lambda pair: (-pair[0], pair[1]))

    def add(self, number: int, items: Hashes) -> None:
        """Remember a set under a number of its own; an empty one is never found."""
        if len(items):
            for bucket, key in zip(self._buckets, self._keys(items), strict=True):
                bucket.setdefault(key, []).append(number)
            self._sketches[number] = sketch(items)

    def _keys(self, items: Hashes) -> list[int]:
        keys: list[int] = band_keys(signatures(items, np.array([0, len(items)])), self.threshold)[0].tolist()
        return keys
