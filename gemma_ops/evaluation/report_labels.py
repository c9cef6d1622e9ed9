"""Confusions in the report: which labels are taken for which, as a map and as the list of the worst pairs."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_ops.verdicts import TargetResult
from gemma_ops.verdicts.figures import LabelFacts
from gemma_ops.words import svg
from gemma_ops.words.figures import chip, escape, html_table

_COUNTED = 12
"""Up to this many labels the counts fit into a table."""
_DRAWN = 100
"""Up to this many labels a map can be read."""
_PAIRS = 12


def labels_section(results: Sequence[TargetResult]) -> str:
    """One card per label metric; the tuned target is shown, the others can be unfolded."""
    metrics = list(results[0].labels) if results else []
    cards = ""
    for metric in metrics:
        focus = next((item for item in results if item.target == "tuned"), results[-1])
        others = [item for item in results if item is not focus]
        folded = "".join(
            f"<details><summary>{chip(item.target)}, {_wrong(item.labels[metric]):,} confusions</summary>{_block(item, metric)}</details>"
            for item in others
        )
        cards += f'<section class="card"><h3>What is taken for what ({escape(metric)})</h3><p class="note">{chip(focus.target)}</p>{_block(focus, metric)}{folded}</section>'
    return cards


def _block(result: TargetResult, metric: str) -> str:
    found = result.labels[metric]
    labels = found.labels
    place = {label: index for index, label in enumerate(labels)}
    cells = [(place[wanted], place[said], count) for wanted, said, count in found.confusion if said is not None]
    wrong = _wrong(found)
    total = sum(count for *_, count in found.confusion)
    told = f"{wrong:,} of {total:,} answers name another label; {found.invalid:,} name none."
    if len(labels) <= _COUNTED:
        drawing = _counts(labels, found.confusion)
    elif len(labels) <= _DRAWN:
        drawing = (
            svg.heat(labels, cells)
            + '<p class="note">Rows: expected. Columns: answered. Both in this order: '
            + escape(", ".join(f"{number} {label}" for number, label in enumerate(labels, 1)))
            + "</p>"
        )
    else:
        drawing = ""
    pairs = sorted(
        ((count, w, s) for w, s, count in found.confusion if s is not None and s != w),
        key=lambda item: (-item[0], item[1:]),
    )
    support: dict[str, int] = {}
    for wanted, _, count in found.confusion:
        support[wanted] = support.get(wanted, 0) + count
    rows = [
        [f'{escape(wanted)}<span class="said">→ {escape(said)}</span>', str(count), str(support[wanted])]
        for count, wanted, said in pairs
    ]
    head = ["expected → answered", "times", "of"]
    worst = html_table(head, rows[:_PAIRS])
    if rows[_PAIRS:]:
        worst += f"<details><summary>{len(rows) - _PAIRS:,} more</summary>{html_table(head, rows[_PAIRS:])}</details>"
    if not pairs:
        worst = "<p class='note'>No label was taken for another.</p>"
    return f'<p class="note">{told}</p><div class="two{" counts" * (len(labels) <= _COUNTED)}"><div>{drawing}</div><div>{worst}</div></div>'


def _counts(labels: Sequence[str], confusion: Sequence[tuple[str, str | None, int]]) -> str:
    """Few labels: the counts themselves, with a last column for answers that are none of them."""
    counts = {(wanted, said): count for wanted, said, count in confusion}
    columns: list[str | None] = [*labels, None] if any(said is None for _, said, _ in confusion) else [*labels]
    rows = []
    for wanted in labels:
        cells = []
        for said in columns:
            count = counts.get((wanted, said), 0)
            kind = "zero-count" if not count else "hitcell" if wanted == said else "misscell"
            cells.append((kind, count))
        rows.append((wanted, cells))
    head = "".join(f"<th scope=col>{'<i>none</i>' if column is None else escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th scope=row>{escape(wanted)}</th>"
        + "".join(f'<td class="{kind}">{count or "·"}</td>' for kind, count in cells)
        + "</tr>"
        for wanted, cells in rows
    )
    return f'<div class="scroll"><table class="grid-counts"><thead><tr><th scope=col>expected ↓ answered →</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _wrong(found: LabelFacts) -> int:
    return sum(count for wanted, said, count in found.confusion if said is not None and said != wanted)
