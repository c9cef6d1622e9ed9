"""One finished comparison: everything the judges said, as one JSON document, and as evidence for gates.

judges     each judge alone: win rates raw, at equal length and corrected, habits, canaries, calibration, relatives,
           cost
panel      the majority of all judges, and Krippendorff's alpha; present with two judges or more
standing   who may decide gates, and per judge why or why not
texts      how long both sides write and how they format
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import GateConfig
from gemma_ops.errors import ConfigError
from gemma_ops.gates.gate_decision import GateEvidence
from gemma_ops.judging.correction import Corrected, Correction
from gemma_ops.judging.judge_standing import Standing
from gemma_ops.runs.durable import write_json
from gemma_ops.stats.intervals import Sample

FILE = "judge.json"
SCHEMA = "gemma-ops/judged@1"
WIN_RATE = "judge.win_rate"
PASSED = "judge.pass_rate"
METRICS = (WIN_RATE, PASSED)
"""Metrics that a gate may ask of a judge."""


@dataclass(frozen=True)
class Basis:
    """The basis of a gate: outcomes per pair, and the rate corrected for the judge's errors."""

    sample: Sample
    correction: Correction


@dataclass(frozen=True)
class JudgedComparison:
    """One finished comparison. `body` is `judge.json`; `basis` holds what the judge that may gate measured, per side or
    of pairs."""

    body: dict[str, Any]
    standing: Standing
    basis: dict[str, Basis]

    def evidence(self, gate: GateConfig) -> GateEvidence | None:
        """Return what a gate on a judge's rate is decided on; None when no judge may gate, and `standing.reason` says
        why.

        A win rate counts from one half: `superior` with margin 0.05 asks for more than 55 %, `noninferior` with the
        same margin for more than 45 %. A pass rate is asked for with `at_least`. Raises ConfigError for a gate that
        asks about something else.
        """
        key = self.asked_by(gate)
        if key is None:
            raise ConfigError(
                f"a gate asks for {gate.metric} ({gate.test}) of "
                f"{gate.target}{f' against {gate.versus}' if gate.versus else ''}, and judges compared "
                f"{self.body['first']['name']} with {(self.body['second'] or {}).get('name')} {self.body['mode']}",
                "judge.win_rate needs mode pairwise and `superior` or `noninferior`; judge.pass_rate needs pointwise "
                "and `at_least`",
            )
        basis = self.basis.get(key)
        if basis is None:
            return None
        shift = 0.5 if key == "pairs" else 0.0
        return Corrected(basis.sample, key == "pairs", basis.correction.value - shift, None, basis.correction, shift)

    def asked_by(self, gate: GateConfig) -> str | None:
        """Return what of this comparison a gate asks for: `pairs`, or a side; None when it asks for something else."""
        first, second = self.body["first"]["name"], (self.body["second"] or {}).get("name")
        if gate.task not in (None, self.body["task"]):
            return None
        if gate.metric == WIN_RATE and self.body["mode"] == "pairwise" and gate.test in ("superior", "noninferior"):
            return "pairs" if (gate.target, gate.versus) == (first, second) else None
        if gate.metric == PASSED and self.body["mode"] == "pointwise" and gate.test == "at_least":
            return {first: "first", second: "second"}.get(gate.target)
        return None

    def summary(self) -> list[str]:
        """Return the comparison in a few plain lines for a terminal."""
        from gemma_ops.judging.judging_text import judging_lines

        return judging_lines(self.body)

    def write(self, out: Path) -> None:
        """Write `judge.json` into a folder, whole or not at all."""
        write_json(out / FILE, self.body)


def figures(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rates a reader looks at first, the panel's or the only judge's, by `<sides>/<metric>`."""
    entry = body["panel"] or body["judges"][0]
    found: dict[str, dict[str, Any] | None] = {}
    if body["mode"] == "pairwise":
        sides = f"{body['first']['name']}-{body['second']['name']}"
        found[f"{sides}/{WIN_RATE}"] = entry["win_rate"]
        found[f"{sides}/{WIN_RATE}_corrected"] = entry["corrected"].get("pairs")
    else:
        for side, facts in entry["sides"].items():
            found[f"{body[side]['name']}/{PASSED}"] = facts["pass_rate"]
            found[f"{body[side]['name']}/{PASSED}_corrected"] = entry["corrected"].get(side)
    return {name: figure for name, figure in found.items() if figure}


def evidence_for(gate: GateConfig, found: Sequence[JudgedComparison]) -> GateEvidence | str:
    """Return the evidence for a gate on a judge's rate among all comparisons, or in words why no judge may decide it:
    such a gate is `report_only`. Raises ConfigError for a gate that no comparison answers."""
    judged = next((one for one in found if one.asked_by(gate)), found[0] if found else None)
    if judged is None:
        raise ConfigError(f"a gate asks for {gate.metric}, and no judge is named", "name one in evaluate.judge.judges")
    return judged.evidence(gate) or judged.standing.reason
