"""Calibration of judges against people: the judges are asked about labelled items, and their agreement and errors
measured.

Labels are a jsonl file: `{"item": "q17", "label": "first"}`, where `item` is the `id` of an answer, with `first`,
`second` or `tie` for pairs and `pass` or `fail` for answers alone (then `"side": "second"` for the other side's
answer). A second person's label goes into `again`; how far two people agree is the most that can be asked of a judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gemma_ops.config.evaluation import JudgeConfig
from gemma_ops.errors import DataError
from gemma_ops.judging import agreement, judge_asking, judge_figures, judge_outcome, panel
from gemma_ops.judging.alone import Alone
from gemma_ops.judging.calibration import ENOUGH, PANEL, Calibration, Errors, Known, panel_identity
from gemma_ops.judging.correction import Share
from gemma_ops.judging.judge_material import JudgedPair, Side
from gemma_ops.judging.judge_outcome import Tally
from gemma_ops.judging.judge_protocol import Mode, Protocol
from gemma_ops.judging.rubric import Rubric
from gemma_ops.stats import intervals
from gemma_ops.stats.intervals import Sample
from gemma_ops.targets.target import Target
from gemma_ops.tasks import task_rows as rowfiles
from gemma_ops.tasks.answering_model import answered_by

FILE = "calibration.json"
_LABELS: dict[Mode, dict[str, float]] = {
    "pairwise": {"first": 1.0, "tie": 0.5, "second": 0.0},
    "pointwise": {"pass": 1.0, "fail": 0.0},
}


@dataclass(frozen=True)
class Label:
    """What people said of one item. `side` is `pairs` for a pair, else whose answer it was."""

    item: str
    side: str
    label: str
    again: str | None


def read_labels(path: Path, mode: Mode, pairs: Sequence[JudgedPair]) -> list[Label]:
    """Read human labels. Raises DataError naming the first line that can't be used."""
    known = {pair.id for pair in pairs}
    allowed = ", ".join(_LABELS[mode])
    found: dict[tuple[str, str], Label] = {}
    for place, body in rowfiles.read_task_rows(path):
        item, label, again = str(body.get("item", body.get("id", ""))), body.get("label"), body.get("again")
        side = "pairs" if mode == "pairwise" else str(body.get("side", "first"))
        if item not in known:
            raise DataError(f"{place}: there is no item {item!r} among the answers", "label items that were answered")
        if label not in _LABELS[mode] or (again is not None and again not in _LABELS[mode]):
            raise DataError(f"{place}: the label is {label!r}, again {again!r}", f"use one of {allowed}")
        if side not in ("pairs", "first", "second"):
            raise DataError(f"{place}: the side is {side!r}", "use first or second")
        if (item, side) in found:
            raise DataError(f"{place}: {item!r} is labelled twice", "put a second person's label into `again`")
        found[item, side] = Label(item, side, str(label), None if again is None else str(again))
    if not found:
        raise DataError(f"{path} holds no labels", f"write one line per item, about {ENOUGH} of them")
    return list(found.values())


