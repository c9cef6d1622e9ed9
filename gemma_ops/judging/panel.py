"""A comparison from beginning to end: canaries and pairs to every judge, outcomes, the panel, and who may gate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_ops.config.evaluation import JudgeConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.judging import (
    alone,
    answer_style,
    judge_asking,
    judge_canaries,
    judge_figures,
    judge_lineage,
    judge_outcome,
    judge_standing,
)
from gemma_ops.judging import judgements as record
from gemma_ops.judging.agreement import krippendorff
from gemma_ops.judging.alone import Alone, SideName
from gemma_ops.judging.calibration import PANEL, Calibration, Known, panel_identity
from gemma_ops.judging.correction import Correction, Share
from gemma_ops.judging.judge_material import JudgedPair, Side
from gemma_ops.judging.judge_outcome import Tally
from gemma_ops.judging.judge_protocol import Protocol
from gemma_ops.judging.judged import SCHEMA, Basis, JudgedComparison
from gemma_ops.judging.judgements import Judgement, JudgementFile
from gemma_ops.judging.rubric import Rubric
from gemma_ops.runs import digest
from gemma_ops.stats.intervals import Sample
from gemma_ops.targets.target import Target
from gemma_ops.tasks.answering_model import answered_by, doubt

SIDES: tuple[SideName, ...] = ("first", "second")


@dataclass(frozen=True)
class Heard:
    """One judge's verdicts and their outcomes."""

    judge: Target
    judgements: Sequence[Judgement]
    canaries: Sequence[judge_canaries.Result]
    tally: Tally
    sides: dict[str, Alone]


def judge_pairs(
    out: Path,
    pairs: Sequence[JudgedPair],
    judges: Sequence[Target],
    rubric: Rubric,
    settings: JudgeConfig,
    *,
    first: Side,
    second: Side | None,
    task: str = "",
    batch: int = 16,
    confidence: float = 0.95,
    seed: int = 7,
    teachers: Sequence[str] = (),
    calibration: Calibration | None = None,
) -> JudgedComparison:
    """Let every judge judge every pair, and return the comparison. `judgements.jsonl` grows in `out`; nothing that
    stands there is asked again. Judges stay open: whoever opened them closes them.

    Raises ConfigError and DataError before anything is asked, BoundaryError when a judge may not see one of the rows,
    and whatever a judge's service raises; what was said until then is kept.
    """
    pairs = _chosen(pairs, settings, judges, second)
    protocol = Protocol(settings.mode, rubric)
    heard = hear(out, pairs, judges, protocol, settings, batch=batch)
    roles = {"candidate": [first.family], "baseline": [second.family] if second else [], "teacher": list(teachers)}
    families = kinship(first, second, teachers)
    found: list[dict[str, Any]] = []
    rights: list[judge_standing.JudgeCandidate] = []
    bases: dict[str, dict[str, Basis]] = {}
    for one in heard:
        answered = answered_by(said.model for said in one.judgements)
        known = calibration.of(one.judge.name, one.judge.identity, protocol.hash, answered) if calibration else None
        body = measure_panel(pairs, one.tally, one.sides, settings, confidence, seed)
        strange = doubt(one.judge.name, answered)
        ties = judge_lineage.ties(one.judge.name, one.judge.family, roles)
        bases[one.judge.name] = _bases(pairs, one.tally, one.sides, settings, known)
        rights.append(_right(one.judge.name, one.canaries, known, calibration, families, ties, body, strange))
        head = {key: getattr(one.judge, key) for key in ("name", "identity", "family", "place")}
        found.append(
            head
            | body
            | _corrected(bases[one.judge.name], confidence)
            | {
                "canaries": [asdict(result) for result in one.canaries],
                "fit": bool(one.canaries) and all(result.passed for result in one.canaries),
                "related": ties,
                "answered": answered,
                "calibration": _shown(known),
                "usage": judge_figures.judge_usage(one.judgements),
            }
        )
    panel = None
    if len(heard) > 1:
        tally, sides = panel_majority(heard, settings)
        identity = panel_identity([one.judge.identity for one in heard])
        said = {name for entry in found for name in entry["answered"]}
        known = calibration.of(PANEL, identity, protocol.hash, said) if calibration else None
        panel = {"identity": identity, "alpha": alpha(heard, pairs, settings)}
        panel |= measure_panel(pairs, tally, sides, settings, confidence, seed)
        bases[PANEL] = _bases(pairs, tally, sides, settings, known)
        panel |= _corrected(bases[PANEL], confidence) | {"calibration": _shown(known)}
        results = [result for one in heard for result in one.canaries]
        ties = [sentence for right in rights for sentence in right.ties]
        strange = next((right.strange for right in rights if right.strange), "")
        rights.insert(0, _right(PANEL, results, known, calibration, families, ties, panel, strange))
    decided = judge_standing.standing(rights)
    body = {
        "schema": SCHEMA,
        "mode": settings.mode,
        "task": task,
        "first": asdict(first),
        "second": asdict(second) if second else None,
        "teachers": list(teachers),
        "pairs": len(pairs),
        "clusters": len(set(judge_figures.cluster_names(pairs).values())),
        "decided": sum(judge_asking.decided(pair) is not None for pair in pairs),
        "repeats": settings.repeats,
        "confidence": confidence,
        "seed": seed,
        "rubric": digest.of_json(rubric.text)[:32],
        "criteria": [asdict(criterion) for criterion in rubric.criteria],
        "scale": [rubric.low, rubric.high],
        "prompt": protocol.hash,
        "texts": answer_style.describe_style(pairs),
        "judges": found,
        "panel": panel,
        "standing": {"by": decided.by, "words": list(decided.words)},
    }
    return JudgedComparison(judge_figures.tidy(body), decided, bases.get(decided.by or "", {}))


