"""A plan as plain text: the verdict first, then where the memory goes, the one change, time and cost."""

from __future__ import annotations

import textwrap

from gemma_ops.planning.training_plan import Change, TrainingPlan
from gemma_ops.planning.training_step import GIB

_WIDTH = 100
_BAR = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_VERDICT = {"yes": "fits on", "tight": "may just fit on", "no": "does not fit on"}


def plan_lines(made: TrainingPlan) -> list[str]:
    """Return the plan as lines of about 100 columns, without colours, so that it reads the same in a log."""
    size = f" ({made.size})" if made.size and made.size not in made.model else ""
    text = [
        f"{made.name}: {made.model}{size} {_VERDICT[made.fits]} {made.device.name}",
        f"needs {_gib(made.total)} ± {_gib(made.spread)} of {made.device.memory:.1f} GiB",
        "",
        *_table(made),
        "",
    ]
    for index, change in enumerate(made.changes):
        text += _change("to fit" if index == 0 else "or", change)
    if made.fits != "yes" and not made.changes:
        text += _entry("to fit", "nothing tried here is enough: no setting, no known GPU, no smaller size")
    after = made.changes[0].after if made.fits == "no" and made.changes else made
    text += _time(after, "with the first change: " if after is not made else "")
    if made.faster:
        text += _change("faster", made.faster)
    for note in made.notes:
        text += _entry("note", note)
    return text


def _table(made: TrainingPlan) -> list[str]:
    width = max(len(part.name) for part in made.parts)
    scale = max(made.total, made.device.memory * GIB)
    rows = [
        f"  {part.name:<{width}}  {part.dtype:<5} {_gib(part.bytes):>9}  {memory_bar(part.bytes / scale)}".rstrip()
        for part in made.parts
    ]
    left = made.device.memory * GIB - made.total
    name = "free" if left >= 0 else "lacking"
    return [
        *rows,
        f"  {'total':<{width}}  {'':<5} {_gib(made.total):>9}",
        f"  {name:<{width}}  {'':<5} {_gib(abs(left)):>9}",
    ]


def memory_bar(share: float) -> str:
    """Return a bar of `_BAR` cells for a share of the device (of the total where that is more), to an eighth of a
    cell."""
    eighths = max(1, round(share * _BAR * 8))
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _change(label: str, change: Change) -> list[str]:
    way = [f"--device {change.device}"] * bool(change.device) + [f"--set {item}" for item in change.sets]
    return [*_entry(label, f"{change.what}: {_gib(change.after.total)} ({change.cost})"), *_entry("", " ".join(way))]


def _time(made: TrainingPlan, prefix: str) -> list[str]:
    text = _entry("data", made.rows.source)
    unit, name = (1e9, "GFLOP") if made.work.total > 1e9 else (1e6, "MFLOP")
    recompute = f" + {made.work.recompute / unit:.1f} recomputed" if made.work.recompute else ""
    text += _entry("pass", _pass(made))
    text += _entry(
        "work",
        f"{made.work.forward / unit:.1f} forward + {made.work.backward / unit:.1f} backward{recompute} {name} "
        f"per token",
    )
    if made.speed is None or made.seconds is None:
        text += _entry("speed", f"unknown: {made.device.name} is not in the table of devices")
    else:
        pace = made.speed
        text += _entry(
            "speed",
            f"{prefix}{_round(pace.tokens_per_second)} tokens/s, within a factor of {pace.factor:g} "
            f"({pace.share:.0%} of it {pace.bound})",
        )
        what = "per million tokens" if made.per_million else f"for {_count(made.tokens)} tokens"
        price = (
            f"; ${_money(made.dollars)} at ${made.device.dollars:.2f} an hour ({made.device.priced})"
            if made.dollars is not None
            else ""
        )
        text += _entry("time", f"{_duration(made.seconds)} {what}{price}")
    return text + (_entry("download", f"{made.download / 1e9:.1f} GB") if made.download else [])


def _pass(made: TrainingPlan) -> str:
    """Return what a forward pass is, in words, and whether the configuration or the plan set it."""
    again = {"none": "nothing recomputed", "mlp": "MLPs recomputed", "all": "all layers recomputed"}
    said = made.choice.checkpointing
    table = f"; {_gib(made.host)} of per-layer table in main memory" if made.host else ""
    return f"{made.choice.tokens:,} tokens at a time, {again.get(str(said), f'{said} layers recomputed')}{table}"


def _entry(label: str, value: str) -> list[str]:
    """Return a labelled paragraph with a hanging indent."""
    return textwrap.wrap(
        value, _WIDTH, initial_indent=f"{label:<10}", subsequent_indent=" " * 10, break_on_hyphens=False
    )


def _gib(value: float) -> str:
    return f"{value / GIB:.1f} GiB" if value >= 0.095 * GIB else f"{max(1, round(value / (1 << 20)))} MiB"


def _round(value: float) -> str:
    """Return a number with two digits: more would claim a precision there isn't."""
    digits = max(0, len(str(int(value))) - 2)
    return f"{round(value, -digits):,.0f}"


def _count(value: float) -> str:
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if value >= unit:
            return f"{value / unit:.2g} {name}"
    return f"{value:,.0f}"


def _money(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86_400 else f"{seconds / 86_400:.1f} days"
