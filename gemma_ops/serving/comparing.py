"""The comparison of the challenger with the version that serves, on the pairs that a shadow kept: the statistics of
evaluation on live traffic.

Live requests have no reference, so what can be gated is whether each ended well: an answer that wasn't cut or refused,
and held its schema. How often both said the same, and how long each took, is reported next to it. A question that came
often counts as one. Each look spends some of the level (`stats/look_levels.py`), so that waiting for luck buys nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gemma_ops.config import ServeConfig
from gemma_ops.config.evaluation import GateConfig
from gemma_ops.config.serve import ChallengerConfig
from gemma_ops.errors import DataError
from gemma_ops.gates import gate_decision
from gemma_ops.gates.gate_decision import Decision, GateEvidence
from gemma_ops.runs import digest
from gemma_ops.runs.durable import write_text
from gemma_ops.serving.shadow import PAIR_SCHEMA, pairs_file
from gemma_ops.stats import intervals
from gemma_ops.stats.intervals import Interval, Sample
from gemma_ops.stats.look_levels import look_level

_LEVEL = 0.05
MARGIN = 0.02
"""Share of requests that the challenger may answer worse than the version that serves."""


@dataclass(frozen=True)
class LiveComparison:
    """Findings of live pairs about two versions."""

    versions: tuple[str, str]
    """Numbers of the version that serves and of the challenger."""
    pairs: int
    decision: Decision
    """Decision whether the challenger ends as well, within the margin."""
    same: Interval
    """Share of the pairs whose answers are equal."""
    ended: tuple[float, float]
    """Share of answers that ended well, of each version."""
    seconds: tuple[float, float]
    """Median seconds of an answer, of each version."""
    tokens: tuple[float, float]
    """Median tokens of an answer, thoughts included, of each version."""
    looks: int

    def lines(self) -> list[str]:
        """Return the comparison as lines of text."""
        first, second = self.versions
        return [
            f"version {second} against version {first}, on {self.pairs:,} live requests (look {self.looks})",
            f"{self.decision.outcome}: {self.decision.words}",
            f"ended well: {self.ended[0]:.1%} and {self.ended[1]:.1%}",
            f"said the same: {self.same.value:.1%} ({self.same.low:.1%} to {self.same.high:.1%})",
            f"median answer: {self.seconds[0]:.2f} s and {self.seconds[1]:.2f} s, {self._tokens_told}",
        ]

    @property
    def _tokens_told(self) -> str:
        return f"{self.tokens[0]:g} and {self.tokens[1]:g} tokens"

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        decision = self.decision
        return {
            "versions": list(self.versions), "pairs": self.pairs, "outcome": decision.outcome, "words": decision.words,
            "margin": decision.gate.margin, "difference": decision.value, "bound": decision.bound,
            "n_needed": decision.n_needed,
            "same": {"value": self.same.value, "low": self.same.low, "high": self.same.high},
            "ended": list(self.ended), "seconds": list(self.seconds), "tokens": list(self.tokens), "looks": self.looks,
        }  # fmt: skip


def compare_model(asked: str, settings: ServeConfig) -> LiveComparison:
    """Compare the versions of a registered model (`NAME@ALIAS`, or its name) on what its server's shadow kept."""
    name = asked.partition("@")[0].partition("/")[0]
    return compare_live(pairs_file(name, settings.challenger or ChallengerConfig(shadow=True)))


def compare_live(path: Path, *, margin: float = MARGIN) -> LiveComparison:
    """Compare the two versions of the newest pair, on all their pairs. Raises DataError where there are none."""
    pairs = read_pairs(path)
    if not pairs:
        raise DataError(
            f"{path} holds no pairs", "serve with --set serve.challenger.shadow=true, and let some requests come"
        )
    versions = _versions(pairs[-1])
    pairs = [pair for pair in pairs if _versions(pair) == versions]
    first, second = ([pair[side] for pair in pairs] for side in ("first", "second"))
    good = [[float(_ended_well(one)) for one in side] for side in (first, second)]
    questions = [digest.of_json(pair["ask"]["messages"])[:16] for pair in pairs]
    clusters = questions if len(set(questions)) < len(questions) else None
    sample = Sample.of([b - a for a, b in zip(*good, strict=True)], clusters)
    number, level = _look(path, versions, len(pairs))
    gate = GateConfig(metric="ended_well", target="challenger", versus="champion", test="noninferior", margin=margin)
    (decision,) = gate_decision.decide_gates([gate], [GateEvidence(sample, True, sample.mean)], 1 - level)
    same = [float(a["text"] == b["text"] and a["calls"] == b["calls"]) for a, b in zip(first, second, strict=True)]
    return LiveComparison(
        versions=versions,
        pairs=len(pairs),
        decision=decision,
        same=intervals.mean_interval(Sample.of(same, clusters), 1 - _LEVEL),
        ended=(sum(good[0]) / len(pairs), sum(good[1]) / len(pairs)),
        seconds=(median(one["seconds"] for one in first), median(one["seconds"] for one in second)),
        tokens=(_tokens(first), _tokens(second)),
        looks=number,
    )


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Return all pairs of a file, the oldest first. A last line that was cut by a crash is left out; any other that
    can't be read raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}", "correct the path or its rights") from error
    found = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            pair = json.loads(line)
            if pair["schema"] != PAIR_SCHEMA:
                raise ValueError(pair["schema"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number} is no pair: {error}", "remove the line") from error
        found.append(pair)
    return found


def _versions(pair: dict[str, Any]) -> tuple[str, str]:
    return str(pair["first"]["version"]), str(pair["second"]["version"])


def _ended_well(answer: dict[str, Any]) -> bool:
    return not answer["failed"] and answer["end"] in ("stop", "calls")


def _tokens(answers: Sequence[dict[str, Any]]) -> float:
    return float(median(one["tokens"] + one["thought_tokens"] for one in answers))


def _look(path: Path, versions: tuple[str, str], pairs: int) -> tuple[int, float]:
    """Return the number of this look at two versions and the level it may spend, recorded before it is reported; the
    same pairs looked at again are the same look."""
    record = path.with_suffix(".looks.json")
    known: dict[str, list[list[float]]] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    looks = known.setdefault("/".join(versions), [])
    for number, (count, level) in enumerate(looks, 1):
        if count == pairs:
            return number, level
    level = look_level(_LEVEL, [spent for _, spent in looks])
    looks.append([pairs, level])
    write_text(record, json.dumps(known, indent=1) + "\n")
    return len(looks), level
