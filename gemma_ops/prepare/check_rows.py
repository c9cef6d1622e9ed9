"""What `gemma-ops data check` shows: the exact tokens of rows, which carry loss, and everything worth knowing first.

Every row is read as `prepare` reads it, and `prepare` itself is rehearsed, so that what a run would refuse or leave out is
told here. Nothing is kept.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gemma_ops.config import DataConfig
from gemma_ops.config.training import Thinking
from gemma_ops.data import chat, media_files, published
from gemma_ops.data.import_rows import Imported, Importer
from gemma_ops.data.row_files import left_out
from gemma_ops.data.row_tokens import Lengths
from gemma_ops.errors import DataError
from gemma_ops.prepare.check_text import check_lines
from gemma_ops.prepare.rehearse import rehearse
from gemma_ops.prepare.row_findings import Context, Finding
from gemma_ops.prepare.row_view import RowView, view_row

_LEVELS = ("error", "warning", "note")
SHOWN = 1000
"""Rows kept to be shown; of all others what is found is counted."""


@dataclass(frozen=True)
class CheckResult:
    """Rows, what was found in them, and how long they are. `checked` rows were read; `more` says whether there are others,
    because only the first were asked for."""

    layout: str
    checked: int
    more: bool
    rows: list[RowView]
    """The first of them, to be shown."""
    totals: dict[str, int]
    """Rows by finding, errors first."""
    first: dict[str, Finding]
    """The first finding of each code."""
    lengths: dict[str, Any]
    truncated: int
    max_length: int | None
    privacy: dict[str, int] = field(default_factory=dict)
    examples: int = 0
    """Examples that training makes of the rows."""
    shown: dict[str, Counter[int]] = field(default_factory=dict)
    """By kind of image or sound: how many take so many soft tokens."""
    template: tuple[str, ...] = ()
    """What is told of the checkpoint's chat template, a line each."""
    thinned: tuple[str, ...] = ()
    """What a run would leave out, and what contradicts itself, a line each."""
    refusals: tuple[tuple[str, str], ...] = ()
    """What a run would refuse, and what to do about it."""
    trained: dict[str, int] = field(default_factory=dict)
    """What would be trained on, as `Rehearsal.trained`."""

    @property
    def findings(self) -> list[Finding]:
        """All findings of the shown rows, row by row."""
        return [item for row in self.rows for item in row.findings]

    def refusing(self, *refusals: tuple[str, str]) -> CheckResult:
        """The same with what else a run would refuse."""
        known = {what for what, _ in self.refusals}
        return replace(self, refusals=(*self.refusals, *(one for one in refusals if one[0] not in known)))

    def lines(self) -> list[str]:
        """The summary as plain lines for a terminal."""
        return list(check_lines(self))

    def html(self) -> str:
        """One self-contained page with the tokens of the shown rows."""
        from gemma_ops.prepare.check_html import page

        return page(self)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tokens' texts, which are given as token counts."""
        return {
            "layout": self.layout,
            "checked": self.checked,
            "more": self.more,
            "totals": self.totals,
            "tokens": self.lengths,
            "truncated": self.truncated,
            "examples": self.examples,
            "template": list(self.template),
            "thinned": list(self.thinned),
            "refusals": [{"what": what, "fix": fix} for what, fix in self.refusals],
            "max_length": self.max_length,
            "privacy": self.privacy,
            "findings": [asdict(item) for item in self.findings],
            "rows": [_row_json(row) for row in self.rows],
        }


def _row_json(row: RowView) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": row.id,
        "source": row.source,
        "tokens": row.count,
        "with_loss": sum(loss for tokens in (row.tokens, *row.more) for _, loss in tokens),
    }
    if row.shown:
        body["media"] = [list(item) for item in row.shown]
    if row.rejected:
        body["rejected_tokens"] = len(row.rejected)
        body["rejected_with_loss"] = sum(loss for _, loss in row.rejected)
    return body


def check(
    settings: DataConfig,
    *,
    source: Path | None,
    model: Path,
    tasks: tuple[Path, ...] = (),
    max_length: int | None = None,
    limit: int | None = None,
    thinking: Thinking = "off",
    loss_on: Literal["all", "last"] = "all",
) -> CheckResult:
    """Look at the rows of the source with the tokenizer and template of the checkpoint `model`, and rehearse `prepare` with
    the evaluation tasks in the folders `tasks`.

    `limit` looks at the first rows only, and rehearses nothing. Raises DataError when there is nothing to read, and what the
    readers raise.
    """
    template = published.template_of(model)
    senses = media_files.senses(model)
    context = Context(
        chat.load_tokenizer(model), max_length, template=template, senses=senses, thinking=thinking, loss_on=loss_on
    )
    importer = Importer(source, settings, senses)
    items = iter(importer)
    result = check_rows(itertools.islice(items, limit), context)
    if not result.checked:
        raise DataError(
            f"{source or settings.hub} holds no rows",
            "check data.path (and data.split); empty lines don't count as rows",
        )
    told = list(published.template_told(template))
    if source is not None and (unread := left_out(source)):
        told.append(f"files of the folder that are not read: {', '.join(path.name for path in unread)}")
    more = limit is not None and next(items, None) is not None
    result = replace(result, layout=importer.layout, more=more, template=tuple(told))
    if limit is not None:
        return result
    rehearsed = rehearse(settings, source=source, model=model, tasks=tasks)
    result = replace(result, thinned=rehearsed.thinned, trained=rehearsed.trained)
    return result.refusing(*rehearsed.refusals)


def check_rows(items: Iterable[Imported], context: Context) -> CheckResult:
    """Views and findings of imported rows, in the memory of the first `SHOWN`."""
    views: list[RowView] = []
    totals: Counter[str] = Counter()
    privacy: Counter[str] = Counter()
    first: dict[str, Finding] = {}
    shown: dict[str, Counter[int]] = {}
    lengths = Lengths()
    checked = truncated = examples = 0
    for item in items:
        view = view_row(item, context)
        checked += 1
        truncated += view.truncated
        examples += len(view.loss)
        if len(views) < SHOWN:
            views.append(view)
        totals.update({found.code for found in view.findings})
        for found in view.findings:
            first.setdefault(found.code, found)
        for kind, tokens in view.shown:
            shown.setdefault(kind, Counter())[tokens] += 1
        if item.example is not None and view.loss:
            for loss in view.loss:
                lengths.add(loss)
            privacy[item.example["privacy"]] += 1
    order = sorted(totals, key=lambda code: (_LEVELS.index(first[code].level), -totals[code], code))
    return CheckResult(
        "", checked, False, views, {code: totals[code] for code in order}, first, lengths.table(), truncated,
        context.max_length, dict(privacy), examples, shown,
    )  # fmt: skip
