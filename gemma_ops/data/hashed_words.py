"""Texts as hashed words: n-grams, similarity, and what many rows share word for word.

Hashes are BLAKE2b of normalised words, so they are the same on every machine and in every process.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

Hashes = np.ndarray[Any, np.dtype[np.uint64]]

# Scripts written without spaces count by character; everything else by runs of letters and digits.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15 ^ (0xD1B54A32D192ED03 * (i + 1)) & (2**64 - 1) | 1 for i in range(16)], np.uint64
)
SKETCH = 256


def normal(text: str) -> str:
    """Return a text's compatibility form (NFKC), case folded, white space collapsed: texts equal after this are the
    same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def hash_words(text: str) -> list[str]:
    """Return the words of a text, normalised, without punctuation."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


_NUMBER = re.compile(r"[^\W_]*\d[^\W_]*(?:[.,]\d+)*")
_OPERATOR = re.compile(r"[<>=+\-*/%^&|~@#$\\(){}\[\]_`]+|!(?==)|:(?==)|\?(?=[.?:])|(?<=\w)[.:](?=\w)")
_WORD_AT = re.compile(r"[^\W\d_]+")
_BEGINNING = re.compile(r"(?:^|[.!?:\n])[\s\"'(\[]*$")


def _cased(text: str) -> list[str]:
    """Return words whose case may matter: with a capital inside, or at the front without a sentence beginning there."""
    found = []
    for match in _WORD_AT.finditer(text):
        word = match[0]
        inside = word[1:] != word[1:].lower()
        if inside or (word != word.lower() and not _BEGINNING.search(text[max(0, match.start() - 8) : match.start()])):
            found.append(word)
    return found


def distinctive(text: str) -> bytes:
    """Return 16 bytes over what can turn a text into another one without changing its words: numbers, operators,
    indentation, superscripts and the like, and the case of words that don't begin a sentence. Order counts, sentence
    marks don't."""
    found: list[str] = [*_NUMBER.findall(text), "\0", *_OPERATOR.findall(text), "\0", *_cased(text), "\0"]
    if not text.isascii():
        found += [
            letter
            for letter in text
            if unicodedata.category(letter) in ("Sm", "So", "Sc") or unicodedata.decomposition(letter).startswith("<")
        ]
    if "\n" in text:
        found += [line[: len(line) - len(line.lstrip())] for line in text.splitlines() if line.strip()]
    return hashlib.blake2b("\x1f".join(found).encode("utf-8", "surrogatepass"), digest_size=16).digest()


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def hashes(text: str) -> Hashes:
    """Return 64-bit hashes of a text's words, in order."""
    return np.fromiter((_word_hash(word) for word in hash_words(text)), np.uint64)


def ngrams(text: Hashes, size: int) -> Hashes:
    """Return 64-bit hashes of all runs of `size` words, in order; empty when the text is shorter."""
    count = len(text) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for offset in range(size):
        total += text[offset : offset + count] * _MULTIPLIERS[offset]
    total ^= total >> np.uint64(31)  # so that the low bits, which MinHash uses, depend on every word
    return total * np.uint64(0x9E3779B97F4A7C15)


def shingles(text: Hashes, size: int = 5) -> Hashes:
    """Return distinct n-grams, sorted; a text shorter than `size` words is one shingle of its own length."""
    return np.unique(ngrams(text, min(size, len(text)))) if len(text) else np.zeros(0, np.uint64)


def sketch(items: Hashes) -> Hashes:
    """Return the `SKETCH` smallest of sorted distinct hashes: enough to estimate similarity, in at most 2 KiB."""
    return items[:SKETCH]


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return |A∩B| / |A∪B| of two sketched sets; two empty sets are equal.

    Exact while the union has at most `SKETCH` elements, else the bottom-k estimate (Broder 1997) with a standard error
    of at most 0.03.
    """
    if len(first) == 0 and len(second) == 0:
        return 1.0
    union = np.union1d(first, second)[:SKETCH]
    shared = np.intersect1d(first, second, assume_unique=True)
    return float(np.isin(union, shared, assume_unique=True).sum() / len(union))


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
        needed = [0.5, *[0.1] * (self.SIZE - 2)][:size]  # half of all questions may well begin with the same word
        start = np.cumsum(text[:size] * _MULTIPLIERS[:size]).tolist()
        end = np.cumsum(text[::-1][:size] * _MULTIPLIERS[:size]).tolist()
        edges = [("start", share, value) for share, value in zip(needed, start, strict=True)]
        return edges + [("end", share, value) for share, value in zip(needed, end, strict=True)]

    def marks(self, text: Hashes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return for each word whether it is part of boilerplate."""
        marked = np.zeros(len(text), np.bool_)
        if not self.runs and not self.edges:
            return marked
        edges = self._edges(text)
        shares = [self.edges.get(edge, 0.0) for edge in edges]
        half = len(edges) // 2
        start, start_share = _longest(shares[:half])
        end, end_share = _longest(shares[half:])
        marked[:start] = True
        marked[len(text) - end :] = True
        common = np.array([self.runs.get(run, 0.0) for run in ngrams(text, self.SIZE).tolist()])
        for index in np.flatnonzero(common).tolist():
            most = common[max(0, index - self.SIZE + 1) : index + self.SIZE].max()
            if index < start:
                most = max(most, start_share)
            if index + self.SIZE > len(text) - end:
                most = max(most, end_share)
            if common[index] >= most / 2:
                marked[index : index + self.SIZE] = True
        return marked

    def residue(self, text: Hashes) -> Hashes:
        """Return the words that are not boilerplate, in order; the whole text when nothing would be left."""
        left = text[~self.marks(text)]
        return left if len(left) else text


def _longest(shares: list[float]) -> tuple[int, float]:
    """Return how many words of an edge are boilerplate, and the share of the texts with it; `shares` are for 1, 2, …
    words."""
    most = next((share for share in shares if share), 0.0)
    if not most:
        return 0, 0.0
    return max(size for size, share in enumerate(shares, 1) if share >= most / 2), most
