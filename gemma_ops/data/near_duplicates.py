"""Near duplicates: MinHash finds candidates, and the similarity itself decides."""

from __future__ import annotations

from datasketch import MinHash, MinHashLSH

from gemma_ops.data.hashed_words import Hashes, jaccard, sketch

PERMUTATIONS = 128


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


def _low_bits(value: int) -> int:
    return value & 0xFFFFFFFF


class Near:
    """Sets of shingles to look up by similarity, under numbers; about 4 KiB of memory a set."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, params=bands(threshold))
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=_low_bits)
        self._sketches: dict[int, Hashes] = {}

    def find(self, items: Hashes) -> list[tuple[float, int]]:
        """Return (similarity, number) of the sets at least `threshold` similar to this one, the most similar first."""
        if len(items) == 0:
            return []
        mine = sketch(items)
        close = [(jaccard(mine, self._sketches[key]), key) for key in self._index.query(self._minhash(items))]
        return sorted((pair for pair in close if pair[0] >= self.threshold), key=lambda pair: (-pair[0], pair[1]))

    def add(self, number: int, items: Hashes) -> None:
        """Remember a set under a number of its own; an empty one is never found."""
        if len(items):
            self._index.insert(number, self._minhash(items))
            self._sketches[number] = sketch(items)

    def _minhash(self, items: Hashes) -> MinHash:
        minhash = self._empty.copy()  # the permutations are drawn once
        minhash.update_batch(items.tolist())
        return minhash