def calibrate(
    out: Path,
    pairs: Sequence[JudgedPair],
    labels: Sequence[Label],
    judges: Sequence[Target],
    rubric: Rubric,
    settings: JudgeConfig,
    *,
    first: Side,
    second: Side | None,
    batch: int = 16,
    confidence: float = 0.95,
    seed: int = 7,
    teachers: Sequence[str] = (),
) -> Calibration:
    """Ask the judges about the labelled items and compare. `judgements.jsonl` grows in `out`, as in a run."""
    labelled = {label.item for label in labels}
    chosen = [pair for pair in pairs if pair.id in labelled]
    # What needs no judge says nothing about one.
    sure = {
        (pair.id, side)
        for pair in chosen
        for side in ("pairs", *panel.SIDES)
        if judge_asking.decided(pair, side) is not None
    }
    labels = [label for label in labels if (label.item, label.side) not in sure]
    protocol = Protocol(settings.mode, rubric)
    heard = panel.hear(out, chosen, judges, protocol, settings, batch=batch)
    names = judge_figures.cluster_names(chosen)
    found = []
    for one in heard:
        details = _details(chosen, one.tally, one.sides, settings, confidence, seed)
        details["canaries"] = [asdict(result) for result in one.canaries]
        said = panel.outcomes(one.tally, one.sides, settings)
        known = _known(
            one.judge.name, one.judge.identity, labels, said, names, settings.mode, confidence, seed, details
        )
        found.append(replace(known, answered=tuple(answered_by(said.model for said in one.judgements))))
    if len(heard) > 1:
        tally, sides = panel.panel_majority(heard, settings)
        identity = panel_identity([one.judge.identity for one in heard])
        details = {"alpha": panel.alpha(heard, chosen, settings)}
        said = panel.outcomes(tally, sides, settings)
        known = _known(PANEL, identity, labels, said, names, settings.mode, confidence, seed, details)
        every = sorted({version for one in found for version in one.answered})
        found.insert(0, replace(known, answered=tuple(every)))
    twice = [label for label in labels if label.again is not None]
    people = agreement.kappa_interval(
        [label.label for label in twice], [str(label.again) for label in twice], [names[x.item] for x in twice],
        confidence, seed
    ) if twice else None  # fmt: skip
    families = panel.kinship(first, second, teachers)
    return Calibration(
        settings.mode, protocol.hash, families, len(labels), confidence, people, tuple(found), len(twice)
    )


def _known(
    name: str,
    identity: str,
    labels: Sequence[Label],
    said: dict[str, dict[str, float]],
    names: dict[str, str],
    mode: Mode,
    confidence: float,
    seed: int,
    details: dict[str, Any],
) -> Known:
    """Compare one judge with the labels of items it has an outcome for."""
    values = _LABELS[mode]
    scored = [(label, said[label.side][label.item]) for label in labels if label.item in said.get(label.side, {})]
    if not scored:
        raise DataError(f"{name} gave no valid verdict on any labelled item", "see judgements.jsonl for what it said")
    people = [label.label for label, _ in scored]
    judged = [_word(score, mode) for _, score in scored]
    groups = [names[label.item] for label, _ in scored]
    same = [float(one == other) for one, other in zip(people, judged, strict=True)]
    ties = [score for label, score in scored if values[label.label] == 0.5]
    return Known(
        name=name,
        identity=identity,
        labels=len(scored),
        lost=len(labels) - len(scored),
        kappa=agreement.kappa_interval(people, judged, groups, confidence, seed),
        agreement=intervals.mean_interval(Sample.of(same, groups), confidence),
        sensitivity=_errors([(label.item, score) for label, score in scored if values[label.label] == 1.0], names,
            confidence),
        specificity=_errors(
            [(label.item, 1 - score) for label, score in scored if values[label.label] == 0.0], names, confidence
        ),
        judge_rate=sum(score for _, score in scored) / len(scored),
        human_rate=sum(values[label.label] for label, _ in scored) / len(scored),
        details=judge_figures.tidy(details | {"ties": {"n": len(ties),
                    "judge_rate": sum(ties) / len(ties) if ties else None}}),
    )  # fmt: skip


def _errors(scored: Sequence[tuple[str, float]], names: dict[str, str], confidence: float) -> Errors | None:
    if not scored:
        return None
    sample = Sample.of([score for _, score in scored], [names[item] for item, _ in scored])
    share = Share.of(sample)
    low, high = intervals.wilson(share.value, share.n, sample.quantile((1 - confidence) / 2))
    return Errors(share.value, low, high, sample.n, share.n)


def _word(score: float, mode: Mode) -> str:
    """Return a judge's outcome as people would label it; an even split of repeats is no label of theirs."""
    if mode == "pairwise":
        return judge_outcome.label(score)
    return "pass" if score > 0.5 else "fail" if score < 0.5 else "split"


def _details(
    pairs: Sequence[JudgedPair],
    tally: Tally,
    sides: dict[str, Alone],
    settings: JudgeConfig,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """Return habits on these items: position, length, test-retest."""
    body = panel.measure_panel(pairs, tally, sides, settings, confidence, seed)
    if settings.mode == "pointwise":
        return {"retest": {name: side["retest"] for name, side in body["sides"].items()}, "invalid": body["invalid"]}
    kept = ("flips", "opposite", "first_slot", "longer_wins", "retest", "invalid")
    return {key: body[key] for key in kept}
