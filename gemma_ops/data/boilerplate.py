"""Words that many texts share: a fixed instruction around a changing question.

Marks are found for many texts at once, in arrays over all their words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from gemma_ops.data.hashed_words import MULTIPLIERS, Counts, Flags, Hashes, Texts, mixed_hashes, ngrams

Shares = np.ndarray[Any, np.dtype[np.float64]]
_ONE, _MORE = 0.5, 0.1
"""Share of texts that makes a beginning of one word boilerplate (half of all questions may well begin with the same),
and one of more."""


class Boilerplate:
    """Words that many texts share verbatim: a fixed instruction around a changing question.

    A run of 8 words is boilerplate when it occurs in more than 5% of the texts (and in at least 3), likewise the first
    or last 2 to 7 words when more than 10% of the texts begin or end so (one word: more than half of them). Runs that
    reach from an instruction into a question ("… question: How do") can be common too; they are told by being less than
    half as common as the instruction. A whole question is never common in this sense, so taking boilerplate off
    compares what differs.
    """

    SIZE = 8

    def __init__(self, texts: Sequence[Hashes], also: Iterable[Boilerplate] = ()) -> None:
        runs = [np.unique(ngrams(text, self.SIZE)) for text in texts]
        values, counts = np.unique(np.concatenate(runs) if runs else np.zeros(0, np.uint64), return_counts=True)
        common = (counts >= 3) & (counts > 0.05 * len(texts))
        total = max(1, len(texts))
        self.runs: dict[int, float] = dict(zip(values[common].tolist(), (counts[common] / total).tolist(), strict=True))
        edges = Counter(edge for text in texts for edge in self._edges(text))
        self.edges = {edge: count / total for edge, count in edges.items() if count >= 3 and count > edge[1] * total}
        for other in also:
            self.runs |= {run: max(share, self.runs.get(run, 0.0)) for run, share in other.runs.items()}
            self.edges |= {edge: max(share, self.edges.get(edge, 0.0)) for edge, share in other.edges.items()}

    def _edges(self, text: Hashes) -> list[tuple[str, float, int]]:
        """Return the first and then the last 1 to 7 words, hashed, each with the share of texts that makes it
        boilerplate."""
        size = max(0, min(self.SIZE - 1, len(text) - 1))
        needed = [_ONE, *[_MORE] * (self.SIZE - 2)][:size]
        start = np.cumsum(text[:size] * MULTIPLIERS[:size]).tolist()
        end = np.cumsum(text[::-1][:size] * MULTIPLIERS[:size]).tolist()
        edges = [("start", share, value) for share, value in zip(needed, start, strict=True)]
        return edges + [("end", share, value) for share, value in zip(needed, end, strict=True)]

    def marks(self, text: Hashes) -> Flags:
        """Return for each word whether it is part of boilerplate."""
        return self.marks_of(Texts.joined([text]))

    def marks_of(self, texts: Texts) -> Flags:
        """Return for each word of many texts whether it is part of boilerplate."""
        marked = np.zeros(len(texts.words), np.bool_)
        if not len(marked) or (not self.runs and not self.edges):
            return marked
        known = self._known
        lengths, owner = texts.lengths, np.repeat(np.arange(len(texts)), texts.lengths)
        at = np.arange(len(marked)) - texts.places[:-1][owner]
        start, start_share = self._edge(texts, known[1:3], last=False)
        end, end_share = self._edge(texts, known[3:5], last=True)
        marked |= (at < start[owner]) | (at >= (lengths - end)[owner])
        common = self._common(texts, at, lengths[owner])
        found = np.flatnonzero(common)
        if not len(found):
            return marked
        # Behind the last run of each text stand SIZE - 1 places without one, so no window reaches another text's runs.
        padded = np.concatenate([np.zeros(self.SIZE - 1), common, np.zeros(self.SIZE - 1)])
        most = np.lib.stride_tricks.sliding_window_view(padded, 2 * self.SIZE - 1)[found].max(axis=1)
        mine, place = owner[found], at[found]
        most = np.where(place < start[mine], np.maximum(most, start_share[mine]), most)
        reaches = place + self.SIZE > (lengths - end)[mine]
        most = np.where(reaches, np.maximum(most, end_share[mine]), most)
        chosen = found[common[found] >= most / 2]
        for offset in range(self.SIZE):
            marked[chosen + offset] = True
        return marked

    @cached_property
    def _known(self) -> tuple[tuple[Hashes, Shares], ...]:
        """Return sorted hashes with their shares: of runs, and of beginnings and ends of one word and of more."""
        edges = [
            {edge[2]: share for edge, share in self.edges.items() if edge[:2] == (side, needed)}
            for side in ("start", "end")
            for needed in (_ONE, _MORE)
        ]
        return tuple(
            (np.array(sorted(shares), np.uint64), np.array([shares[value] for value in sorted(shares)], np.float64))
            for shares in (self.runs, *edges)
        )

    def _common(self, texts: Texts, at: Counts, lengths: Counts) -> Shares:
        """Return for each word the share of texts with the run that begins there, 0 where none does or it is rare."""
        common = np.zeros(len(texts.words), np.float64)
        inside = np.flatnonzero(at + self.SIZE <= lengths)
        total = np.zeros(len(inside), np.uint64)
        for offset in range(self.SIZE):
            total += texts.words[inside + offset] * MULTIPLIERS[offset]
        common[inside] = _looked_up(mixed_hashes(total), self._known[0])
        return common

    def _edge(self, texts: Texts, known: tuple[tuple[Hashes, Shares], ...], *, last: bool) -> tuple[Counts, Shares]:
        """Return how many words of each text's beginning (or end) are boilerplate, and the share of texts with it."""
        most = self.SIZE - 1
        sizes = np.clip(texts.lengths - 1, 0, most)
        steps = np.arange(most)
        places = (texts.places[1:, None] - 1 - steps) if last else (texts.places[:-1, None] + steps)
        words = texts.words[np.clip(places, 0, len(texts.words) - 1)]
        sums = np.cumsum(words * MULTIPLIERS[:most], axis=1, dtype=np.uint64)
        shares = np.hstack([_looked_up(sums[:, :1], known[0]), _looked_up(sums[:, 1:], known[1])])
        shares[steps >= sizes[:, None]] = 0.0
        first = shares[np.arange(len(shares)), np.argmax(shares > 0, axis=1)]
        long_enough = (shares >= first[:, None] / 2) & (first[:, None] > 0)
        return np.where(long_enough, steps + 1, 0).max(axis=1), first

    def residues(self, texts: Texts, marked: Flags) -> Texts:
        """Return of many texts the words that are not boilerplate; of one without any the whole."""
        kept = ~marked
        owner = np.repeat(np.arange(len(texts)), texts.lengths)
        some = np.bincount(owner[kept], minlength=len(texts)) > 0
        return texts.kept(kept | ~some[owner])

    def residue(self, text: Hashes) -> Hashes:
        """Return the words that are not boilerplate, in order; the whole text when nothing would be left."""
        left = text[~self.marks(text)]
        return left if len(left) else text


def _looked_up(values: Hashes, known: tuple[Hashes, Shares]) -> Shares:
    """Return the share of each hash, 0 where it isn't known."""
    keys, shares = known
    if not len(keys):
        return np.zeros(values.shape)
    places = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return np.where(keys[places] == values, shares[places], 0.0)
