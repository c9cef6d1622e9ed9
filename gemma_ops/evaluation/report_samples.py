"""The section of samples in the report: the rows that tell most, every target's answer side by side.

Rows are told in groups a reader acts on differently: what tuning broke, what quantization broke, what is still wrong,
and a few that tuning won. In a JSON answer the wrong fields are marked.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from gemma_ops.data.media_files import bytes_of
from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.metrics.metric import ScoredAnswer, ScoredRow
from gemma_ops.metrics.parse import Unreadable, dump, parse_json
from gemma_ops.targets.spec import QUANTIZED
from gemma_ops.tasks.grades import Graded
from gemma_ops.tasks.stored_answers import StoredAnswer
from gemma_ops.verdicts import TaskFacts
from gemma_ops.words.figures import short_name, small
from gemma_ops.words.markup import trusted

_LONG = 1500
"""Characters of a text that are shown."""
_SHOWN = 5
_SMALL = 48_000
"""Bytes of an image that is put into the page."""
_ALL = 24
_ENDS = {"length": "cut at the token limit", "blocked": "refused", "error": "failed"}


def samples_section(task: TaskFacts, graded: Sequence[Graded]) -> Markup | str:
    """Return up to five rows per group, each row once."""
    primary = task.primary
    scores = {item.target: item.column(primary) for item in graded}
    rows = graded[0].task.rows
    left, taken, blocks = _ALL, set[int](), []
    for title, note, chosen in _groups(scores, len(rows)):
        fresh = [index for index in chosen if index not in taken]
        shown = fresh[: min(_SHOWN, left)]
        if not shown:
            continue
        taken.update(shown)
        left -= len(shown)
        count = f"{len(fresh):,} row{'s' * (len(fresh) != 1)}" + (
            f", {len(shown)} shown" if len(shown) < len(fresh) else ""
        )
        blocks.append((title, count, note, [_sample(rows[index], index, graded, primary) for index in shown]))
    if not blocks:
        return ""
    hidden = task.privacy.get("local_only", 0)
    warning = (
        f" {hidden:,} rows are marked local_only: this page shows some of them, so it must stay where they may be."
        if hidden
        else ""
    )
    return REPORT.fill("samples.html", "section", note=f"Judged by {primary}.{warning}", blocks=blocks)


def _groups(scores: dict[str, list[float | None]], count: int) -> list[tuple[str, str, list[int]]]:
    """Return groups of row indexes, each with the rows that lost most first. A row without a score loses nothing."""

    def loss(better: str | None, worse: str) -> list[int]:
        """Return rows where `worse` scores below `better`, or below full marks."""
        found = []
        for index in range(count):
            low, high = scores[worse][index], 1.0 if better is None else scores[better][index]
            if low is not None and high is not None and high - low > 1e-9:
                found.append((low - high, index))
        return [index for _, index in sorted(found)]

    names = list(scores)
    if "tuned" not in scores:
        return [("Wrong", f"{names[-1]} misses these.", loss(None, names[-1]))]
    quantized = [name for name in names if name in QUANTIZED]
    groups = [(f"Lost by {name}", "The tuned model was better here.", loss("tuned", name)) for name in quantized]
    others = [name for name in names if name not in ("base", "tuned", *QUANTIZED)]
    groups += [
        (f"Better by {short_name(name)}", "The tuned model was worse here.", loss(name, "tuned")) for name in others
    ]
    groups.append(("Still wrong", "The tuned model misses these.", loss(None, "tuned")))
    if "base" in scores:
        groups.insert(0, ("Lost by tuning", "The base model was better here.", loss("base", "tuned")))
        groups.append(("Won by tuning", "The base model missed these.", loss("tuned", "base")))
    return groups


def _sample(row: ScoredRow, index: int, graded: Sequence[Graded], primary: str) -> Markup:
    expected = parse_json(row.reference) if isinstance(row.reference, str) else row.reference
    structured = expected if isinstance(expected, dict) else None
    if row.reference is None:
        reference = REPORT.fill("samples.html", "text", text="–")
    else:
        reference = _fields(structured, None) if structured is not None else _text("text", row.gold)
    where = " · ".join([row.id, *(f"{name}: {bucket}" for name, bucket in row.slices.items())])
    return REPORT.fill(
        "samples.html", "sample", where=where,
        turns=[(message["role"], _said(message, row)) for message in row.messages], reference=reference,
        answers=[
            _answer(item.target, item.answers[index], item.scores[index], primary, structured) for item in graded
        ],
    )  # fmt: skip


def _said(message: dict[str, Any], row: ScoredRow) -> Markup:
    """Return a turn in words, and small images as they are: the page stays one file that needs no other."""
    content = message.get("content")
    if not isinstance(content, list):
        return _text("cut", str(content or dump(message.get("tool_calls"))))
    return trusted(" ").join(
        _text("cut", part["text"]) if part["type"] == "text" else _part(part, row) for part in content
    )


def _part(part: dict[str, Any], row: ScoredRow) -> Markup:
    data = bytes_of(part, row.media)
    name = f"[{part['type']}, {len(data):,} bytes]"
    if part["type"] != "image" or len(data) > _SMALL or part["path"].endswith("tiff"):
        return small("ci", name)
    ending = part["path"].rpartition(".")[2].replace("jpg", "jpeg")
    return REPORT.fill("samples.html", "image", name=name, ending=ending, body=base64.b64encode(data).decode())


def _answer(
    target: str, answer: StoredAnswer, scored: ScoredAnswer, primary: str, expected: dict[str, Any] | None
) -> Markup:
    value = scored.values[primary]
    mark = "–" if value is None else "✓" if value >= 1 - 1e-9 else "✕" if value <= 1e-9 else f"{value:.2f}"
    kind = "" if value is None else "right" if value >= 1 - 1e-9 else "wrong"
    found = parse_json(answer.text, fenced=True) if expected is not None else None
    if isinstance(found, dict):
        body = _fields(found, expected)
    elif answer.end == "hidden":
        body = small("ci", "not shown to it: the row must stay here")
    elif answer.text:
        body = _text("text", answer.text)
        body += small("ci", f"not JSON: {found.why}") if isinstance(found, Unreadable) else ""
    else:
        body = small("ci", "empty")
    return REPORT.fill(
        "samples.html", "answer", target=target, kind=kind, mark=mark, body=body, end=_ENDS.get(answer.end, ""),
        reason=_text("cut", answer.reason) if answer.reason else "",
    )  # fmt: skip


def _fields(found: dict[str, Any], expected: dict[str, Any] | None) -> Markup:
    """Return an object key by key; compared with an expected one, wrong and superfluous values are marked, missing keys
    struck out."""
    lines = []
    for key, value in found.items():
        wrong = expected is not None and (key not in expected or dump(value) != dump(expected[key]))
        lines.append((key, _text("cut", value if isinstance(value, str) else dump(value)), wrong))
    missing = [key for key in expected or {} if key not in found]
    return REPORT.fill("samples.html", "fields", lines=lines, missing=missing)


def _text(macro: str, text: str) -> Markup:
    """Return text, cut where it is very long, by the macro `cut`, or by `text` in a block of its own."""
    rest = len(text) - _LONG
    return REPORT.fill("samples.html", macro, text=text[:_LONG], rest=f"{rest:,}" if rest > 0 else "")
