"""The section of confusions in the report: which labels are taken for which, as a map and as the list of the worst
pairs."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.verdicts import TargetResult
from gemma_ops.verdicts.measurements import LabelFacts
from gemma_ops.words import svg

_COUNTED = 12
"""Most labels whose counts fit into a table."""
_DRAWN = 100
"""Most labels for which a map can be read."""
_PAIRS = 12


def labels_section(results: Sequence[TargetResult]) -> Markup:
    """Return one card per label metric; the tuned target is shown, the others can be unfolded."""
    cards = []
    for metric in results[0].labels if results else ():
        focus = next((item for item in results if item.target == "tuned"), results[-1])
        others = [
            (item.target, f"{_wrong(item.labels[metric]):,}", _block(item.labels[metric]))
            for item in results
            if item is not focus
        ]
        cards.append((metric, focus.target, _block(focus.labels[metric]), others))
    return REPORT.fill("labels.html", "cards", cards=cards)


def _block(found: LabelFacts) -> Markup:
    labels = found.labels
    total = sum(count for *_, count in found.confusion)
    told = f"{_wrong(found):,} of {total:,} answers name another label; {found.invalid:,} name none."
    drawing: Markup | str = ""
    if len(labels) <= _COUNTED:
        drawing = _counts(labels, found.confusion)
    elif len(labels) <= _DRAWN:
        place = {label: index for index, label in enumerate(labels)}
        cells = [(place[wanted], place[said], count) for wanted, said, count in found.confusion if said is not None]
        order = ", ".join(f"{number} {label}" for number, label in enumerate(labels, 1))
        drawing = REPORT.fill("labels.html", "map", drawing=svg.heat(labels, cells), order=order)
    support: dict[str, int] = {}
    for wanted, _, count in found.confusion:
        support[wanted] = support.get(wanted, 0) + count
    pairs = sorted(
        ((count, w, s) for w, s, count in found.confusion if s is not None and s != w),
        key=lambda item: (-item[0], item[1:]),
    )
    rows = [
        [REPORT.fill("labels.html", "pair", wanted=wanted, said=said), str(count), str(support[wanted])]
        for count, wanted, said in pairs
    ]
    return REPORT.fill(
        "labels.html", "block", told=told, few=len(labels) <= _COUNTED, drawing=drawing, worst=rows[:_PAIRS],
        rest=rows[_PAIRS:],
    )  # fmt: skip


def _counts(labels: Sequence[str], confusion: Sequence[tuple[str, str | None, int]]) -> Markup:
    """Return the counts themselves, for few labels, with a last column for answers that are none of them."""
    counts = {(wanted, said): count for wanted, said, count in confusion}
    columns: list[str | None] = [*labels, None] if any(said is None for _, said, _ in confusion) else [*labels]
    rows = []
    for wanted in labels:
        cells = []
        for said in columns:
            count = counts.get((wanted, said), 0)
            kind = "zero-count" if not count else "hitcell" if wanted == said else "misscell"
            cells.append((kind, count or "·"))
        rows.append((wanted, cells))
    return REPORT.fill("labels.html", "counts", columns=columns, rows=rows)


def _wrong(found: LabelFacts) -> int:
    return sum(count for wanted, said, count in found.confusion if said is not None and said != wanted)
