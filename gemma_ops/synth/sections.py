"""Sections: parts of a document that a teacher can be shown at once, cut at headings, then paragraphs, then sentences.

A section is a slice of the document's text, so every character of it has a place in the source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from gemma_ops.data.hashed_words import hash_words
from gemma_ops.synth.sources import Document

_FEW = 12
"""Words below which a part (a heading alone) says too little to ask about, and joins its neighbour."""
_ENDS = (re.compile(r"\n[ \t]*\r?\n\s*"), re.compile(r"(?<=[.!?。！？])\s+|(?<=[。！？])|\n"), re.compile(r"\s+"))
"""Patterns of places where a long part may be cut: after a paragraph, else a sentence or line, else a word."""


@dataclass(frozen=True)
class DocumentSection:
    """Characters [start, end) of a document's text, under a path of headings."""

    document: Document
    number: int
    heading: str
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.document.reading.text[self.start : self.end]

    @property
    def span(self) -> tuple[int, int]:
        """Return its place in the source."""
        return self.document.reading.span(self.start, self.end)


def split(document: Document, most: int) -> list[DocumentSection]:
    """Return the sections of a document, in order, each of at most `most` words where the text can be cut so."""
    reading = document.reading
    cuts = [reading.begins, *(heading.at for heading in reading.headings), len(reading.text)]
    parts: list[tuple[str, int, int]] = []
    path: list[tuple[int, str]] = []
    for index, (start, end) in enumerate(pairwise(cuts)):
        if index:
            heading = reading.headings[index - 1]
            path = [item for item in path if item[0] < heading.level] + [(heading.level, heading.title)]
        for first, last in _pieces(reading.text, start, end, most):
            parts.append((" > ".join(title for _, title in path), first, last))
    merged = _merged(reading.text, parts, most)
    return [DocumentSection(document, number, *part) for number, part in enumerate(merged)]


def _pieces(text: str, start: int, end: int, most: int, level: int = 0) -> list[tuple[int, int]]:
    """Return neighbouring slices of [start, end), none longer than `most` words if it can be helped."""
    start, end = _stripped(text, start, end)
    if start == end:
        return []
    if level == len(_ENDS) or len(hash_words(text[start:end])) <= most:
        return [(start, end)]
    found: list[tuple[int, int]] = []
    held = 0
    at = start
    for stop in (*(match.end() for match in _ENDS[level].finditer(text, start, end)), end):
        if stop <= at:
            continue
        size = len(hash_words(text[at:stop]))
        if size > most:
            found += _pieces(text, at, stop, most, level + 1)
            held = most
        elif found and held + size <= most:
            found[-1] = (found[-1][0], stop)
            held += size
        else:
            found.append((at, stop))
            held = size
        at = stop
    return [_stripped(text, *piece) for piece in found if text[piece[0] : piece[1]].strip()]


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _merged(text: str, parts: list[tuple[str, int, int]], most: int) -> list[tuple[str, int, int]]:
    """Return parts of few words joined with the next one, under whose heading they stand, or at the end with the one
    before."""
    found: list[tuple[str, int, int]] = []
    waiting: int | None = None
    for heading, start, end in parts:
        first = start if waiting is None else waiting
        if len(hash_words(text[first:end])) < _FEW:
            waiting = first
            continue
        found.append((heading, first, end))
        waiting = None
    if waiting is not None and parts:
        if not found:
            return [(parts[-1][0], waiting, parts[-1][2])]
        heading, first, _ = found[-1]
        if len(hash_words(text[first : parts[-1][2]])) <= most + _FEW:
            found[-1] = (heading, first, parts[-1][2])
    return found