def hear(
    out: Path,
    pairs: Sequence[JudgedPair],
    judges: Sequence[Target],
    protocol: Protocol,
    settings: JudgeConfig,
    *,
    batch: int,
) -> list[Heard]:
    """Ask every judge everything, and count what each said."""
    asked = [
        *judge_canaries.canary_questions(pairs, settings.mode),
        *judge_asking.judge_questions(pairs, settings.mode, settings.repeats),
    ]
    out.mkdir(parents=True, exist_ok=True)
    file = JudgementFile(out / record.FILE)
    found = []
    for judge in judges:
        said = judge_asking.collect_judgements(
            judge, asked, protocol, file, max_new_tokens=settings.max_new_tokens, batch=batch
        )
        results = judge_canaries.results({item.place: item.said for item in said}, settings.mode)
        if settings.mode == "pairwise":
            tally, sides = judge_outcome.pairwise_outcomes(pairs, said, settings.repeats), dict[str, Alone]()
        else:
            names = SIDES if pairs[0].second is not None else SIDES[:1]
            sides = {n: alone.pointwise_outcomes(pairs, said, n, protocol.rubric, settings.repeats) for n in names}
            tally = Tally()
        found.append(Heard(judge, said, results, tally, sides))
    file.finish(item.key for one in found for item in one.judgements)
    return found


def kinship(first: Side, second: Side | None, teachers: Sequence[str]) -> tuple[str, ...]:
    """Return the families that a calibration must have been made on to cover a relative's bias."""
    return (first.family, second.family if second else "none", *sorted(set(teachers)))


def alpha(heard: Sequence[Heard], pairs: Sequence[JudgedPair], settings: JudgeConfig) -> dict[str, float | None]:
    """Return Krippendorff's alpha of the panel: of winners as names and as ranks, or of scores."""
    if settings.mode == "pairwise":
        columns = [[one.tally.scores.get(pair.id, np.nan) for pair in pairs] for one in heard]
        ratings = np.array([[np.nan if np.isnan(x) else np.sign(x - 0.5) for x in column] for column in columns])
        return {"nominal": krippendorff(ratings, "nominal"), "ordinal": krippendorff(ratings, "ordinal")}
    scores = [[side.scores.get(pair.id, np.nan) for side in one.sides.values() for pair in pairs] for one in heard]
    return {"interval": krippendorff(np.array(scores), "interval")}


