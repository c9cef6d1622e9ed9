"""Training rows that also stand in an evaluation task, where a score would measure memory, not ability.

What users say is compared with what the task asks, never system turns or answers. Instructions that many rows share are
set aside first (see `boilerplate.Boilerplate`): with the same instruction on both sides every row would match, and a
question hidden behind another instruction would not. A row overlaps with a question when, punctuation and case aside,

- one is the other, apart from instructions around it, or
- they share a run of 8 words, and at least 85% of the question's own words stand around it in the same order, or
- their sets of 5-word runs are at least 80% similar (MinHash).

Sharing runs alone is not enough: messages of one desk are made of the same phrases ("was charged twice, please hurry")
without being each other. A question with fewer than 8 words of its own can only match in the first way.

A question that shows an image or a sound is known by it, whatever is asked about it: a row that shows the same bytes
overlaps. Its words are not compared, since every row of such a task may ask the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gemma_ops.data.boilerplate import Boilerplate
from gemma_ops.data.hashed_words import (
    Counts,
    Flags,
    Hashes,
    Texts,
    hashes,
    ngrams,
    shingles,
    sketch,
)
from gemma_ops.data.near_duplicates import Near, asked_sets, band_keys, signatures
from gemma_ops.tasks.compared_questions import TaskQuestions

SIZE = Boilerplate.SIZE
IN_ORDER = 0.85
SIMILAR = 0.8
Runs = dict[int, tuple[int, int]]
_CANDIDATES = 16  # questions looked at closely, those with the most shared runs first


@dataclass(frozen=True)
class Match:
    """A training row and the question it gives away."""

    task: str
    place: str
    how: str


@dataclass(frozen=True)
class _Question:
    task: str
    place: str
    texts: tuple[list[int], ...]
    runs: tuple[list[int], ...]
    """Runs of 8 words in each text."""
    own: tuple[Flags, ...]
    """Whether each word of each text is not boilerplate."""
    count: int
    """Number of words that are not boilerplate, over all texts."""

    @cached_property
    def words(self) -> list[int]:
        """Return the words that are not boilerplate, of all texts."""
        pairs = zip(self.texts, self.own, strict=True)
        return [word for text, own in pairs for word, mine in zip(text, own.tolist(), strict=True) if mine]


class Overlap:
    """Questions of the tasks, indexed; `sample` are user texts of training rows, to learn their instructions from."""

    def __init__(self, tasks: Sequence[TaskQuestions], sample: Sequence[Hashes]) -> None:
        hashed = [[tuple(map(hashes, question.texts)) for question in task.questions] for task in tasks]
        per_task = [Boilerplate([text for texts in rows for text in texts]) for rows in hashed]
        self.boilerplate = Boilerplate(sample, also=per_task)
        self._questions: list[_Question] = []
        self._cores: dict[bytes, int] = {}
        self._whole: dict[tuple[bytes, ...], int] = {}
        self._runs: dict[int, list[int]] = {}
        self._shown: dict[str, int] = {}
        self._near = Near(SIMILAR)
        for task, rows in zip(tasks, hashed, strict=True):
            for question, texts in zip(task.questions, rows, strict=True):
                self._add(task.name, question.place, texts, question.media)
        self._core_lengths = {len(core) // 8 for core in self._cores}
        self._known_runs = np.array(sorted(self._runs), np.uint64)

    def _add(self, task: str, place: str, texts: tuple[Hashes, ...], shown: tuple[str, ...]) -> None:
        own = tuple(~self.boilerplate.marks(text) for text in texts)
        runs = tuple(ngrams(text, SIZE).tolist() for text in texts)
        question = _Question(
            task, place, tuple(text.tolist() for text in texts), runs, own, int(sum(mask.sum() for mask in own))
        )
        number = len(self._questions)
        self._questions.append(question)
        for name in shown:
            self._shown.setdefault(name, number)
        if shown or not any(len(text) for text in texts):
            return
        self._whole.setdefault(tuple(text.tobytes() for text in texts), number)
        if len(texts) == 1:
            for core in _cores(texts[0], own[0]):
                self._cores.setdefault(core, number)
        if question.count >= SIZE:
            inner = {run for text, mask in zip(runs, own, strict=True) for run in text[_inside(mask)]}
            for run in inner - self.boilerplate.runs.keys():
                self._runs.setdefault(run, []).append(number)
            self._near.add(number, _shingles(texts, own))

    def find(self, texts: Sequence[str], shown: Sequence[str] = ()) -> Match | None:
        """Return the question that a row's user texts, or the names of what it shows, give away, or None. The surest
        kind of match is named first."""
        return self.find_all(Texts.of(texts), np.array([0, len(texts)]), [shown])[0]

    def find_all(self, texts: Texts, places: Counts, shown: Sequence[Sequence[str]]) -> list[Match | None]:
        """Return for each of many rows what `find` does; row i has the texts from `places[i]` to `places[i + 1]`."""
        if not self._questions:
            return [None] * len(shown)
        own = ~self.boilerplate.marks_of(texts)
        runs = self._shared_runs(texts, places)
        near = self._near_questions(texts, own, places)
        return [
            self._one(texts, own, range(places[row], places[row + 1]), names, runs.get(row, {}), near.get(row))
            for row, names in enumerate(shown)
        ]

    def _one(
        self,
        texts: Texts,
        own: Flags,
        mine: range,
        shown: Sequence[str],
        runs: Runs,
        near: tuple[float, int] | None,
    ) -> Match | None:
        for name in shown:
            if name in self._shown:
                return self._match(self._shown[name], "the same file is shown")
        row = [texts.text(index) for index in mine]
        number = self._whole.get(tuple(text.tobytes() for text in row))
        if number is None:
            masks = (own[texts.places[index] : texts.places[index + 1]] for index in mine)
            found = (
                self._cores.get(core)
                for text, mask in zip(row, masks, strict=True)
                for core in _cores(text, mask, self._core_lengths)
            )
            number = next((item for item in found if item is not None), None)
        if number is not None:
            return self._match(number, "the same question")
        touched = Counter(item for run in runs for item in self._runs[run])
        plain = [text.tolist() for text in row] if touched else []
        known = {word for text in plain for word in text}
        for candidate, _ in sorted(touched.items(), key=lambda pair: (-pair[1], pair[0]))[:_CANDIDATES]:
            share = _in_order(self._questions[candidate], plain, runs, known)
            if share >= IN_ORDER:
                return self._match(candidate, f"{share:.0%} of the question's words in order")
        return self._match(near[1], f"{near[0]:.0%} similar") if near else None

    def _shared_runs(self, texts: Texts, places: Counts) -> dict[int, Runs]:
        """Return by row where each run stands that some question has: which text of the row, which word."""
        found: dict[int, Runs] = {}
        values, owner = texts.ngrams(SIZE)
        hits = np.flatnonzero(np.isin(values, self._known_runs))
        counts = np.where(texts.lengths > 0, np.maximum(1, texts.lengths - SIZE + 1), 0)
        first = np.cumsum(counts) - counts
        for hit in hits.tolist():
            text = int(owner[hit])
            if texts.lengths[text] >= SIZE:
                row = int(np.searchsorted(places, text, side="right")) - 1
                runs = found.setdefault(row, {})
                runs.setdefault(int(values[hit]), (text - int(places[row]), hit - int(first[text])))
        return found

    def _near_questions(self, texts: Texts, own: Flags, places: Counts) -> dict[int, tuple[float, int]]:
        """Return by row the most similar question, where there is one that is similar enough."""
        left = texts.kept(own)
        values, ends = asked_sets(left, places)
        words = left.places[places[1:]] - left.places[places[:-1]]
        rows = np.flatnonzero(words >= SIZE)
        keys = band_keys(signatures(values, ends), SIMILAR)[rows].tolist()
        found = {}
        for row, mine in zip(rows.tolist(), keys, strict=True):
            if near := self._near.find_by_keys(mine, sketch(values[ends[row] : ends[row + 1]])):
                found[row] = near[0]
        return found

    def _match(self, number: int, how: str) -> Match:
        return Match(self._questions[number].task, self._questions[number].place, how)


def _inside(own: Flags) -> slice:
    """Return which runs of a text lie between its first and last own word: those that reach into an instruction prove
    less."""
    found = np.flatnonzero(own)
    return slice(int(found[0]), max(int(found[0]), int(found[-1]) + 2 - SIZE)) if len(found) else slice(0)


def _in_order(question: _Question, row: list[list[int]], runs: Runs, known: set[int]) -> float:
    """Return the share of a question's own words that a row holds in the same order around a run they share; 0 where
    too few of them are among the `known` ones of the row, in whatever order."""
    if sum(map(known.__contains__, question.words)) < IN_ORDER * question.count:
        return 0.0
    found = 0
    for text, text_runs, own in zip(question.texts, question.runs, question.own, strict=True):
        words = [word for word, mine in zip(text, own.tolist(), strict=True) if mine]
        windows = set()
        for offset, run in enumerate(text_runs):
            if run in runs:
                index, start = runs[run]
                slack = len(text) // 5 + 1
                windows.add((index, max(0, start - offset - slack), start - offset + len(text) + slack))
        found += max((_common(words, row[index][start:end]) for index, start, end in sorted(windows)[:8]), default=0)
    return found / question.count


def _common(first: list[int], second: list[int]) -> int:
    """Length of the longest common subsequence, by bit vectors (Crochemore et al. 2001)."""
    places: dict[int, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    everything = left = (1 << len(first)) - 1
    for word in second:
        taken = left & places.get(word, 0)
        left = ((left + taken) | (left - taken)) & everything
    return len(first) - left.bit_count()


def _shingles(texts: Sequence[Hashes], own: Sequence[Flags]) -> Hashes:
    parts = [shingles(text[mask]) for text, mask in zip(texts, own, strict=True)]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def _cores(text: Hashes, own: Flags, lengths: Collection[int] | None = None) -> list[bytes]:
    """Return the text, and the text with boilerplate taken off its ends; with `lengths` only those of so many words.

    Boilerplate may reach a few words into a question ("… question: I" before many questions with I), so that every cut
    up to 7 words further out is a core too.
    """
    found = [(0, len(text))] if len(text) else []
    inside = np.flatnonzero(own)
    if len(inside) and len(inside) < len(text):
        first, last = int(inside[0]), int(inside[-1]) + 1
        starts = {0, *range(max(0, first - SIZE + 1), first + 1)}
        ends = {len(text), *range(last, min(len(text), last + SIZE - 1) + 1)}
        found += [(start, end) for start in starts for end in ends]
    return [text[start:end].tobytes() for start, end in found if lengths is None or end - start in lengths]
