"""Finished rows: what `prepare` reads, and next to it where every row came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gemma_ops.config import Privacy, ReleaseConfig
from gemma_ops.privacy.classes import answers_class
from gemma_ops.synth.candidates import RowCandidate

Row = dict[str, Any]


@dataclass(frozen=True)
class Maker:
    """The model that wrote (or judged) the rows. `facts` are what its manifest says of a local model, `terms` what a
    service asks."""

    name: str
    family: str
    identity: str
    facts: dict[str, Any]
    terms: dict[str, Any] | None = None
    learned: Privacy = "any"
    """Strictest class of the rows that it learned from."""
    release: ReleaseConfig = field(default_factory=ReleaseConfig)

    @property
    def answers(self) -> Privacy:
        """Return the class of what it writes: as `learned`, unless a person has released it."""
        return answers_class(self.learned, self.release)

    def to_json(self) -> Row:
        body = {"name": self.name, "family": self.family, "identity": self.identity, **self.facts}
        return body | {"learned": self.learned, **self.released()} | ({"terms": self.terms} if self.terms else {})

    def released(self) -> Row:
        """Return the release with its reason, where it lets the rows go further; empty otherwise."""
        return {} if self.answers == self.learned else {"release": self.release.model_dump(mode="json")}


def synthetic_row(candidate: RowCandidate, teacher: Maker, passed: list[str], grade: dict[str, Any] | None) -> Row:
    """Return one line of `rows.jsonl`, or of `preferences.jsonl` for a pair (in TRL's conversational form)."""
    draft, material = candidate.draft, candidate.item.material
    if candidate.pair:
        body: Row = {
            "prompt": draft.messages[:-1],
            "chosen": draft.messages[-1:],
            "rejected": [{"role": "assistant", "content": draft.rejected}],
            "reason": draft.reason,
        }
    else:
        body = {"messages": draft.messages} | ({"tools": list(draft.tools)} if draft.tools else {})
    return {
        "id": candidate.id,
        **body,
        "group": material.group or candidate.id,
        "privacy": material.privacy,
        "provenance": _provenance(candidate, teacher, passed, grade),
    }


def _provenance(candidate: RowCandidate, teacher: Maker, passed: list[str], grade: dict[str, Any] | None) -> Row:
    reply, draft = candidate.reply, candidate.draft
    found: Row = {"method": candidate.item.method, **_source(candidate)}
    if candidate.span is not None:
        found["evidence"] = {"quote": draft.quote, "span": list(candidate.span)}
    found |= {
        "teacher": {
            "name": teacher.name,
            "family": teacher.family,
            "identity": teacher.identity,
            "version": reply.model or teacher.facts.get("revision") or None,
            "terms": teacher.terms.get("terms") if teacher.terms else None,
            "rehearsal": bool(teacher.terms and teacher.terms.get("rehearsal")),
            "learned": teacher.learned,
            **teacher.released(),
        },
        "prompt": candidate.question.prompt,
        "request": reply.key,
        "response_id": reply.response_id or None,
        "tier": reply.tier or None,
        "store": teacher.terms.get("store") if teacher.terms else None,
        "dollars": None if reply.dollars is None else round(reply.dollars * candidate.share, 9),
        "filters": passed,
    }
    return found | ({"judge": grade} if grade else {})


def _source(candidate: RowCandidate) -> Row:
    material = candidate.item.material
    if material.section:
        document = material.section.document
        source = {
            "name": document.name,
            "sha256": document.sha256,
            "span": list(material.section.span),
            "heading": material.section.heading or None,
            "license": document.license,
        }
        return {"source": {key: value for key, value in source.items() if value is not None}}
    if material.tools:
        return {"tools": material.id}
    return {"seeds": [{"place": seed.place, "id": seed.id} for seed in material.seeds]}
