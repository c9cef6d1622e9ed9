"""The model that answered for a target: what a service names in its replies, and whether a gate may rely on it.

A service may let another model answer than the one that was asked, and Google does so with retired ones. What another
model said is no evidence about the one that is named, and neither are answers of two models in one column: both are
told, and such a target can't decide a gate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from gemma_ops.config import GateConfig
from gemma_ops.gemini.models import is_expected
from gemma_ops.targets.spec import parse_target
from gemma_ops.tasks.grades import Graded


def answered_by(versions: Iterable[str]) -> dict[str, int]:
    """Return how many answers each model gave, by the name that the service says; answers without one are left out."""
    return dict(sorted(Counter(version for version in versions if version).items()))


def doubt(target: str, versions: Iterable[str]) -> str:
    """Return why what answered is no evidence about a target, in words; empty where it is, and for models of this
    machine."""
    found = list(answered_by(versions))
    spec = parse_target(target) if ":" in target else None
    if spec is None or spec.local:
        return ""
    others = [version for version in found if spec.kind == "gemini" and not is_expected(spec.model, version)]
    if others:
        return f"{', '.join(others)} answered where {target} was asked"
    return f"{' and '.join(found)} answered in turn where {target} was asked" if len(found) > 1 else ""


def gate_doubt(gate: GateConfig, graded: Iterable[Graded], task: str) -> str:
    """Return why a gate can't be decided on what answered; empty where it can."""
    pages = {item.target: item for item in graded if item.task.name == task}
    for name in filter(None, (gate.target, gate.versus)):
        if name in pages and (why := doubt(name, (answer.model for answer in pages[name].answers))):
            return why
    return ""
