"""A comparison of costs as plain text, about 100 columns wide: the answer first, then the table, then what it rests
on."""

from __future__ import annotations

import textwrap

from gemma_ops.evaluation.breakeven import Charge, CostComparison, Own, cheapest
from gemma_ops.gemini import models

_WIDTH = 100


def cost_lines(found: CostComparison) -> list[str]:
    own = found.own
    text = [own_line(own), *textwrap.wrap(cost_headline(found), _WIDTH), ""]
    head = ["dollars per 1,000 answers", "from", "standard", "batch", "cached"]
    head += ["break-even a month", "on batch"]
    rows = [head]
    for offer in found.offers:
        for place, charge in enumerate(offer.charges):
            rows.append(
                [offer.name if place == 0 else "", "today" if place == 0 else str(charge.start), *_cells(found, charge)]
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    text += [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    text.append("")
    for note in notes(found):
        text += textwrap.wrap(note, _WIDTH, subsequent_indent="  ")
    return text


def own_line(own: Own) -> str:
    return (
        f"own machine: ${money_words(own.per_thousand)} per 1,000 answers when busy {own.utilisation:.0%} of the time, "
        f"${money_words(own.full)} at the least"
    )


def cost_headline(found: CostComparison) -> str:
    """Return from which volume the machine is cheaper than the cheapest of each kind."""
    parts = []
    for kind, title in (("gemini", "Gemini"), ("hosted", "hosted Gemma")):
        offer = cheapest(found.offers, kind)  # type: ignore[arg-type]
        if offer is None:
            continue
        volume = found.break_even(offer.today.standard)
        price = f"{offer.name}, the cheapest {title} at ${money_words(offer.today.standard)}"
        if volume is None:
            parts.append(f"one machine is never cheaper than {price}")
        else:
            parts.append(f"from {count_words(volume)} answers a month it is cheaper than {price}")
    sentence = "; ".join(parts) or "there is nothing to compare with"
    return (
        f"{sentence[:1].upper()}{sentence[1:]}. One machine answers at most {count_words(found.own.capacity)} a month."
    )


def notes(found: CostComparison) -> list[str]:
    """Return what every figure rests on."""
    own, work = found.own, found.work
    thoughts = f", {work.thoughts:,.0f} thoughts" if work.thoughts else ", no thoughts"
    share = "all" if found.cached_share == 1 else f"{found.cached_share:.0%}"
    measured = [offer.name for offer in found.offers if offer.work is not work and not offer.work.rehearsed]
    rehearsed = [offer.name for offer in found.offers if offer.work.rehearsed]
    sources = ", ".join(sorted({offer.source for offer in found.offers}))
    told = []
    told.append(
        f"machine: {speed_words(own)}; ${own.dollars_per_hour:g} an hour ({own.price_from}), ${own.per_month:,.0f} a "
        f"month, idle or busy; utilisation {own.utilisation:g} (machine.utilisation)."
    )
    told.append(f"an answer: {work.prompt:,.1f} prompt tokens, {work.new:,.1f} new{thoughts} ({work.source}).")
    told.append(
        f"prices: {sources}; facts as of {models.models_table().as_of}, read on {found.at.date()}. Batch answers "
        f"within a day. Cached: {share} of the prompt comes from the cache."
    )
    told.append(
        "break-even: answers a month that cost as much there as the machine costs; `never` where one machine can't "
        "answer so many."
    )
    if measured:
        told.append(f"priced at the tokens they used themselves, thoughts included: {', '.join(measured)}.")
    if rehearsed:
        told.append(
            f"NOT MEASURED: the tokens of {', '.join(rehearsed)} are from a rehearsal, where an emulator made them up; "
            "evaluate against Gemini itself for figures that count."
        )
    if not work.thoughts and any(offer.kind == "gemini" and offer.work is work for offer in found.offers):
        told.append(
            "Gemini models that think bill their thoughts as output: give --thought-tokens, or evaluate them as "
            "targets, which measures it."
        )
    if any(offer.kind == "hosted" and offer.source != "as given" for offer in found.offers):
        told.append("hosted Gemma is not tuned: whether it answers as well is a question for an evaluation.")
    return told


def speed_words(own: Own) -> str:
    return f"{own.answers_per_second:,.3g} answers/s ({own.speed_from})"


def money_words(amount: float) -> str:
    """Return dollars, with as many digits as tell small amounts apart."""
    return f"{amount:,.2f}" if amount >= 10 else f"{amount:.3f}" if amount >= 0.1 else f"{amount:.2g}"


def count_words(number: float) -> str:
    """Return a volume in three digits."""
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{round(number, -max(len(str(int(number))) - 3, 0)):,.0f}"


def _cells(found: CostComparison, charge: Charge) -> list[str]:
    amounts = [charge.standard, charge.batch, charge.cached]
    shown = ["–" if amount is None else money_words(amount) for amount in amounts]
    for amount in amounts[:2]:
        volume = found.break_even(amount)
        shown.append("–" if amount is None else "never" if volume is None else count_words(volume))
    return shown
