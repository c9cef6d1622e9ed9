"""Records of what a target was asked and what it said, as lines of a file that grows while targets speak and survives a
kill at any moment.

A record's key covers who was asked, what, and how, so that a step which is started again asks only what has no record
yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeVar

from gemma_ops.answer import Answer
from gemma_ops.runs import digest
from gemma_ops.runs.keyed import KeyedFile
from gemma_ops.targets.structured import Structured

Record = TypeVar("Record", bound="AskedRecord")


@dataclass(frozen=True, kw_only=True)
class AskedRecord:
    """One line of the file: a reply with its key. The fields that have no description here are described in `Answer`.

    A file of an earlier version that knew fewer fields loads, since fields that came later have defaults.
    """

    LINE: ClassVar[tuple[str, ...]]
    """Names of the fields in the file, in their order."""

    key: str
    """Key of the question and of who was asked: 32 hex digits."""
    end: str
    prompt_tokens: int
    new_tokens: int
    thought_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    dollars: float | None = None
    model: str = ""
    response_id: str = ""
    tier: str = ""

    @classmethod
    def of_answer(cls, answer: Answer, **more: Any) -> Self:
        """Return the record of a reply; `more` are the fields that it doesn't say, and those that it says otherwise."""
        said = {name: getattr(answer, name) for name in cls.LINE if hasattr(answer, name)}
        return cls(**(said | more))

    def to_json(self) -> dict[str, Any]:
        """Return the line."""
        return {name: getattr(self, name) for name in self.LINE}


@dataclass(frozen=True, kw_only=True)
class StructuredRecord(AskedRecord):
    """A reply that was asked for in a given shape. Tokens and dollars are those of all `tries`."""

    problem: str = ""
    """Reason why no reply was valid; empty where one was."""
    tries: int = 1

    @classmethod
    def of_structured(cls, found: Structured, **more: Any) -> Self:
        """Return the record of a reply that was read into its shape, or wasn't."""
        return cls.of_answer(found.answer, problem=found.problem, tries=found.tries, **more)


def asked_key(*parts: Any) -> str:
    """Return the key of what was asked: 32 hex digits of the digest of its parts."""
    return digest.of_json(list(parts))[:32]


class AskedFile(KeyedFile[Record]):
    """File of the records, which grows as they come."""

    repeats_failures: ClassVar[bool] = True
    """Whether what a service failed to answer is asked again when the step is resumed."""

    def lasts(self, record: Record) -> bool:
        """True if a later attempt may rely on the record; one that failed may have to be asked again."""
        return not (self.repeats_failures and record.end == "error")

    def line(self, record: Record) -> dict[str, Any]:
        """Return the record in the order of its file."""
        return record.to_json()

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Return the places in `keys` that have no record, one a key."""
        return list({key: index for index, key in enumerate(keys) if key not in self.known}.values())

    def all_of(self, keys: Iterable[str]) -> list[Record]:
        """Return the records of `keys`, in their order."""
        return [self.known[key] for key in keys]


def in_parts(places: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    """Yield the places in parts of `size`, the last one shorter."""
    return (places[start : start + size] for start in range(0, len(places), max(1, size)))
