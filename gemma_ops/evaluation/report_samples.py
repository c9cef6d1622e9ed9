"""Samples in the report: the rows that tell most, every target's answer side by side.

Rows are told in groups a reader acts on differently: what tuning broke, what quantization broke, what is still wrong,
and a few that tuning won. In a JSON answer the wrong fields are marked.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from gemma_ops.data.media_files import bytes_of
from gemma_ops.metrics.metric import ScoredAnswer, ScoredRow
from gemma_ops.metrics.parse import Unreadable, dump, parse_json
from gemma_ops.targets.spec import QUANTIZED
from gemma_ops.tasks.grades import Graded
from gemma_ops.tasks.stored_answers import StoredAnswer
from gemma_ops.verdicts import TaskFacts
from gemma_ops.words.figures import chip, escape, short_name

_LONG = 1500
"""Characters of a text that are shown."""
_SHOWN = 5
_SMALL = 48_000
"""Bytes of an image that is put into the page."""
_ALL = 24
_ENDS = {"length": "cut at the token limit", "blocked": "refused", "error": "failed"}


def samples_section(task: TaskFacts, graded: Sequence[Graded]) -> str:
    """Up to five rows per group, each row once."""
    primary = task.primary
    scores = {item.target: item.column(primary) for item in graded}
    rows = graded[0].task.rows
    left, taken, blocks = _ALL, set[int](), ""
    for title, note, chosen in _groups(scores, len(rows)):
        fresh = [index for index in chosen if index not in taken]
        shown = fresh[: min(_SHOWN, left)]
        if not shown:
            continue
        taken.update(shown)
        left -= len(shown)
        body = "".join(_sample(rows[index], index, graded, primary) for index in shown)
        count = f"{len(fresh):,} row{'s' * (len(fresh) != 1)}" + (
            f", {len(shown)} shown" if len(shown) < len(fresh) else ""
        )
        blocks += f"<details{'' if blocks else ' open'}><summary><b>{escape(title)}</b> ({count}). {escape(note)}</summary>{body}</details>"
    if not blocks:
        return ""
    hidden = task.privacy.get("local_only", 0)
    warning = (
        f" {hidden:,} rows are marked local_only: this page shows some of them, so it must stay where they may be."
        if hidden
        else ""
    )
    return f'<section class="card"><h3>Samples</h3><p class="note">Judged by {escape(primary)}.{escape(warning)}</p>{blocks}</section>'


def _groups(scores: dict[str, list[float | None]], count: int) -> list[tuple[str, str, list[int]]]:
    """Groups of row indexes, each with the rows that lost most first. A row without a score loses nothing."""

    def loss(better: str | None, worse: str) -> list[int]:
        """Rows where `worse` scores below `better`, or below full marks."""
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


def _sample(row: ScoredRow, index: int, graded: Sequence[Graded], primary: str) -> str:
    turns = "".join(
        f'<p class="question"><b>{escape(message["role"])}</b>{_said(message, row)}</p>' for message in row.messages
    )
    expected = parse_json(row.reference) if isinstance(row.reference, str) else row.reference
    structured = isinstance(expected, dict)
    reference = _fields(expected, None) if structured else f"<pre>{_text(row.gold)}</pre>"
    if row.reference is None:
        reference = "<pre>–</pre>"
    where = " · ".join([row.id, *(f"{name}: {bucket}" for name, bucket in row.slices.items())])
    answers = "".join(
        _answer(item.target, item.answers[index], item.scores[index], primary, expected if structured else None)
        for item in graded
    )
    return (
        f'<div class="sample"><p class="note mono">{escape(where)}</p>{turns}<div class="answers">'
        f'<div class="answer reference"><header><b>expected</b></header>{reference}</div>{answers}</div></div>'
    )


def _said(message: dict[str, Any], row: ScoredRow) -> str:
    """A turn in words, and small images as they are: the page stays one file that needs no other."""
    content = message.get("content")
    if not isinstance(content, list):
        return _text(str(content or dump(message.get("tool_calls"))))
    return " ".join(_text(part["text"]) if part["type"] == "text" else _part(part, row) for part in content)


def _part(part: dict[str, Any], row: ScoredRow) -> str:
    data = bytes_of(part, row.media)
    name = f'<span class="ci">[{part["type"]}, {len(data):,} bytes]</span>'
    if part["type"] != "image" or len(data) > _SMALL or part["path"].endswith("tiff"):
        return name
    ending = part["path"].rpartition(".")[2].replace("jpg", "jpeg")
    body = base64.b64encode(data).decode()
    return f'<img alt="{escape(name)}" style="max-height:8rem" src="data:image/{ending};base64,{body}">'


def _answer(
    target: str, answer: StoredAnswer, scored: ScoredAnswer, primary: str, expected: dict[str, Any] | None
) -> str:
    value = scored.values[primary]
    mark = "–" if value is None else "✓" if value >= 1 - 1e-9 else "✕" if value <= 1e-9 else f"{value:.2f}"
    kind = "" if value is None else "right" if value >= 1 - 1e-9 else "wrong"
    found = parse_json(answer.text, fenced=True) if expected is not None else None
    if isinstance(found, dict):
        body = _fields(found, expected)
    elif answer.end == "hidden":
        body = '<span class="ci">not shown to it: the row must stay here</span>'
    elif answer.text:
        why = f'<span class="ci">not JSON: {escape(found.why)}</span>' if isinstance(found, Unreadable) else ""
        body = f"<pre>{_text(answer.text)}</pre>{why}"
    else:
        body = '<span class="ci">empty</span>'
    why = f": {_text(answer.reason)}" if answer.reason else ""
    end = f'<span class="ci">{escape(_ENDS[answer.end])}{why}</span>' if answer.end in _ENDS else ""
    return f'<div class="answer"><header>{chip(target)}<span class="{kind}">{mark}</span></header>{body}{end}</div>'


def _fields(found: dict[str, Any], expected: dict[str, Any] | None) -> str:
    """An object key by key; compared with an expected one, wrong and superfluous values are marked, missing keys struck
    out."""
    lines = []
    for key, value in found.items():
        shown = f"{_text(value if isinstance(value, str) else dump(value))}"
        wrong = expected is not None and (key not in expected or dump(value) != dump(expected[key]))
        lines.append(f'<span class="key">{escape(key)}:</span> {f"<mark>{shown}</mark>" if wrong else shown}')
    lines += [
        f'<span class="key">{escape(key)}:</span> <mark class="gone">missing</mark>'
        for key in expected or {}
        if key not in found
    ]
    return f"<pre>{chr(10).join(lines)}</pre>"


def _text(text: str) -> str:
    """Escaped, and cut where it is very long."""
    rest = len(text) - _LONG
    return (
        escape(text) if rest <= 0 else f'{escape(text[:_LONG])} <span class="ci">… and {rest:,} more characters</span>'
    )