def _chosen(
    pairs: Sequence[JudgedPair], settings: JudgeConfig, judges: Sequence[Target], second: Side | None
) -> list[JudgedPair]:
    """Return the pairs to judge: the first by hash of their id. Raises for what can't be judged."""
    if not judges:
        raise ConfigError("no judge is named", "name at least one: --judge gemini:gemini-3.8-flash@low")
    if settings.mode == "pairwise" and (second is None or any(pair.second is None for pair in pairs)):
        raise ConfigError("pairwise judging needs the answers of two sides", "give --second, or use mode pointwise")
    if not pairs:
        raise DataError("there is nothing to judge: no row has an answer of each side", "check the two sets of answers")
    ordered = sorted(pairs, key=lambda pair: hashlib.sha256(pair.id.encode()).hexdigest())[: settings.rows]
    kept = {pair.id for pair in ordered}
    return [pair for pair in pairs if pair.id in kept]


def measure_panel(
    pairs: Sequence[JudgedPair],
    tally: Tally,
    sides: dict[str, Alone],
    settings: JudgeConfig,
    confidence: float,
    seed: int,
) -> judge_figures.Facts:
    if settings.mode == "pairwise":
        return judge_figures.pairwise_figures(pairs, tally, confidence, seed)
    return judge_figures.pointwise_figures(pairs, sides, confidence, seed)


def panel_majority(heard: Sequence[Heard], settings: JudgeConfig) -> tuple[Tally, dict[str, Alone]]:
    """Return the panel as one judge: the majority's winner per pair, or the mean of scores and the majority's
    verdict."""
    if settings.mode == "pairwise":
        return Tally(scores=judge_outcome.judge_majority([one.tally for one in heard])), {}
    found: dict[str, Alone] = {}
    for name in heard[0].sides:
        items = dict.fromkeys(item for one in heard for item in one.sides[name].scores)
        side = found[name] = Alone()
        for item in items:
            scores = [one.sides[name].scores[item] for one in heard if item in one.sides[name].scores]
            passes = [one.sides[name].passes[item] for one in heard if item in one.sides[name].passes]
            side.scores[item] = sum(scores) / len(scores)
            share = sum(passes) / len(passes)
            side.passes[item] = 1.0 if share > 0.5 else 0.0 if share < 0.5 else 0.5
    return Tally(), found


def outcomes(tally: Tally, sides: dict[str, Alone], settings: JudgeConfig) -> dict[str, dict[str, float]]:
    """Return what rates are made of: outcomes of pairs, or passes per side."""
    return {"pairs": tally.scores} if settings.mode == "pairwise" else {n: side.passes for n, side in sides.items()}


def _bases(
    pairs: Sequence[JudgedPair], tally: Tally, sides: dict[str, Alone], settings: JudgeConfig, known: Known | None
) -> dict[str, Basis]:
    """Return outcomes with their correction, where the judge's errors are known and it is better than chance."""
    if known is None or known.sensitivity is None or known.specificity is None:
        return {}
    names = judge_figures.cluster_names(pairs)
    right, wrong = known.sensitivity.value, 1 - known.specificity.value
    if right <= wrong:
        return {}
    found = {}
    for key, scores in outcomes(tally, sides, settings).items():
        sure = {pair.id: judge_asking.decided(pair, key) for pair in pairs}
        # What no judge was asked about holds no judge's error: it enters as what the correction turns into itself.
        values = [
            score if (given := sure[item]) is None else wrong + given * (right - wrong)
            for item, score in scores.items()
        ]
        if values:
            sample = Sample.of(values, [names[item] for item in scores])
            found[key] = Basis(
                sample, Correction(Share.of(sample), known.sensitivity.share(), known.specificity.share())
            )
    return found


def _corrected(bases: dict[str, Basis], confidence: float) -> dict[str, Any]:
    return {
        "corrected": {
            key: asdict(basis.correction.interval(confidence, basis.sample.n, basis.sample.groups))
            for key, basis in bases.items()
        }
    }


def _right(
    name: str,
    results: Sequence[judge_canaries.Result],
    known: Known | None,
    calibration: Calibration | None,
    families: tuple[str, ...],
    ties: Sequence[str],
    body: judge_figures.Facts,
    strange: str,
) -> judge_standing.JudgeCandidate:
    covered = calibration is not None and calibration.covers(families)
    rate = body.get("win_rate")
    side = 0 if rate is None else 1 if rate["low"] > 0.5 else -1 if rate["high"] < 0.5 else 0
    return judge_standing.JudgeCandidate(name, results, known, covered, ties, side, strange)


def _shown(known: Known | None) -> dict[str, Any] | None:
    return None if known is None else asdict(known)
