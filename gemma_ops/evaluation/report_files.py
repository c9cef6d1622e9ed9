"""The quantized files in the report: their size, and what quantization changed in what they say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.evaluation.scatter import Dot, LogAxis, log_ticks, scatter
from gemma_ops.verdicts import FileFidelity, Gate, Verdict
from gemma_ops.words.figures import chip, colour, short_name
from gemma_ops.words.svg import ticks

_USUAL = "llama.cpp"
"""Engine of files whose verdict names none."""


def files_section(verdict: Verdict) -> Markup | str:
    """Return the card of the quantized targets; empty where nothing measured them."""
    files = [(name, facts.bytes, facts.fidelity) for name, facts in verdict.targets.items() if facts.fidelity]
    if not files:
        return ""
    measured = [found for *_, found in files]
    engines = sorted({facts.engine or _USUAL for facts in verdict.targets.values() if facts.fidelity})
    return REPORT.fill(
        "files.html", "card", rows=[_row(*file) for file in files], fitted=any(found.fit for found in measured),
        conversations=f"{max(found.conversations for found in measured):,}", engines=" or ".join(engines),
        plots=_pictures(verdict), frontier=any(found.frontier for found in measured),
        recommended=recommended_file(verdict),
    )  # fmt: skip


def recommended_file(verdict: Verdict) -> str:
    """Return which file the gates recommend, as a sentence: the smallest whose gates all hold."""
    gates = {name: [gate for gate in verdict.gates if gate.target == name] for name in _measured(verdict)}
    if not any(gates.values()):
        return "No gate decides on a file, so none is recommended."
    held = [name for name, each in gates.items() if each and all(gate.outcome == "pass" for gate in each)]
    if not held:
        return "No file holds its gates, so none is recommended."
    smallest = min(held, key=lambda name: verdict.targets[name].bytes or 0)
    others = [f"{short_name(name)} {_outcome(each)}" for name, each in gates.items() if name not in held]
    return f"Recommended: {short_name(smallest)}, the smallest file whose gates hold{_listed(others)}."


def _outcome(gates: Sequence[Gate]) -> str:
    if not gates:
        return "has no gate"
    return "failed one" if any(gate.outcome == "fail" for gate in gates) else "has one that is undecided"


def _listed(others: Sequence[str]) -> str:
    return f" ({', '.join(others)})" if others else ""


def _measured(verdict: Verdict) -> dict[str, tuple[int, FileFidelity]]:
    return {
        name: (facts.bytes, facts.fidelity)
        for name, facts in verdict.targets.items()
        if facts.fidelity is not None and facts.bytes
    }


def _pictures(verdict: Verdict) -> list[Markup]:
    """Draw the files' divergence and each task's scores against their bytes, where there are two files."""
    files = _measured(verdict)
    if len(files) < 2:
        return []
    line = next((found.frontier for _, found in files.values() if found.frontier), ())
    across = _axis([size for size, _ in files.values()], lambda value: f"{value / 1e6:,.3g} MB", "bytes")
    dots = [
        Dot(size, found.every_token_kl, *found.every_token_interval, colour(name), short_name(name),
            f"{name}: {found.every_token_kl:.3g} nats at {size / 1e6:,.1f} MB")
        for name, (size, found) in files.items()
    ]  # fmt: skip
    inside = [(size, kl) for size, kl in line if across.low <= size <= across.high]
    spans = [end for dot in dots for end in (dot.low, dot.high)]
    upright = _axis(spans, lambda value: f"{value:.1g}", "")
    drawn = [scatter(dots, across, "KL, every token", upright=upright, line=inside)]
    for name, task in verdict.tasks.items():
        scored = [
            (item, figure) for item in verdict.results_of(name)
            if item.target in files and (figure := item.metrics[task.primary].span) is not None
        ]  # fmt: skip
        if len(scored) > 1:
            points = [
                Dot(files[item.target][0], *figure, colour(item.target), short_name(item.target),
                    f"{item.target}: {figure[0]:.3f} at {files[item.target][0] / 1e6:,.1f} MB")
                for item, figure in scored
            ]  # fmt: skip
            drawn.append(scatter(points, across, f"{task.primary}, {name}"))
    return drawn


def _axis(values: Sequence[float], shown: Callable[[float], str], title: str) -> LogAxis:
    known = [value for value in values if value > 0]
    low, high = min(known) / 1.3, max(known) * 1.3
    marks = log_ticks(low, high)
    marks = marks if len(marks) > 2 else [mark for mark in ticks((low, high)) if mark > 0]
    return LogAxis(low, high, tuple((mark, shown(mark)) for mark in marks), title)


def _row(name: str, size: int | None, found: FileFidelity) -> list[object]:
    gain = "–"
    if found.ratio is not None and found.ratio_interval is not None:
        gain = f"{found.fit}: {found.ratio:.2f} [{found.ratio_interval[0]:.2f}, {found.ratio_interval[1]:.2f}]"
    return [
        chip(name),
        f"{size / 1e6:,.1f} MB" if size else "–",
        _nats(found.kl, found.kl_interval),
        _nats(found.every_token_kl, found.every_token_interval),
        "–" if found.general_kl is None else _nats(found.general_kl, found.general_interval or (0.0, 0.0)),
        f"{found.top1:.1%}",
        gain,
    ]


def _nats(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.2g} [{interval[0]:.2g}, {interval[1]:.2g}]"
