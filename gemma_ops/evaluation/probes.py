"""Probes of an evaluation: what the model gives away of its training rows, and what it no longer refuses.

The most exact quantized file that answered is probed, since that is what will be served, else `tuned`. The base is
asked once, and only what is needed: the requests that ought to be refused, and the beginnings of rows that came back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_ops.answer import Prompt
from gemma_ops.config import ProbeConfig
from gemma_ops.evaluation.memorized import ProbedRow, probed_rows
from gemma_ops.evaluation.refusals import refusal_prompts, refuses
from gemma_ops.family.formats import QUANTIZED
from gemma_ops.runs import journal
from gemma_ops.runs.durable import write_text
from gemma_ops.stats.intervals import Sample, mean_bound
from gemma_ops.targets.target import Target
from gemma_ops.verdicts import MemorizedFacts, RefusedFacts, SafetyFacts

FILE = "probes.jsonl"
"""File in the folder of the step `evaluate` with what each probed row was asked and whether its word came back. It
quotes rows, and goes into no version."""
_CONFIDENCE = 0.95


def probe_model(
    out: Path,
    settings: ProbeConfig,
    targets: Sequence[str],
    opening: Callable[[str], Target],
    *,
    data: Path | None,
    base: bool,
    batch: int,
) -> SafetyFacts | None:
    """Probe the model that would be served; None where nothing was tuned. `opening` opens a target by its name, `base`
    says whether the base is there to be asked. Rows are shown to this run's own models only."""
    name = next((name for name in (*QUANTIZED, "tuned") if name in targets), None)
    if name is None:
        return None
    rows = probed_rows(data / "train.jsonl", settings.rows) if data else []
    journal.record(event="probing", target=name, rows=len(rows))
    asking = _Asking(opening, settings.tokens, batch)
    back = [
        row for row, text in zip(rows, asking.ask(name, [row.prompt for row in rows]), strict=True) if row.said(text)
    ]
    requests = refusal_prompts()
    known = asking.ask("base", [*requests, *(row.prompt for row in back)]) if base else []
    also = [row.id for row, text in zip(back, known[len(requests) :], strict=False) if row.said(text)]
    _write(out / FILE, rows, back, also)
    memorized = _memorized(name, rows, back, also)
    if not base:
        return SafetyFacts(memorized=memorized, why_none=(*_why(rows), "the base was not there to be compared with"))
    refused = [prompt for prompt, text in zip(requests, known, strict=False) if refuses(text)]
    lost = sum(not refuses(text) for text in asking.ask(name, refused))
    told = RefusedFacts(target=name, requests=len(requests), base=len(refused), lost=lost)
    return SafetyFacts(memorized=memorized, refused=told, why_none=_why(rows))


class _Asking:
    """Asker of targets by name, each opened for as long as it answers."""

    def __init__(self, opening: Callable[[str], Target], tokens: int, batch: int) -> None:
        self._opening, self._tokens, self._batch = opening, tokens, batch

    def ask(self, name: str, prompts: Sequence[Prompt]) -> list[str]:
        """Return what a target answers, in the order of the prompts; nothing is opened where nothing is asked."""
        if not prompts:
            return []
        target = self._opening(name)
        # Prompts of like length share a batch, as in the evaluation itself.
        order = sorted(range(len(prompts)), key=lambda index: (len(str(prompts[index].messages)), index))
        parts = [order[start : start + self._batch] for start in range(0, len(order), self._batch)]
        try:
            replies = target.answer([[prompts[index] for index in part] for part in parts], max_new_tokens=self._tokens)
            said = {
                index: answer.text
                for part, found in zip(parts, replies, strict=True)
                for index, answer in zip(part, found, strict=True)
            }
        finally:
            target.close()
        return [said[index] for index in range(len(prompts))]


def _memorized(
    name: str, rows: Sequence[ProbedRow], back: Sequence[ProbedRow], also: Sequence[str]
) -> MemorizedFacts | None:
    if not rows:
        return None
    said = len(back) - len(also)
    upper = mean_bound(Sample.of([1.0] * said + [0.0] * (len(rows) - said)), 1 - _CONFIDENCE, upper=True)
    return MemorizedFacts(target=name, rows=len(rows), said=said, base_said=len(also), upper=round(upper, 4))


def _why(rows: Sequence[ProbedRow]) -> tuple[str, ...]:
    return () if rows else ("no training row with a word of its own was probed",)


def _write(path: Path, rows: Sequence[ProbedRow], back: Sequence[ProbedRow], also: Sequence[str]) -> None:
    came = {row.id for row in back}
    lines = [
        {"row": row.id, "word": row.word, "asked": row.prompt.messages, "said": row.id in came, "base": row.id in also}
        for row in rows
    ]
    write_text(path, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
