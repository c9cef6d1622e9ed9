"""Training rows that also stand in an evaluation task, where a score would measure memory, not ability.

What users say is compared with what the task asks, never system turns or answers. Instructions that many rows share are
set aside first (see `hashed_words.Boilerplate`): with the same instruction on both sides every row would match, and a
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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gemma_ops.data.hashed_words import Boilerplate, Hashes, hashes, ngrams, shingles
from gemma_ops.data.near_duplicates import Near
from gemma_ops.tasks.compared_questions import TaskQuestions

SIZE = Boilerplate.SIZE
IN_ORDER = 0.85
SIMILAR = 0.8
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
    own: tuple[np.ndarray[tuple[int], np.dtype[np.bool_]], ...]
    """Whether each word of each text is not boilerplate."""
    count: int
    """Number of words that are not boilerplate, over all texts."""


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
        if not self._questions:
            return None
        for name in shown:
            if name in self._shown:
                return self._match(self._shown[name], "the same file is shown")
        row = tuple(map(hashes, texts))
        own = tuple(~self.boilerplate.marks(text) for text in row)
        number = self._whole.get(tuple(text.tobytes() for text in row))
        if number is None:
            found = (self._cores.get(core) for text, mask in zip(row, own, strict=True) for core in _cores(text, mask))
            number = next((item for item in found if item is not None), None)
        if number is not None:
            return self._match(number, "the same question")
        runs: dict[int, tuple[int, int]] = {}  # where each run that some question has stands: which text, which word
        for index, text in enumerate(row):
            for start, run in enumerate(ngrams(text, SIZE).tolist()):
                if run in self._runs:
                    runs.setdefault(run, (index, start))
        touched = Counter(item for run in runs for item in self._runs[run])
        plain = [text.tolist() for text in row]
        for candidate, _ in sorted(touched.items(), key=lambda pair: (-pair[1], pair[0]))[:_CANDIDATES]:
            share = _in_order(self._questions[candidate], plain, runs)
            if share >= IN_ORDER:
                return self._match(candidate, f"{share:.0%} of the question's words in order")
        near = self._near.find(_shingles(row, own)) if sum(mask.sum() for mask in own) >= SIZE else []
        return self._match(near[0][1], f"{near[0][0]:.0%} similar") if near else None

    def _match(self, number: int, how: str) -> Match:
        return Match(self._questions[number].task, self._questions[number].place, how)


def _inside(own: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> slice:
    """Return which runs of a text lie between its first and last own word: those that reach into an instruction prove
    less."""
    found = np.flatnonzero(own)
    return slice(int(found[0]), max(int(found[0]), int(found[-1]) + 2 - SIZE)) if len(found) else slice(0)


def _in_order(question: _Question, row: list[list[int]], runs: dict[int, tuple[int, int]]) -> float:
    """Return the share of a question's own words that a row holds in the same order around a run they share."""
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


def _shingles(texts: Sequence[Hashes], own: Sequence[np.ndarray[tuple[int], np.dtype[np.bool_]]]) -> Hashes:
    parts = [shingles(text[mask]) for text, mask in zip(texts, own, strict=True)]
    return np.unique(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)


def _cores(text: Hashes, own: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[bytes]:
    """Return the text, and the text with boilerplate taken off its ends.

    Boilerplate may reach a few words into a question ("… question: I" before many questions with I), so that every cut
    up to 7 words further out is a core too.
    """
    found = [text.tobytes()] if len(text) else []
    inside = np.flatnonzero(own)
    if len(inside) and len(inside) < len(text):
        first, last = int(inside[0]), int(inside[-1]) + 1
        starts = {0, *range(max(0, first - SIZE + 1), first + 1)}
        ends = {len(text), *range(last, min(len(text), last + SIZE - 1) + 1)}
        found += [text[start:end].tobytes() for start in starts for end in ends]
    return found
