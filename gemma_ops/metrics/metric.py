"""What a metric is: options in `task.yaml`, and a scorer made from them for one task."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gemma_ops.config import ConfigSection, Name, Privacy

Normalization = Literal["strip", "casefold", "spaces", "punctuation", "accents", "nfc", "nfkc", "json"]
Indexes = npt.NDArray[np.intp]


@dataclass(frozen=True)
class ScoredRow:
    """One question of a task. `reference` is the expected answer: text, or any JSON value; None when there is none."""

    id: str
    messages: tuple[dict[str, Any], ...]
    reference: Any
    choices: tuple[str, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    privacy: Privacy = "local_only"
    cluster: str | None = None
    slices: Mapping[str, str] = field(default_factory=dict)
    tools: tuple[dict[str, Any], ...] = ()
    """Functions that the model may call."""
    media: Mapping[str, Path | bytes] = field(default_factory=dict)
    """Where the bytes of images and sounds lie, by the path of each part; the path is a digest, so that an answer's key
    covers them."""

    @property
    def gold(self) -> str:
        """Return the reference as an answer would spell it."""
        from gemma_ops.metrics.parse import dump

        return self.reference if isinstance(self.reference, str) else dump(self.reference)


@dataclass(frozen=True)
class ScoredAnswer:
    """Score of one answer. `values` holds a number in [0, 1] per column, or None where the row lacks what the column
    needs (unscored). `detail` keeps what aggregates and the report need: a predicted label, wrong fields."""

    values: dict[str, float | None]
    detail: dict[str, Any] = field(default_factory=dict)


Aggregate = Callable[[Sequence[ScoredRow], Sequence[Mapping[str, Any]]], Callable[[Indexes], float]]
"""Function that computes a figure from the details of all rows' scores, on the rows with given indexes, so that it can
be bootstrapped."""


@dataclass(frozen=True)
class RowCounts:
    """Counts [rows, labels] of which an F1 is made: `hits` where a row wants a label and gets it, `totals` how often it
    is wanted or said, `wanted` where it is wanted. Micro F1 is one column, summed over labels, and names none."""

    labels: tuple[str, ...]
    hits: npt.NDArray[np.float64]
    totals: npt.NDArray[np.float64]
    wanted: npt.NDArray[np.float64]


Counts = Callable[[Sequence[Mapping[str, Any]]], RowCounts]
"""Function that computes the counts of each row from the details of its metric's scores."""


@dataclass(frozen=True)
class Scorer:
    """A metric bound to a task. The first column is the metric itself and carries its name."""

    key: str
    columns: tuple[str, ...]
    score: Callable[[str, ScoredRow], ScoredAnswer]
    aggregates: Mapping[str, Aggregate] = field(default_factory=dict)
    counts: Mapping[str, Counts] = field(default_factory=dict)
    """For each aggregate, the counts that gates decide it on."""
    labels: tuple[str, ...] | None = None


class Metric(ConfigSection):
    """Base of all metrics. Subclasses add `id: Literal["…"]`, options, and `scorer`."""

    id: str
    name: Name | None = None
    """Name of the figure in results; by default the metric's id."""

    @property
    def key(self) -> str:
        return self.name or self.id

    def scorer(self, folder: Path, rows: Sequence[ScoredRow]) -> Scorer:
        """Make the scorer for a task's folder and rows. Raises ConfigError or DataError where an option can't be
        met."""
        raise NotImplementedError


def one_metric(key: str, value: float | None, **detail: Any) -> ScoredAnswer:
    """Return a score of a single column."""
    return ScoredAnswer({key: value}, detail)


def normalize(text: str, steps: Sequence[Normalization]) -> str:
    """Apply normalisations in their order; `json` makes equal JSON values equal text and leaves other text alone."""
    for step in steps:
        if step == "strip":
            text = text.strip()
        elif step == "casefold":
            text = text.casefold()
        elif step == "spaces":
            text = " ".join(text.split())
        elif step == "punctuation":
            text = "".join(char for char in text if not unicodedata.category(char).startswith("P"))
        elif step == "accents":
            bare = "".join(char for char in unicodedata.normalize("NFD", text) if not unicodedata.combining(char))
            text = unicodedata.normalize("NFC", bare)
        elif step == "nfc":
            text = unicodedata.normalize("NFC", text)
        elif step == "nfkc":
            text = unicodedata.normalize("NFKC", text)
        elif step == "json":
            from gemma_ops.metrics.parse import Unreadable, dump, parse_json

            value = parse_json(text)
            text = text if isinstance(value, Unreadable) else dump(value)
    return text


_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, Kana and Chinese: scripts written without spaces between words. Korean is written with
them."""
_LETTER = re.compile(f"[{_UNSPACED}]")


def score_words(text: str) -> list[str]:
    """Return words of any script, in small letters and Unicode's composed form; letters of scripts written without
    spaces count one by one. Marks that combine with a letter (vowel signs, accents without a composed form) belong to
    it."""
    found: list[str] = []
    goes_on = inside = False  # whether the next letter may join the last word; whether the last sign was part of one
    for letter in unicodedata.normalize("NFC", text.lower()):
        kind = unicodedata.category(letter)[0]
        if kind == "M" and inside:
            found[-1] += letter
        elif kind in "LN":
            alone = bool(_LETTER.match(letter))
            if goes_on and not alone:
                found[-1] += letter
            else:
                found.append(letter)
            goes_on, inside = not alone, True
        elif letter not in "\u200c\u200d":  # joiners shape a word and don't end it
            goes_on = inside = False
    return found
