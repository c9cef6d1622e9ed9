"""The quantized files in the report: their size, and what quantization changed in what they say."""

from __future__ import annotations

from markupsafe import Markup

from gemma_ops.evaluation.report_pages import REPORT
from gemma_ops.verdicts import FileFidelity, Verdict
from gemma_ops.words.figures import chip

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
    )  # fmt: skip


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
