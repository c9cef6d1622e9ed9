r"""Equal texts under different privacy classes: wherever a text stands, its strictest class holds.

A person who marks a text `local_only` in one file does not mean that a copy of it in another may leave. Texts that may
not go everywhere are added to an index, and every text that is to be sent is searched for all of them at once: a text
that is one of them, or holds one, is as private as that one. Texts are compared by `canonical.canonical_text`.

The search is Rabin and Karp's: a polynomial hash over every window of the first `_ANCHOR` letters finds where a text
may begin, the hash of as many letters as it has decides, and BLAKE2b confirms. So a whole file is searched in one pass,
whatever the number of private texts. The index holds digests and names, no letters, and can be kept in a file.

Short texts say nothing about who owns them: below `_LEAST` letters a text counts only where it is the whole of another,
and a side text (an answer, a later turn) counts from `_LEAST_BESIDE` letters on and only while fewer than `_COMMON`
rows have it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.config import Privacy
from gemma_ops.privacy.canonical import canonical_text, letters
from gemma_ops.privacy.classes import PRIVACY, class_of
from gemma_ops.runs.durable import whole_file

FILE = "private.jsonl"
"""File of the index of private texts, in the folder of a step that read some."""
_ANCHOR = 10
_LEAST, _LEAST_BESIDE, _LEAST_WHOLE = 20, 40, 8
_COMMON = 3
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
Words = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(frozen=True, slots=True)
class PrivateText:
    """One text that may not go everywhere, by its digests: `anchor` of its first letters, `key` of all of them."""

    privacy: Privacy
    name: str
    length: int
    anchor: int
    key: int
    digest: str
    beside: bool


def private_text(text: str, privacy: Privacy, name: str, *, beside: bool = False) -> PrivateText | None:
    """Return the record of a text; None for one of class `any`, or too short to tell."""
    if privacy == "any":
        return None
    plain = canonical_text(text)
    much = letters(plain)
    if much < (_LEAST_BESIDE if beside else _LEAST_WHOLE) or (beside and len(plain) < _ANCHOR):
        return None
    terms = _terms(plain)
    searched = much >= _LEAST and len(plain) >= _ANCHOR
    anchor = int(terms[:_ANCHOR].sum()) if searched else 0
    return PrivateText(privacy, name, len(plain), anchor, int(terms.sum()), _digest(plain), beside)


class PrivateTexts:
    """An index of texts with the class of each."""

    def __init__(self) -> None:
        self._texts: dict[str, PrivateText] = {}
        self._times: Counter[str] = Counter()
        self._lengths: dict[int, set[int]] = {}
        self._keys: dict[tuple[int, int], list[str]] = {}
        self._anchors: Words | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str, privacy: Privacy, name: str, *, beside: bool = False) -> None:
        """Remember a text under a name for messages. One of class `any`, or too short to tell, is left out."""
        if found := private_text(text, privacy, name, beside=beside):
            self._put(found)

    def add_row(self, row: dict[str, Any], name: str) -> None:
        """Remember the texts of a row: its first question, and as side texts the later turns and each answer."""
        for text in self.of_row(row, name):
            self._put(text)

    @staticmethod
    def of_row(row: dict[str, Any], name: str) -> list[PrivateText]:
        """Return the texts of a row that `add_row` remembers."""
        asked, said = False, list[tuple[str, bool]]()
        for message in [turn for key in ("messages", "chosen", "rejected") for turn in row.get(key) or ()]:
            role = message.get("role")
            for text in _texts(message.get("content")) if role != "system" else ():
                said.append((text, asked or role != "user"))
                asked = asked or role == "user"
        if isinstance(row.get("text"), str):
            said.append((row["text"], False))
        privacy = class_of(row.get("privacy"))
        found = [private_text(text, privacy, name, beside=beside) for text, beside in said]
        return [text for text in found if text]

    def strictest(self, text: str, than: Privacy) -> PrivateText | None:
        """Return the strictest text that this one equals or contains, if it is stricter than the class `than`; None
        otherwise."""
        if not self._texts or than == PRIVACY[0]:
            return None
        plain = canonical_text(text)
        found = [known for known in self._candidates(plain) if PRIVACY.index(known.privacy) < PRIVACY.index(than)]
        return min(found, key=lambda known: PRIVACY.index(known.privacy), default=None)

    def held(self, text: str) -> list[PrivateText]:
        """Return all indexed texts that this one equals or contains."""
        return list(self._candidates(canonical_text(text))) if self._texts else []

    def save(self, path: Path) -> None:
        """Write the index, a line a text, sorted; it holds no letter of a text."""
        with whole_file(path) as file:
            for digest in sorted(self._texts):
                line = asdict(self._texts[digest]) | {"times": self._times[digest]}
                file.write(json.dumps(line) + "\n")

    def load(self, path: Path) -> None:
        """Add what another step has indexed; a file that isn't there adds nothing."""
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as file:
            self.load_lines(file)

    def load_lines(self, lines: Iterable[str]) -> None:
        """Add the lines of such a file."""
        for line in lines:
            body = json.loads(line)
            times = int(body.pop("times"))
            self._put(PrivateText(**body), times)

    def _put(self, text: PrivateText, times: int = 1) -> None:
        known = self._texts.get(text.digest)
        self._times[text.digest] += times
        if known is not None:
            # The strictest class holds; and what is a text of its own somewhere is no side text.
            first = known if PRIVACY.index(known.privacy) <= PRIVACY.index(text.privacy) else text
            beside = known.beside and text.beside
            text = PrivateText(first.privacy, first.name, text.length, text.anchor, text.key, text.digest, beside)
        else:
            self._keys.setdefault((text.length, text.key), []).append(text.digest)
        if text.anchor:
            self._lengths.setdefault(text.anchor, set()).add(text.length)
            self._anchors = None
        self._texts[text.digest] = text

    def _candidates(self, plain: str) -> Iterable[PrivateText]:
        """Yield every indexed text that the letters of a text equal or contain."""
        prefix = _prefix(plain)
        yield from self._at(plain, 0, len(plain), int(prefix[-1]))
        if len(plain) < _ANCHOR or not self._lengths:
            return
        if self._anchors is None:
            self._anchors = np.array(sorted(self._lengths), np.uint64)
        inverse = _powers(_INVERSE, len(plain))
        windows = (prefix[_ANCHOR:] - prefix[:-_ANCHOR]) * inverse[: len(plain) - _ANCHOR + 1]
        places = np.searchsorted(self._anchors, windows)
        hits = np.flatnonzero(self._anchors[np.minimum(places, len(self._anchors) - 1)] == windows)
        for at in hits.tolist():
            room = len(plain) - at
            lengths = np.array([n for n in self._lengths[int(windows[at])] if n <= room], np.int64)
            keys = (prefix[at + lengths] - prefix[at]) * inverse[at]
            for length, key in zip(lengths.tolist(), keys.tolist(), strict=True):
                yield from self._at(plain, at, length, key)

    def _at(self, plain: str, at: int, length: int, key: int) -> Iterable[PrivateText]:
        """Yield the indexed texts that stand at a place: those of the same hash, confirmed by their digest."""
        known = self._keys.get((length, key))
        if not known:
            return
        digest = _digest(plain[at : at + length])
        if digest in known:
            text = self._texts[digest]
            if not text.beside or self._times[digest] < _COMMON:
                yield text


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _digest(plain: str) -> str:
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _prefix(plain: str) -> Words:
    """Return hashes of all prefixes of a text: entry i is the sum of letter j times base**j over its first i letters,
    mod 2**64."""
    sums = np.zeros(len(plain) + 1, np.uint64)
    np.cumsum(_terms(plain), out=sums[1:])
    return sums


def _terms(plain: str) -> Words:
    """Return letter j times base**j, for each letter of a text."""
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32)
    return codes * _powers(_BASE, len(codes))[: len(codes)]


_known_powers: dict[int, Words] = {}


def _powers(base: int, count: int) -> Words:
    """Return base**0, base**1, …, at least `count + 1` of them, mod 2**64."""
    known = _known_powers.get(base)
    if known is None or len(known) <= count:
        steps = np.full(max(1024, 2 * count + 1), base, np.uint64)
        steps[0] = 1
        known = _known_powers[base] = np.cumprod(steps, dtype=np.uint64)
    return known
