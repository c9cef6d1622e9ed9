"""Lineage of models: a judge favours what comes from its own line, and doesn't know it.

Preference leakage (Li et al., arXiv 2502.01534): a judge favours students of a related teacher by up to 28.7 points on
Arena-Hard, and it is harder to see than a preference for itself. Gemma is built from the research behind Gemini, so the
two count as one line. A family that isn't known may be any family, so it counts as related too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

_LINES = ({"gemma", "gemini"}, {"mistral", "mixtral"})
UNKNOWN = "unknown"


def related(first: str, second: str) -> bool:
    """True if two families are of one line, or may be."""
    if not first or not second or UNKNOWN in (first, second) or first == second:
        return True
    return any({first, second} <= line for line in _LINES)


def ties(judge: str, family: str, others: Mapping[str, Sequence[str]]) -> list[str]:
    """Return sentences about every role (`candidate`, `baseline`, `teacher`) that holds a relative of the judge."""
    found = []
    for role, families in others.items():
        for other in dict.fromkeys(families):
            if not related(family, other):
                continue
            if UNKNOWN in (family, other) or not (family and other):
                side = f"{judge}'s own family" if family in ("", UNKNOWN) else f"the family of the {role}"
                found.append(f"{side} is not known, so {judge} may be related to the {role}")
            elif family == other:
                found.append(f"{judge} is of the family of the {role} ({other})")
            else:
                found.append(f"{judge} ({family}) and the {role} ({other}) are of one line")
    return found


def teachers(data: Path | None) -> tuple[str, ...]:
    """Return the families of the models that wrote training rows, as the step `prepare` recorded them; empty where none
    did.

    `data` is the artifact of that step. Rows written by hand, or by a model nobody named, leave no trace there.
    """
    if data is None or not (data / "report.json").is_file():
        return ()
    body = json.loads((data / "report.json").read_text(encoding="utf-8"))
    return tuple(dict.fromkeys(str(item["family"]) for item in body.get("teachers", ())))
