"""The registry's requirements for an evaluation: the policy's gates come first, a run's own gates only add, and the
present champion answers the same questions.

The step `champion` has written it down (`PromotionStandard`). What can't be asked here (a gate on a task that this run
doesn't have, or on a service that it doesn't name) is left out and told; `promote` refuses the version for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_ops.config import EvaluateConfig, GateConfig
from gemma_ops.config.policy import (
    CHAMPION,
    CHAMPION_LOOKS,
    PromotionStandard,
    at_least_as_strict,
    same_question,
)
from gemma_ops.evaluation.answer_cost import Facts
from gemma_ops.evaluation.looks import read_looks
from gemma_ops.family.formats import DEFAULT_FORMATS
from gemma_ops.runs import journal
from gemma_ops.targets.incumbent import standard_in
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import Look


def read_standard(folder: Path | None, base: Path | None = None) -> PromotionStandard:
    """Read the standard in the folder of the step `champion`; an empty one without it. A champion that answers only on
    another base than `base` is left out, and told. Raises DataError for a damaged file."""
    if folder is None:
        return PromotionStandard(why_none="this recipe asks no registry")
    found = standard_in(folder)
    model = base / "model.json" if base else None
    files = json.loads(model.read_text(encoding="utf-8"))["files"] if model and model.is_file() else {}
    if found.champion is None or found.champion.fits(files):
        return found
    why = (
        f"version {found.champion.version}, the champion, carries nothing that answers without its own base, which "
        f"this run doesn't have; register versions with {DEFAULT_FORMATS[0]} or merged among register.artifacts"
    )
    journal.record(message=why)
    return found.model_copy(update={"champion": None, "why_none": why})


def registered_looks(folder: Path | None) -> list[Look]:
    """Return the looks that registered versions of the model took, as far as the registry knows them."""
    return read_looks(folder / CHAMPION_LOOKS) if folder else []


def hold_to_standard(
    settings: EvaluateConfig, standard: PromotionStandard, tasks: Sequence[Task], can: Callable[[str], bool]
) -> EvaluateConfig:
    """Return the settings under the standard: its gates that can be asked, then the run's own; the targets they ask
    about answer, and the confidence is the higher one. `can` says whether a target is there to be asked."""
    digests = {task.name: task.digest for task in tasks}
    only = tasks[0].name if len(tasks) == 1 else None
    own = [gate if gate.task else gate.model_copy(update={"task": only}) for gate in settings.gates]
    policy, champion = standard.policy, standard.champion
    if champion and champion.form != "merged" and any(task.shows for task in tasks):
        journal.record(
            message=f"version {champion.version}, the champion, carries no checkpoint that sees or hears, so the "
            "version can't be compared with it; register such versions with `merged` among register.artifacts"
        )
        champion = None
    if champion is None:
        own = [gate for gate in own if CHAMPION not in (gate.target, gate.versus)]
    targets = [name for name in settings.targets if name != CHAMPION or champion]
    if policy is None:
        return settings.model_copy(update={"gates": tuple(own), "targets": tuple(targets)})
    wanted: list[GateConfig] = []
    for gate in policy.gates:
        sides = [name for name in (gate.target, gate.versus) if name]
        if CHAMPION in sides and champion is None:
            continue
        lacking = [name for name in sides if name not in targets and not can(name)]
        known = gate.task in digests and digests[gate.task] == policy.tasks[gate.task].digest
        if lacking or not known:
            why = (
                f"{', '.join(lacking)} can't be asked here" if lacking else f"its questions of {gate.task} aren't here"
            )
            journal.record(
                message=f"a gate of the policy can't be asked, so the version can't be promoted: {gate.words}; {why}"
            )
            continue
        targets += [name for name in sides if name not in targets]
        stricter = [one for one in own if same_question(one, gate) and at_least_as_strict(one, gate)]
        wanted.append(next(iter(stricter), gate))
    extra = [gate for gate in own if not any(same_question(gate, held) for held in wanted)]
    return settings.model_copy(
        update={
            "gates": (*wanted, *extra),
            "targets": tuple(targets),
            "confidence": max(settings.confidence, policy.confidence),
        }
    )


def standard_facts(standard: PromotionStandard) -> Facts:
    """Return what the verdict says of it: under which policy it was made, and with which champion it was compared."""
    return {
        "standard": {
            "policy": standard.policy.model_dump(mode="json") if standard.policy else None,
            "champion": standard.champion.model_dump(mode="json") if standard.champion else None,
            "why_none": standard.why_none,
        }
    }
