"""The vocabulary that the methods share: what a request is made from, and what a reply becomes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import BaseModel, ConfigDict

from gemma_ops.config import Privacy
from gemma_ops.data import row_formats
from gemma_ops.data.chat import STRUCTURE
from gemma_ops.data.example import content_id
from gemma_ops.data.normal import conversation
from gemma_ops.data.parts import media_of
from gemma_ops.data.row_files import read_file
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError
from gemma_ops.privacy.classes import PRIVACY, stricter
from gemma_ops.synth.sections import DocumentSection
from gemma_ops.synth.sources import own_privacy, strictest_copies

Conversation = list[dict[str, Any]]
_CONTROL = re.compile("|".join(map(re.escape, STRUCTURE)))
_BUNDLE = 3
"""Seeds shown at once: enough to see what they share, too few to be mixed up."""


@dataclass(frozen=True)
class Seed:
    """A row to learn the manner from: what was asked, and the answer."""

    id: str
    place: str
    question: str
    answer: str
    privacy: Privacy


@dataclass(frozen=True)
class Material:
    """A section, a bundle of seeds, tools, or a row made earlier (`question` and `answer`); rows inherit its privacy
    and group.

    Everything that shares text shares a group: rows of one document, or of one bundle of seeds, stay on one side of the
    split.
    """

    id: str
    privacy: Privacy
    group: str
    """Name of the group; empty where rows have nothing in common: each is then a group of its own."""
    section: DocumentSection | None = None
    seeds: tuple[Seed, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    question: str = ""
    answer: str = ""

    @property
    def text(self) -> str:
        """Return the text that tells which language rows should be in."""
        if self.section:
            return self.section.text
        return " ".join([*(f"{seed.question} {seed.answer}" for seed in self.seeds), self.question, self.answer])

    @property
    def name(self) -> str:
        """Return where it is from, for messages."""
        if self.section:
            return f"{self.section.document.name}#{self.section.number}"
        return self.seeds[0].place if self.seeds else self.id


@dataclass(frozen=True)
class Item:
    """One request: `wanted` rows by a method from a material. `turn` counts the method's requests from the same
    material."""

    method: str
    material: Material
    wanted: int
    turn: int


def written_by(item: Item, answers: Privacy) -> Item:
    """Return the request as its rows are to be kept: as private as their material, and as what the teacher writes."""
    return replace(item, material=replace(item.material, privacy=stricter(item.material.privacy, answers)))


@dataclass(frozen=True)
class Draft:
    """One row as the teacher wrote it, the answer last. `rejected` is the worse answer of a pair, `reason` why it is
    worse."""

    messages: Conversation
    quote: str | None = None
    """Quotation that should prove the answer; None where there is no source to prove it with."""
    tools: tuple[dict[str, Any], ...] = ()
    rejected: str | None = None
    reason: str = ""
    problem: tuple[str, str] | None = None
    """Code and reason, where the reply could not be made into a row."""


class MaterialShape(BaseModel):
    """The shape of a reply. Unknown keys are let pass: a remark of the teacher costs nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True)


@dataclass(frozen=True)
class Method:
    """A way to write rows. `from_what` says what it needs: documents, seeds, tools, or rows made before."""

    name: str
    from_what: str
    shape: type[MaterialShape]
    ask: Callable[[Item], Conversation]
    drafts: Callable[[Item, Any], list[Draft]]


def fence(name: str, text: str) -> str:
    """Return text between marks that it can't close itself: their name holds a digest of the text. Control tokens of
    the chat template in it are taken apart, since a local model would read them as turns."""
    text = _CONTROL.sub(lambda token: f"< {token[0][1:]}", text)
    mark = f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
    return f"<{mark}>\n{text}\n</{mark}>"


def of_section(section: DocumentSection) -> Material:
    document = section.document
    return Material(f"{document.group[:16]}:{section.start}-{section.end}", document.privacy, document.group, section)


def of_seeds(seeds: list[Seed]) -> list[Material]:
    """Return seeds in bundles, alike in nothing but the order of their hashes; no seed stands in two bundles."""
    ordered = sorted(seeds, key=lambda seed: seed.id)
    bundles = [tuple(ordered[start : start + _BUNDLE]) for start in range(0, len(ordered), _BUNDLE)]
    return [Material(_group(bundle), _strictest(bundle), _group(bundle), seeds=bundle) for bundle in bundles]


def of_seed(seed: Seed, group: str) -> Material:
    return Material(seed.id, seed.privacy, group, seeds=(seed,), question=seed.question, answer=seed.answer)


def _group(bundle: tuple[Seed, ...]) -> str:
    return hashlib.sha256("".join(seed.id for seed in bundle).encode()).hexdigest()


def _strictest(bundle: tuple[Seed, ...]) -> Privacy:
    found: Privacy = PRIVACY[-1]
    for seed in bundle:
        found = stricter(found, seed.privacy)
    return found


def read_seeds(path: Path, privacy: Privacy) -> list[Seed]:
    """Read seeds of a jsonl file of `messages`, the last exchange of each. Raises DataError naming what can't be
    used."""
    found: list[Seed] = []
    for row in read_file(path):
        if row.value is None:
            raise DataError(f"{row.source} of the seeds can't be read: {row.reason}", "correct the line")
        try:
            messages, tools, _ = conversation(*row_formats.messages(row.value))
        except RowError as error:
            raise DataError(f"{row.source} of the seeds can't be used: {error.reason}", "correct the line") from None
        if media_of(messages):
            raise DataError(f"{row.source} of the seeds shows images or audio; a teacher reads text", "take it out")
        answers = [
            index for index, message in enumerate(messages) if message["role"] == "assistant" and message["content"]
        ]
        asked = (
            [message["content"] for message in messages[: answers[-1]] if message["role"] == "user"] if answers else []
        )
        if not asked:
            raise DataError(f"{row.source} of the seeds has no question with an answer in words", "correct the line")
        own = stricter(privacy, own_privacy(row.value.get("privacy"), row.source, privacy))
        found.append(Seed(content_id(messages, tools), row.source, asked[-1], messages[answers[-1]]["content"], own))
    if not found:
        raise DataError(f"{path} holds no seeds", 'a seed is a line {"messages": [...]}')
    return strictest_copies(found, lambda seed: (seed.question, seed.answer))  # which is all that a teacher is shown


def read_tools(path: Path, privacy: Privacy) -> Material:
    """Read the declared tools, each with parameters that are a JSON schema. Raises DataError."""
    talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    try:
        _, tools, _ = conversation(talk, json.loads(path.read_text(encoding="utf-8")))
        for tool in tools or []:
            Draft202012Validator.check_schema(tool["function"].get("parameters") or {})
    except (OSError, ValueError, RowError, SchemaError) as error:
        reason = error.message if isinstance(error, SchemaError) else error
        raise DataError(
            f"{path} holds no usable tool declarations: {reason}", "give a JSON list in OpenAI's form"
        ) from None
    if not tools:
        raise DataError(f"{path} declares no tools", "give a JSON list in OpenAI's form")
    digest = hashlib.sha256(json.dumps(tools, sort_keys=True).encode()).hexdigest()
    return Material(digest[:16], privacy, "", tools=tuple(tools))


@dataclass(frozen=True)
class Pool:
    """Everything there is to write from."""

    sections: tuple[DocumentSection, ...] = ()
    seeds: tuple[Seed, ...] = ()
    tools: Material | None = None
    unread: tuple[str, ...] = field(default=())
