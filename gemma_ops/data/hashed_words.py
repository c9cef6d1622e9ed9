"""Texts as hashed words: n-grams, similarity, and what tells apart texts of the same words.

Hashes are BLAKE2b of normalised words, so they are the same on every machine and in every process.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]

# Scripts written without spaces count by character; everything else by runs of letters and digits.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_ASCII_WORDS = str.maketrans({chr(code): chr(code).lower() if _WORD.match(chr(code)) else " " for code in range(128)})
MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15 ^ (0xD1B54A32D192ED03 * (i + 1)) & (2**64 - 1) | 1 for i in range(16)], np.uint64
)
SKETCH = 256


def normal(text: str) -> str:
    """Return a text's compatibility form (NFKC), case folded, white space collapsed: texts equal after this are the
    same text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def hash_words(text: str) -> list[str]:
    """Return the words of a text, normalised, without punctuation."""
    if text.isascii():  # where there is nothing to normalise but the case
        return text.translate(_ASCII_WORDS).split()
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


class _WordHashes(dict[str, int]):
    """Hashes of words that were met; forgotten when there are too many."""

    _MOST = 1 << 17

    def __missing__(self, word: str) -> int:
        if len(self) >= self._MOST:
            self.clear()
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        value = self[word] = int.from_bytes(digest, "little")
        return value


_word_hashes = _WordHashes()


def hashes(text: str) -> Hashes:
    """Return 64-bit hashes of a text's words, in order."""
    return np.fromiter(map(_word_hashes.__getitem__, hash_words(text)), np.uint64)


@dataclass(frozen=True)
class Texts:
    """Many texts as hashed words, one behind the other: text i is `words[places[i]:places[i + 1]]`."""

    words: Hashes
    places: Counts

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Return texts hashed."""
        split = [hash_words(text) for text in texts]
        flat = itertools.chain.from_iterable(split)
        places = np.zeros(len(split) + 1, np.int64)
        np.cumsum([len(words) for words in split], out=places[1:])
        return cls(np.fromiter(map(_word_hashes.__getitem__, flat), np.uint64, int(places[-1])), places)

    @classmethod
    def joined(cls, texts: Sequence[Hashes]) -> Texts:
        """Return texts that are hashed already."""
        places = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=places[1:])
        return cls(np.concatenate([*texts, np.zeros(0, np.uint64)]), places)

    def __len__(self) -> int:
        return len(self.places) - 1

    @property
    def lengths(self) -> Counts:
        """Return how many words each text has."""
        return np.diff(self.places)

    def text(self, index: int) -> Hashes:
        """Return one text's words."""
        return self.words[self.places[index] : self.places[index + 1]]

    def kept(self, keep: Flags) -> Texts:
        """Return the texts with only the words that are kept."""
        counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])
        return Texts(self.words[keep], counts[self.places])

    def ngrams(self, size: int) -> tuple[Hashes, Counts]:
        """Return the runs of at most `size` words in each text, and the text of each: a shorter text is one run of its
        own length, an empty one has none."""
        lengths = self.lengths
        counts = np.where(lengths > 0, np.maximum(1, lengths - size + 1), 0)
        owner = np.repeat(np.arange(len(self)), counts)
        first = np.cumsum(counts) - counts
        starts = np.arange(len(owner)) - first[owner] + self.places[:-1][owner]
        sizes = np.minimum(lengths, size)[owner]
        total = np.zeros(len(owner), np.uint64)
        last = max(0, len(self.words) - 1)
        for offset in range(size):
            words = self.words[np.minimum(starts + offset, last)] * MULTIPLIERS[offset]
            total += np.where(sizes > offset, words, np.uint64(0))
        return mixed_hashes(total), owner


def mixed_hashes(total: Hashes) -> Hashes:
    """Return the last step of an n-gram's hash over the weighted sums of its words."""
    total ^= total >> np.uint64(31)  # so that the low bits, which MinHash uses, depend on every word
    return total * np.uint64(0x9E3779B97F4A7C15)


def ngrams(text: Hashes, size: int) -> Hashes:
    """Return 64-bit hashes of all runs of `size` words, in order; empty when the text is shorter."""
    count = len(text) - size + 1
    if count <= 0:
        return np.zeros(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for offset in range(size):
        total += text[offset : offset + count] * MULTIPLIERS[offset]
    return mixed_hashes(total)


def distinct(values: Hashes, owner: Counts) -> tuple[Hashes, Counts]:
    """Return the distinct values of each owner, sorted by owner and value."""
    order = np.lexsort((values, owner))
    values, owner = values[order], owner[order]
    new = np.ones(len(values), np.bool_)
    new[1:] = (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])
    return values[new], owner[new]


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
