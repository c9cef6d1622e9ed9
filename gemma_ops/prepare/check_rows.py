"""The check behind `gemma-ops data check`: the exact tokens of rows, which carry loss, and everything worth knowing
first.

Every row is read as `prepare` reads it, and `prepare` itself is rehearsed, so that what a run would refuse or leave out
is reported here. Nothing is kept.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from gemma_ops.config import DataConfig
from gemma_ops.config.training import Thinking
from gemma_ops.data import chat, media_files, published
from gemma_ops.data.import_rows import Imported, Importer
from gemma_ops.data.row_files import left_out
from gemma_ops.data.row_tokens import Lengths
from gemma_ops.errors import DataError
from gemma_ops.prepare.check_result import CheckResult
from gemma_ops.prepare.rehearse import rehearse_prepare
from gemma_ops.prepare.row_findings import Context, RowFinding
from gemma_ops.prepare.row_view import RowView, view_row

_LEVELS = ("error", "warning", "note")
SHOWN = 1000
"""Rows kept to be shown; of all others the findings are counted."""


def check_source(
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
    """Look at the rows of the source with the tokenizer and template of the checkpoint `model`, and rehearse `prepare`
    with the evaluation tasks in the folders `tasks`.

    `limit` looks at the first rows only, and rehearses nothing. Raises DataError when there is nothing to read, and
    what the readers raise.
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
    rehearsed = rehearse_prepare(settings, source=source, model=model, tasks=tasks)
    result = replace(result, thinned=rehearsed.thinned, trained=rehearsed.trained)
    return result.refusing(*rehearsed.refusals)


def check_rows(items: Iterable[Imported], context: Context) -> CheckResult:
    """Return views and findings of imported rows, in the memory of the first `SHOWN`."""
    views: list[RowView] = []
    totals: Counter[str] = Counter()
    privacy: Counter[str] = Counter()
    first: dict[str, RowFinding] = {}
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
                lengths.add(len(loss), sum(loss))
            privacy[item.example["privacy"]] += 1
    order = sorted(totals, key=lambda code: (_LEVELS.index(first[code].level), -totals[code], code))
    return CheckResult(
        "", checked, False, views, {code: totals[code] for code in order}, first, lengths.table(), truncated,
        context.max_length, dict(privacy), examples, shown,
    )  # fmt: skip
