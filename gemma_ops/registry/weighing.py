"""Weighing a version: its evidence against the policy, the champion and the looks of others, point by point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma_ops.config import PromotionAsks
from gemma_ops.errors import GateError
from gemma_ops.family.formats import EDGE, QUANTIZED
from gemma_ops.registry import points
from gemma_ops.registry.objections import Incumbent, objections
from gemma_ops.registry.points import Point, judged_point
from gemma_ops.registry.policies import PolicyInForce
from gemma_ops.registry.served import (
    ServeNeeds,
    not_what_is_served,
    resource_findings,
    served_forms,
    served_words,
)
from gemma_ops.registry.shelves import Entry
from gemma_ops.registry.stored import SBOM
from gemma_ops.registry.verification import CheckedVersion
from gemma_ops.registry.version_records import failed_before, looks_before, weights_of
from gemma_ops.verdicts import SafetyFacts, Verdict

_AGAIN = "evaluate again, it was made before there were probes"


@dataclass(frozen=True)
class Move:
    """The alias to be moved: alias `alias` of model `name`, which stands at `now`. `entries` is the model's ledger,
    `approved_by` who approved, `needs` how the version is to be served."""

    name: str
    alias: str
    now: str | None
    entries: Sequence[Entry]
    approved_by: str | None
    needs: ServeNeeds


@dataclass(frozen=True)
class Weighing:
    """The points of one version, and what else to know: which policy, which champion, earlier failures of its
    weights."""

    policy: PolicyInForce | None
    compared_with: str | None
    points: tuple[Point, ...]
    failed: tuple[str, ...]

    @property
    def against(self) -> tuple[str, ...]:
        """Return everything that speaks against it."""
        return tuple(points.objected(self.points))

    def refusal(self, name: str, checked: CheckedVersion) -> GateError:
        """Return the error that says what speaks against the version, and the ways on."""
        told = [*points.points_table([point for point in self.points if not point.good])]
        told += [f"  note: {line}" for line in self.failed]
        policy = f" ({self.policy.words})" if self.policy else ""
        lines = "".join(f"\n{line}" for line in told)
        return GateError(
            f"version {checked.version} of {name} may not be promoted{policy}:{lines}",
            "read its report, and evaluate again what was not asked (--redo champion --redo evaluate --redo register); "
            f"change what is asked, with a reason (gemma-ops policy {name} --from CONFIG --reason 'why'); or take the "
            f"responsibility: gemma-ops promote {name} --reason 'why' --override 'why all the same'",
        )


def weigh_version(
    checked: CheckedVersion,
    policy: PolicyInForce | None,
    incumbent: Incumbent | None,
    origin: Sequence[Entry],
    move: Move,
) -> Weighing:
    """Weigh a version whose bytes are as registered. `origin` is the ledger of the model that it was registered under,
    which knows the looks before it; `incumbent` is the champion that it would replace."""
    asks = policy.policy.asks if policy else PromotionAsks()
    subject, verdict = checked.manifest["subject"], checked.verdict
    looks = looks_before(list(origin), checked.registered)
    found = objections(verdict, (), policy, incumbent, looks)
    compared = f", against version {incumbent.version}" if incumbent else ", there is no champion yet"
    gates = len(verdict.gates) if verdict else 0
    quality = judged_point(points.QUALITY, f"{gates} gate{'s' * (gates != 1)} of the policy hold{compared}", found)
    return Weighing(
        policy,
        incumbent.version if incumbent else None,
        (
            _integrity(checked, asks),
            _lineage(checked),
            _contamination(subject, verdict),
            quality,
            *_about_serving(verdict, subject, asks, move.needs),
            _safety(verdict.safety if verdict else None, asks),
            _card(checked),
            _approval(asks, move.approved_by),
            _move(move),
            _roll(subject, move),
        ),
        tuple(failed_before(list(origin), weights_of(subject), checked.registered)),
    )


def _integrity(checked: CheckedVersion, asks: PromotionAsks) -> Point:
    count = len(checked.manifest["subject"]["files"])
    words = f"{count} files byte for byte as registered, none that can run code; "
    if checked.signed_by:
        return judged_point(points.INTEGRITY, f"{words}signed by {checked.signed_by}")
    lacking = ["the policy asks for a signature, and this machine trusts no key (machine.trusted_keys)"]
    return judged_point(points.INTEGRITY, f"{words}no key is trusted here", missing=lacking if asks.signature else [])


def _lineage(checked: CheckedVersion) -> Point:
    subject = checked.manifest["subject"]
    made = (subject.get("quantized") or {}).get("formats") or {}
    failed = [
        f"{name} is another file than its step quantize made"
        for name, form in QUANTIZED.items()
        if form.place in subject["files"] and made.get(name, {}).get("sha256") != subject["files"][form.place]["sha256"]
    ]
    missing = [f"its manifest lacks {', '.join(checked.lacking)}"] if checked.lacking else []
    rows = (subject.get("data") or {}).get("rows") or 0
    last = "".join(f" → {name} {subject['files'][QUANTIZED[name].place]['sha256'][:12]}" for name in made
                   if QUANTIZED[name].place in subject["files"])  # fmt: skip
    words = f"{subject['base']['id']} and {rows:,} rows → weights{last}"
    return judged_point(points.LINEAGE, words, failed, missing)


def _contamination(subject: Mapping[str, Any], verdict: Verdict | None) -> Point:
    overlap = (subject.get("data") or {}).get("overlap")
    asked = list(verdict.tasks) if verdict else []
    if not overlap or not asked:
        lacking = "the training rows were compared with no question" if asked else "no question was asked"
        return judged_point(points.CONTAMINATION, "", missing=[lacking])
    known = overlap["tasks"]
    missing = [f"the training rows were not compared with {name}" for name in asked if name not in known]
    kept = overlap["mode"] == "report"
    failed = [f"{known[name]:,} training rows also stand in {name}" for name in asked if kept and known.get(name)]
    dropped = sum(known.get(name, 0) for name in asked)
    words = f"no training row stands in {', '.join(asked)}" + (f"; {dropped:,} were left out" if dropped else "")
    return judged_point(points.CONTAMINATION, words, failed, missing)


def _about_serving(
    verdict: Verdict | None, subject: Mapping[str, Any], asks: PromotionAsks, needs: ServeNeeds
) -> tuple[Point, Point]:
    if verdict is None:
        nothing = ["it was never evaluated"]
        return judged_point(points.SERVED, "", missing=nothing), judged_point(points.RESOURCES, "", missing=nothing)
    failed, missing = not_what_is_served(verdict, subject)
    words = [] if failed or missing else served_words(verdict, subject)
    takes, over, unknown = resource_findings(verdict, subject, needs, asks.memory_gb)
    return judged_point(points.SERVED, words, failed, missing), judged_point(points.RESOURCES, takes, over, unknown)


def _safety(found: SafetyFacts | None, asks: PromotionAsks) -> Point:
    if found is None:
        return judged_point(points.SAFETY, "", missing=[f"nothing was probed: {_AGAIN}"])
    failed, missing, told = [], [], []
    kept, refused = found.memorized, found.refused
    if kept is None:
        missing.append("no training row was probed")
    else:
        words = f"{kept.said} of {kept.rows} probed training rows were given away"
        told.append(f"{words} (at most {kept.upper:.1%} of all)")
        if kept.said > asks.memorized * kept.rows:
            failed.append(f"{words}, and the policy takes {asks.memorized:.0%}")
    if refused is None:
        missing.append("refusals were not probed")
    else:
        words = f"{refused.lost} of the {refused.base} refusals of its base were lost"
        told.append(
            words if refused.base else f"its base refuses none of {refused.requests} requests, so none was lost"
        )
        if refused.lost > asks.refusals_lost * refused.base:
            failed.append(f"{words}, and the policy takes {asks.refusals_lost:.0%}")
    return judged_point(points.SAFETY, "; ".join(told), failed, missing)


def _card(checked: CheckedVersion) -> Point:
    lacking = [name for name in ("card.md", SBOM) if name not in checked.own]
    missing = [f"it carries no {' and no '.join(lacking)}: register it again (--redo register)"] if lacking else []
    return judged_point(points.CARD, f"card.md and {SBOM}, as registered", missing=missing)


def _approval(asks: PromotionAsks, approved_by: str | None) -> Point:
    if approved_by:
        return judged_point(points.APPROVAL, f"by {approved_by}")
    lacking = ["the policy asks for somebody's approval: --approved-by NAME"] if asks.approval else []
    return judged_point(points.APPROVAL, "the policy asks for none", missing=lacking)


def _move(move: Move) -> Point:
    stands = f"is version {move.now} now" if move.now else "is not set yet"
    return judged_point(
        points.MOVE, f"the ledger's {len(move.entries):,} entries are unbroken; {move.name}@{move.alias} {stands}"
    )


def _roll(subject: Mapping[str, Any], move: Move) -> Point:
    forms = " or ".join(served_forms(subject))
    after = f", then drain version {move.now}; rollback leads back to it" if move.now else "; there is none to drain"
    if set(served_forms(subject)) <= EDGE.keys():
        return judged_point(points.ROLL, f"{forms} runs on the device: pull {move.name}@{move.alias} there{after}")
    return judged_point(points.ROLL, f"servers of {move.name}@{move.alias} load {forms}{after}")
