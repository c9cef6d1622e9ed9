"""What human labels say about a judge: `calibration.json`, written by `judge calibrate`, read by every later run.

It speaks for one judge asked in one way: the judge's identity and the digest of the wording must both match, or it
isn't used. It also keeps whose answers were labelled, by family: how a judge errs on Gemma against Gemini says little
about Qwen against Llama when the judge is a relative of one of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gemma_ops.errors import DataError
from gemma_ops.judging.correction import Share
from gemma_ops.runs import digest
from gemma_ops.runs.durable import write_json
from gemma_ops.stats.intervals import Interval

SCHEMA = "gemma-ops/judge-calibration@1"
PANEL = "panel"
KAPPA = 0.4
"""Lower bound of kappa below which a judge may report but not gate."""
ENOUGH = 100
"""Human labels below which a calibration says so."""
TWICE = 20
"""Items with a second person's label below which two people's kappa is not reported: it would be mostly chance."""


@dataclass(frozen=True)
class Errors:
    """The rate at which a judge accepts what people accept (sensitivity) or rejects what people reject
    (specificity)."""

    value: float
    low: float
    high: float
    n: int
    effective: float
    """Number of independent items that would be as certain."""

    def share(self) -> Share:
        return Share(self.value, self.effective, self.n)


@dataclass(frozen=True)
class Known:
    """One judge, or the panel, against people."""

    name: str
    identity: str
    labels: int
    """Number of labelled items with an outcome."""
    lost: int
    """Number of labelled items without an outcome: no valid verdict."""
    kappa: Interval | None
    agreement: Interval
    """Share of equal labels. It flatters: see `agreement.py`."""
    sensitivity: Errors | None
    specificity: Errors | None
    judge_rate: float
    human_rate: float
    details: dict[str, Any]
    """Position and length bias, test-retest, ties: as in `judge.json`."""
    answered: tuple[str, ...] = ()
    """Model that gave the verdicts, as the service names it."""

    @property
    def good(self) -> bool:
        """True if agreement beyond chance is shown to be at least fair, and errors are known on both sides."""
        return (
            self.kappa is not None
            and self.kappa.low >= KAPPA
            and self.sensitivity is not None
            and self.specificity is not None
        )


@dataclass(frozen=True)
class Calibration:
    """Everything one calibration found."""

    mode: str
    prompt: str
    """Digest of the wording and the rubric."""
    families: tuple[str, ...]
    """Families of the models that wrote the labelled answers: first side, second side."""
    labels: int
    confidence: float
    people: Interval | None
    """Kappa between two people on the same items, where a second one labelled."""
    judges: tuple[Known, ...]
    twice: int = 0
    """Number of items with a second person's label."""

    def of(self, name: str, identity: str, prompt: str, answered: Collection[str] = ()) -> Known | None:
        """Return what is known of this judge when asked this way; None when identity or wording differ, or another
        model answers for it than when it was calibrated."""
        if prompt != self.prompt:
            return None
        found = (known for known in self.judges if known.identity == identity and set(answered) <= set(known.answered))
        return next(found, None)

    def covers(self, families: tuple[str, ...]) -> bool:
        """True if the labelled answers were of these families, so that a relative's bias is part of the known
        errors."""
        return "unknown" not in families and families == self.families


def panel_identity(identities: list[str]) -> str:
    """Return the identity of a panel, which is the set of its judges."""
    return "panel:" + digest.of_json(sorted(identities))[:32]


def write_calibration(path: Path, found: Calibration) -> None:
    """Write the calibration, whole or not at all."""
    write_json(path, {"schema": SCHEMA} | asdict(found))


def read_calibration(path: Path) -> Calibration:
    """Read a calibration; raises DataError for anything that is none."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body.pop("schema", None) != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        return TypeAdapter(Calibration).validate_python(body)
    except (OSError, ValueError, ValidationError) as error:
        raise DataError(
            f"{path} can't be read as a calibration: {error}", "make one: gemma-ops judge calibrate --labels FILE …"
        ) from error
