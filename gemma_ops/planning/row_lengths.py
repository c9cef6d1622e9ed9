"""The number and lengths of the training rows: from the prepared report, else estimated from the file.

Nothing is tokenized here: `plan` answers before anything is downloaded, the tokenizer included.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gemma_ops.config import RunConfig, TrainConfig

_SAMPLE = 1 << 20
"""Bytes read from the front of a file to learn what a row is like."""
_LETTERS = 4.0
"""Letters per token of Gemma's 262,144-word vocabulary in English prose and JSON; other languages and code need more
tokens."""
_LETTERS_SMALL = 3.0
"""Letters per token of nano's vocabulary of 2,048."""
_FRAME = 10
"""Tokens a chat template adds to a question and its answer."""
_SHOWN = re.compile(rb'"type"\s*:\s*"(?:input_)?(?:image|audio)(?:_url)?"|"(?:images|audios)"\s*:\s*\[\s*["{]')
"""Parts of a message, or a column, that hold images or audio (`data.parts`)."""
_UNREAD = {"id", "role", "from", "source", "privacy", "group"}
"""Keys whose text never reaches the model."""
TYPICAL = 200
"""Median tokens of a chat row where nothing is known about the data; lengths are taken as log-normal, with a mean of
1.5 times that."""
_SIGMA = 0.9
SCORED = 0.6
"""Share of tokens that carry loss where nothing is known: answers rather than prompts."""


@dataclass(frozen=True)
class RowLengths:
    """The training rows of a run."""

    count: int | None
    """Number of rows; None while there are no data, and time is then given per million tokens."""
    lengths: tuple[float, ...]
    """Tokens of equally likely rows, ascending, cut at `train.max_length`: the distribution in at most 1,000
    numbers."""
    longest: int
    """Tokens of the longest row, at most `train.max_length`."""
    scored: float
    source: str
    """Source of the numbers, in words."""

    @property
    def mean(self) -> float:
        """Return the tokens per row."""
        return sum(self.lengths) / len(self.lengths)

    @property
    def context(self) -> float:
        """Return the length of the row that an average token stands in: longer than an average row, because long rows
        hold more."""
        return sum(length**2 for length in self.lengths) / sum(self.lengths)

    @property
    def tokens(self) -> float | None:
        """Return the tokens of one pass over the rows."""
        return None if self.count is None else self.count * self.mean

    def padding(self, micro_batch: int) -> float:
        """Return slots per token when rows drawn at random are padded to the longest of their micro-batch: the expected
        largest of so many draws, over the mean."""
        n = len(self.lengths)
        shares = (((i + 1) / n) ** micro_batch - (i / n) ** micro_batch for i in range(n))
        return sum(length * share for length, share in zip(self.lengths, shares, strict=True)) / self.mean


@dataclass(frozen=True)
class Counted:
    """Token counts of rows that were read and rendered: `lengths` of one example each, not cut, of which `scored` carry
    loss."""

    lengths: tuple[int, ...]
    scored: float
    """Share of the tokens that carry loss."""
    per_row: float
    """Examples that training makes of a row."""
    rows: int
    whole: bool
    """Whether these are all rows, or the first of them."""


def find_lengths(config: RunConfig, vocab: int, counted: Counted | None = None) -> RowLengths:
    """Return the row lengths as prepared, as counted from `data.path`, as estimated from it, or as assumed."""
    report = Path(config.machine.runs) / config.name / "prepare" / "report.json"
    limit = config.train.max_length
    found = _reported(report, limit, config.train) if report.is_file() else None
    if found is None and config.data.path:
        found = _estimated(Path(config.data.path), config, vocab)
        found = _of_counted(counted, config, found) if counted else found
    return found or _typical(limit)


