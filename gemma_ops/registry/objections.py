"""Objections to promoting a version: its verdict, its lineage, and everything in which the verdict falls short of the
policy, the present champion, or the looks that others took at the same models.

Each objection is a sentence. None of them is about bytes or about the ledger: those can't be overridden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemma_ops.config import GateConfig
from gemma_ops.config.policy import CHAMPION, PolicyTask, at_least_as_strict, same_question
from gemma_ops.registry.policies import PolicyInForce
from gemma_ops.verdicts import Look, TaskFacts, Verdict

_GATE = ("task", "metric", "target", "test", "versus", "margin")


@dataclass(frozen=True)
class Incumbent:
    """The version that the alias `champion` stands at now."""

    version: str
    manifest: str


def objections(
    verdict: Verdict | None,
    lacking: Sequence[str],
    policy: PolicyInForce | None,
    incumbent: Incumbent | None,
    looks: Mapping[str, Look],
) -> list[str]:
    """Return everything that speaks against a version with this verdict; `incumbent` is None where there is no
    champion, or where the version is it; `looks` are those that versions registered before it took, by version."""
    found = [f"its manifest lacks {', '.join(lacking)}"] if lacking else []
    if verdict is None:
        return ["it was never evaluated", *found]
    if verdict.verdict != "pass":
        found.append(f"its verdict is {verdict.verdict}")
    if policy is None:
        return [*found, "the registered model has no policy"]
    found += against_policy(verdict, policy, compared=incumbent is not None)
    if incumbent:
        found += _against_champion(verdict, incumbent)
    return found + _against_looks(verdict, looks)


def against_policy(verdict: Verdict, policy: PolicyInForce, *, compared: bool) -> list[str]:
    """Return in what a verdict asked less than the policy; gates against the champion count only where there is one to
    compare."""
    found = []
    wanted = policy.policy
    for name, task in wanted.tasks.items():
        found += _against_task(name, task, verdict.tasks.get(name))
    if verdict.confidence < wanted.confidence:
        found.append(f"its confidence is {verdict.confidence:g}, the policy's {wanted.confidence:g}")
    asked = [(GateConfig.model_construct(**{key: getattr(gate, key) for key in _GATE}), gate) for gate in verdict.gates]
    for gate in wanted.gates:
        if CHAMPION in (gate.target, gate.versus) and not compared:
            continue
        same = [(one, body) for one, body in asked if same_question(one, gate)]
        strict = [body for one, body in same if at_least_as_strict(one, gate)]
        if not same:
            found.append(f"a gate of the policy was not asked: {gate.words} on {gate.task}")
        elif not strict:
            found.append(
                f"its margin is {same[0][0].margin:g} where the policy's is {gate.margin:g}: {gate.words} on "
                f"{gate.task}"
            )
        elif all(body.outcome != "pass" for body in strict):
            found.append(f"a gate of the policy ended {strict[0].outcome}: {gate.words} on {gate.task}")
    return found


def _against_task(name: str, task: PolicyTask, asked: TaskFacts | None) -> list[str]:
    if asked is None:
        return [f"the policy's task {name} was not asked"]
    if asked.digest != task.digest:
        return [f"its task {name} has other content ({asked.digest[:12]}) than the policy's ({task.digest[:12]})"]
    if asked.rows < task.rows:
        return [f"it was asked {asked.rows:,} questions of {name}, and the policy wants {task.rows:,}"]
    return []


def _against_champion(verdict: Verdict, incumbent: Incumbent) -> list[str]:
    known = verdict.champion
    if known is None:
        return [f"it was compared with no champion, and version {incumbent.version} is the champion now"]
    if known.manifest != incumbent.manifest:
        return [f"it was compared with version {known.version}, and version {incumbent.version} is the champion now"]
    return []


def _against_looks(verdict: Verdict, looks: Mapping[str, Look]) -> list[str]:
    """Return looks at the same models that the verdict did not count, so that its level was too generous."""
    own = verdict.look
    if own is None:
        return []
    counted = {own.evidence, *(look.evidence for look in own.earlier)}
    missed = [
        version
        for version, look in looks.items()
        if set(look.subjects) & set(own.subjects) and look.evidence not in counted
    ]
    if not missed:
        return []
    who = f"version{'s' * (len(missed) > 1)} {', '.join(missed)}"
    return [f"{who} looked at the same models before, and its verdict spent the level as if nobody had"]
