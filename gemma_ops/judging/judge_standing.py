"""The right of a judge to gate, and if it has none, why not, in words.

A judge gates when it is what answered, it passed every canary, a calibration matches it and its wording, kappa's lower
bound is at least .4, and it is related to none of teacher, candidate and baseline. A related judge gates too when the
calibration was made on answers of the same families, so that its kinship is among the errors that are corrected for, or
when a second, unrelated judge that passed its canaries comes to the same side of one half. Whoever gates does so with
the corrected rate only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemma_ops.judging.calibration import KAPPA, Known
from gemma_ops.judging.judge_canaries import Result


@dataclass(frozen=True)
class JudgeCandidate:
    """A judge, or the panel, as far as its right to gate goes."""

    name: str
    canaries: Sequence[Result]
    known: Known | None
    covered: bool
    """Whether the calibration's answers were of the families at hand."""
    ties: Sequence[str]
    """Sentences about its relatives; none for an unrelated judge."""
    side: int
    """Side of one half on which its interval lies: 1 above, -1 below, 0 where it holds one half."""
    strange: str = ""
    """Reason why what answered is not the judge that was named; empty where it is."""


@dataclass(frozen=True)
class Standing:
    """The decision on who decides gates. `by` is None when nobody may."""

    by: str | None
    words: tuple[str, ...]
    """Reason per judge why it may or may not."""

    @property
    def reason(self) -> str:
        """Return why nobody may gate, in one sentence."""
        return "; ".join(self.words)


def standing(candidates: Sequence[JudgeCandidate]) -> Standing:
    """Return the first candidate that may gate, which decides; put the panel first."""
    told, by = [], None
    for candidate in candidates:
        may, why = _may(candidate, candidates)
        told.append(f"{candidate.name} {'may gate' if may else 'may report but not gate'}: {why}")
        by = by or (candidate.name if may else None)
    return Standing(by, tuple(told))


def _may(candidate: JudgeCandidate, others: Sequence[JudgeCandidate]) -> tuple[bool, str]:
    if candidate.strange:
        return False, candidate.strange
    failed = [result for result in candidate.canaries if not result.passed]
    if failed:
        kinds = ", ".join(dict.fromkeys(result.kind for result in failed))
        return False, f"it failed {len(failed)} of {len(candidate.canaries)} canaries ({kinds})"
    if not candidate.canaries:
        return False, "no canary could be made from these answers"
    known = candidate.known
    if known is None:
        return False, "no calibration against human labels matches this judge and this wording"
    if known.kappa is None or known.kappa.low < KAPPA:
        shown = "undefined" if known.kappa is None else f"{known.kappa.value:.2f}, at least {known.kappa.low:.2f}"
        return False, f"its kappa against people is {shown}, and {KAPPA} is needed"
    if known.sensitivity is None or known.specificity is None:
        return False, "people accepted all or rejected all labelled answers, so its errors are known on one side only"
    if not candidate.ties:
        return True, f"calibrated (kappa at least {known.kappa.low:.2f}) and unrelated"
    if candidate.covered:
        return True, f"related, but calibrated on answers of these families ({candidate.ties[0]})"
    second = next((other for other in others if _agrees(other, candidate)), None)
    if second:
        return True, f"related, but {second.name}, which is not, agrees ({candidate.ties[0]})"
    return False, candidate.ties[0]


def _agrees(other: JudgeCandidate, candidate: JudgeCandidate) -> bool:
    fit = bool(other.canaries) and all(result.passed for result in other.canaries)
    return other is not candidate and fit and not other.ties and other.side != 0 and other.side == candidate.side
