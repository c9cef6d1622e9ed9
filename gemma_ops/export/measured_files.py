"""What the files of a step say beside the bf16 file: on the rows of the domain, and on prompts of none; and what a fit
gained over the plain file of the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.errors import GateError
from gemma_ops.export.fidelity import Conversation, FileDivergence
from gemma_ops.export.file_fidelity import file_divergence
from gemma_ops.family.formats import REFERENCE, GgufName
from gemma_ops.runs import journal


@dataclass(frozen=True)
class MeasuredFile:
    """Divergence of one file from the bf16 file."""

    domain: FileDivergence
    general: FileDivergence
    plain: MeasuredFile | None = None
    """The plain file of the same bytes, where this one is fitted."""

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {"fidelity": self.domain.report(), "general": self.general.every_token().report()}

    def gain(self) -> dict[str, Any]:
        """Return what the fit gained, for `report.json`; empty for a plain file."""
        if self.plain is None:
            return {}
        answers, every = self.domain.gain_over(self.plain.domain)
        _, general = self.general.gain_over(self.plain.general)
        return {
            "plain": self.plain.domain.report(),
            "gain": {**answers.report(), "every_token": every.report(), "general": general.report()},
        }

    def metrics(self) -> dict[str, float]:
        """Return the step's metrics."""
        found = {**self.domain.metrics(), "general_kl": self.general.every_token().kl}
        if self.plain is not None:
            _, every = self.domain.gain_over(self.plain.domain)
            _, general = self.general.gain_over(self.plain.general)
            found |= {"kl_ratio": every.ratio, "kl_ratio_high": every.interval[1], "general_kl_ratio": general.ratio}
        return found


def measure_files(
    place: Callable[[str], Path],
    plain_place: Callable[[str], Path],
    formats: Sequence[GgufName],
    fitted: Sequence[GgufName],
    domain: Sequence[Conversation],
    general: Sequence[Conversation],
    threads: int,
) -> dict[GgufName, MeasuredFile]:
    """Measure the files of `formats`, and of those `fitted` the plain ones too.

    Raises GateError when a fitted file is shown to be further from bf16 than the plain one on general prompts.
    """

    def measure(file: Path, plain: MeasuredFile | None = None) -> MeasuredFile:
        found = file_divergence(file, place(REFERENCE), [*domain, *general], threads)
        return MeasuredFile(*found.split(len(domain)), plain)

    measured = {}
    for form in formats:
        plain = measure(plain_place(form)) if form in fitted else None
        measured[form] = measure(place(form), plain)
        journal.record(event="fidelity", format=form, **measured[form].metrics())
        check_general(form, measured[form])
    return measured


def check_general(form: str, measured: MeasuredFile) -> None:
    """Raise GateError where a fitted file is shown to be further from bf16 than the plain one on general prompts."""
    if measured.plain is None:
        return
    _, gain = measured.general.gain_over(measured.plain.general)
    if gain.interval[0] > 1:
        raise GateError(
            f"fitted to the training rows, {form} is further from bf16 than the plain file on general prompts: its "
            f"divergence there is {gain.ratio:.2f} times as large [{gain.interval[0]:.2f}, {gain.interval[1]:.2f}]",
            "set quantize.fit=rounding, train fewer quantize.fit_steps, or add general conversations to the rows",
        )