def _of_counted(counted: Counted, config: RunConfig, estimated: RowLengths | None) -> RowLengths:
    """Return the row lengths from the tokens of the rows that were counted; where these are the first of many, the
    file's size gives their number."""
    train = round(counted.rows * counted.per_row * (1 - config.data.valid_share))
    count = train if counted.whole else max(train, round((estimated.count or 0) * counted.per_row) if estimated else 0)
    limit = config.train.max_length
    every = max(1, len(counted.lengths) // 1000)
    lengths = tuple(min(float(limit), float(length)) for length in sorted(counted.lengths)[::every])
    longest = min(limit, max(counted.lengths)) if counted.whole else limit
    mean = sum(min(limit, length) for length in counted.lengths) / len(counted.lengths)
    words = f"{counted.rows:,} rows" if counted.whole else f"about {count:,} examples, of which the first were"
    return RowLengths(max(1, count), lengths, longest, counted.scored, f"{words} counted: {mean:.0f} tokens on average")


def rows_show(config: RunConfig) -> bool:
    """True if the rows show images or audio, by the front of the prepared file or else of `data.path`."""
    prepared = Path(config.machine.runs) / config.name / "prepare" / "train.jsonl"
    path = prepared if prepared.is_file() else Path(config.data.path or "")
    if not path.is_file() or path.suffix.lower() not in {".jsonl", ".json", ".ndjson"}:
        return False
    return _shows(path, path.stat().st_size)


@lru_cache(maxsize=8)
def _shows(path: Path, size: int) -> bool:
    return bool(_SHOWN.search(_front(path)))


def _typical(limit: int) -> RowLengths:
    import statistics

    normal = statistics.NormalDist()
    drawn = [TYPICAL * math.exp(_SIGMA * normal.inv_cdf((i + 0.5) / 200)) for i in range(200)]
    lengths = tuple(min(float(limit), length) for length in drawn)
    rows = RowLengths(None, lengths, limit, SCORED, "")
    return replace(rows, source=f"no data yet: rows of {rows.mean:.0f} tokens on average assumed")


def _reported(path: Path, limit: int, train: TrainConfig) -> RowLengths | None:
    """Return the numbers of `prepare/report.json`; None when it has none for training rows.

    A row whose answers are asked for with prompts that no one example holds counts as often as training reads it.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        rows, tokens = int(body["rows"]["train"]), body["tokens"]["train"]
        count = int(body["examples"][train.thinking]) if train.loss_on == "all" else rows
        p50, p95, longest = (float(tokens["row"][name]) for name in ("p50", "p95", "max"))
        mean, scored = tokens["tokens"] / tokens["count"], tokens["tokens_with_loss"] / tokens["tokens"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None
    known = {0.0: max(1.0, 2 * p50 - p95), 0.5: p50, 0.95: p95, 1.0: longest}
    shape = [_between(known, (i + 0.5) / 200) for i in range(200)]
    # Percentiles give the shape, the total the mean.
    scale = mean * len(shape) / sum(shape)
    most = min(float(limit), longest)
    lengths = tuple(min(most, length * scale) for length in shape)
    made = "" if count == rows else f", {count:,} examples"
    return RowLengths(
        count, lengths, int(most), scored, f"{rows:,} prepared rows{made} of {mean:.0f} tokens on average"
    )


def _between(known: dict[float, float], share: float) -> float:
    """Interpolate linearly between the known percentiles."""
    below = max(at for at in known if at <= share)
    above = min(at for at in known if at >= share)
    if above == below:
        return known[below]
    return known[below] + (known[above] - known[below]) * (share - below) / (above - below)


def _estimated(path: Path, config: RunConfig, vocab: int) -> RowLengths | None:
    """Estimate from the front of a text file and its size; None for folders, Parquet and what can't be read."""
    if not path.is_file() or path.suffix.lower() not in {".jsonl", ".json", ".csv", ".tsv", ".ndjson"}:
        return None
    count, letters = _sample(path, path.stat().st_size)
    if not letters:
        return None
    if config.data.max_rows:
        count = min(count, config.data.max_rows)
    count = max(1, round(count * (1 - config.data.valid_share)))
    per_token = _LETTERS if vocab > 100_000 else _LETTERS_SMALL
    limit = config.train.max_length
    lengths = tuple(sorted(min(float(limit), length / per_token + _FRAME) for length in letters[:1000]))
    # A sample says little about the longest row: the plan keeps room for train.max_length.
    rows = RowLengths(count, lengths, limit, SCORED, "")
    return replace(
        rows, source=f"about {count:,} rows of {rows.mean:.0f} tokens on average, estimated from {path.name}"
    )


@lru_cache(maxsize=8)
def _sample(path: Path, size: int) -> tuple[int, tuple[int, ...]]:
    """Return the number of rows in the file, extrapolated, and the letters of each of the first ones."""
    front = _front(path)
    lines = front.split(b"\n")
    if len(front) < size and len(lines) > 1:
        lines.pop()  # cut in the middle
    read = sum(len(line) + 1 for line in lines)
    lengths = tuple(length for line in lines if line.strip() and (length := _letters(line, path.suffix.lower())))
    return max(1, round(len(lengths) * size / max(1, min(read, size)))), lengths


def _front(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SAMPLE)


def _letters(line: bytes, suffix: str) -> int:
    """Return the letters of a row that the model would read."""
    text = line.decode("utf-8", errors="replace")
    if suffix in {".csv", ".tsv"}:
        return len(text)
    try:
        return _strings(json.loads(text))
    except ValueError:
        return 0 if suffix != ".json" else len(text)  # pretty-printed JSON: a line is part of a row


def _strings(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_strings(item) for key, item in value.items() if key not in _UNREAD)
    return sum(_strings(item) for item in value) if isinstance(value, list) else 0
