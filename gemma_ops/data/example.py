"""The Example: one conversation, with an id, its source, and who may see it.

Where answers were compared or judged, `messages` is the prompt they share, `chosen` the answer that is wanted and
`rejected` the one that is not: a pair has both, a judged answer one of them.

An id is the digest of what is trained on, so a row keeps its id wherever it is imported from. Privacy only tightens on
the way: a row can be stricter than its data set, never laxer. Files are JSON Lines, written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gemma_ops.config import Privacy, methods
from gemma_ops.config.methods import Kind
from gemma_ops.data.parts import text_of
from gemma_ops.errors import DataError
from gemma_ops.runs.durable import whole_file

_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode
_LINE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
SIDES = ("chosen", "rejected")
TURNS = ("messages", *SIDES)
"""Fields of a row that hold messages."""


class Function(BaseModel):
    """A call's function name, with its arguments as a mapping (never a JSON string)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    arguments: dict[str, Any]


class ToolCall(BaseModel):
    """One call by the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    type: Literal["function"] = "function"
    function: Function


class ToolResponse(BaseModel):
    """A structured response in Gemma's own form, next to the call it answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str
    response: Any


class TextPart(BaseModel):
    """A text between images and sounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["text"]
    text: str


class ImagePart(BaseModel):
    """An image: its file relative to the rows' file, named by the SHA-256 of its bytes, and its size in pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["image"]
    path: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)


class AudioPart(BaseModel):
    """A sound: its file, named like an image's, and its samples at 16 kHz."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["audio"]
    path: str
    samples: int = Field(gt=0)


class ChatMessage(BaseModel):
    """One turn: text, or parts where a user or a tool shows something. `reasoning` is the model's thought before its
    answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[Annotated[TextPart | ImagePart | AudioPart, Field(discriminator="type")]]
    tool_calls: list[ToolCall] | None = None
    tool_responses: list[ToolResponse] | None = None
    reasoning: str | None = None
    tool_call_id: str | None = None
    name: str | None = None
    weight: Literal[0] | None = None
    """Weight of the turn; 0 for a turn of the model that is not to be learned."""


class Example(BaseModel):
    """One row of `train.jsonl` or `valid.jsonl`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    id: str
    messages: list[ChatMessage]
    """Turns of the conversation; empty where the row is a text."""
    text: str | None = None
    chosen: list[ChatMessage] | None = None
    rejected: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    source: str
    privacy: Privacy
    group: str
    weight: float | None = Field(default=None, gt=0)

    def plain(self) -> dict[str, Any]:
        """Return the row as JSON, keys in the order of the contract, absent ones left out (a null argument stays)."""
        row = self.model_dump(mode="json", exclude=set(TURNS))
        found = {
            "id": row["id"],
            **{key: _plain(getattr(self, key)) for key in TURNS},
            "text": row["text"],
            "tools": row["tools"],
            "source": row["source"],
            "privacy": row["privacy"],
            "group": row["group"],
            "weight": row["weight"],
        }
        return {key: value for key, value in found.items() if value is not None}


def _plain(messages: list[ChatMessage] | None) -> list[dict[str, Any]] | None:
    if messages is None:
        return None
    plain = [message.model_dump(mode="json", exclude_unset=True) for message in messages]
    return [{key: value for key, value in message.items() if value is not None} for message in plain]


def kind(row: dict[str, Any]) -> Kind:
    """Return the kind of a row: a conversation, compared or judged answers, or a text."""
    if row.get("text") is not None:
        return "text"
    chosen, rejected = row.get("chosen") is not None, row.get("rejected") is not None
    if chosen or rejected:
        return "pair" if chosen and rejected else "judged"
    return "conversation"


_WORDS: dict[Kind, str] = {
    "conversation": "conversations",
    "pair": "pairs of answers",
    "judged": "judged answers",
    "text": "texts",
}
_FIX: dict[Kind, str] = {
    "pair": "give pairs (`prompt`, `chosen`, `rejected`), or train with sft (conversations) or kto (judged answers)",
    "judged": "give judged answers (`prompt`, `completion`, `label`) or pairs, or train with sft",
    "text": "give rows of raw text (`text`), or train conversations with sft",
    "conversation": "give conversations, train raw texts with pretrain, or train with dpo, orpo or reward (pairs) or "
    "kto (judged answers)",
}


def check_kind(row: dict[str, Any], method: str | None, where: str) -> None:
    """Raise DataError when a method can't learn from what a row holds; None stands for methods that learn from given
    answers."""
    check_kinds({kind(row): 1}, method, where)


def check_kinds(found: Mapping[Kind, int], method: str | None, where: str) -> None:
    """Raise DataError when a method can learn from none of these kinds of rows."""
    wanted = methods.rows_of_method(method or "")
    if found and not any(found.get(name) for name in wanted):
        who = f"train.method {method}" if method else "this training"
        raise DataError(
            f"{where} holds {_WORDS[max(found, key=found.__getitem__)]}, and {who} learns from "
            + " or ".join(_WORDS[name] for name in wanted),
            _FIX[wanted[0]],
        )


def conversation_rows(row: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the conversations in a row: one, or the prompt with each of its answers, the wanted one first; none in a
    text."""
    if kind(row) == "conversation":
        return [row["messages"]]
    return [row["messages"] + row[side] for side in SIDES if row.get(side) is not None]


def row_texts(row: dict[str, Any]) -> list[str]:
    """Return every text in a row: all turns and answers, or the whole of a text."""
    found = [row["text"]] if row.get("text") is not None else []
    return found + [text_of(turn.get("content")) for key in TURNS for turn in row.get(key) or ()]


def swapped(row: dict[str, Any]) -> dict[str, Any]:
    """Return the opposite row, in which wanted and unwanted answers are exchanged."""
    other = {key: value for key, value in row.items() if key not in SIDES}
    return other | {there: row[here] for here, there in zip(SIDES, SIDES[::-1], strict=True) if here in row}


def last_exchange(row: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Return the messages up to a row's last answer, and the text of that answer (of the wanted one, where answers were
    compared)."""
    messages = row["messages"]
    if kind(row) != "conversation":
        return messages, (row.get("chosen") or row["rejected"])[-1].get("content") or ""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last], messages[last].get("content") or ""


def content_id(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **answers: list[dict[str, Any]] | str | None
) -> str:
    """Return BLAKE2b-128 (hex) of the canonical JSON of what is trained on: sorted keys, no spaces, UTF-8.

    `answers` are `chosen` and `rejected`, or `text`, where the row has them.
    """
    body: dict[str, Any] = {"messages": messages, "tools": tools or []}
    body |= {side: answer for side, answer in answers.items() if answer is not None}
    return hashlib.blake2b(_CANONICAL(body).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def parse_example(text: str) -> Any:
    """Parse JSON strictly: NaN and infinities are refused. Raises ValueError."""
    return json.loads(text, parse_constant=_no_constant)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def line(row: dict[str, Any]) -> str:
    """Return one JSON line, without its line break; NaN and infinities, which aren't JSON, are refused."""
    return _LINE(row)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON Lines, whole or not at all; returns how many rows."""
    count = 0
    with whole_file(path) as file:
        for row in rows:
            file.write(line(row) + "\n")
            count += 1
    return count


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one of our files as plain JSON. Raises DataError with file and line on anything that isn't."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                try:
                    yield json.loads(text)
                except ValueError as error:
                    raise DataError(
                        f"{path}:{number}: not JSON: {error}", "make the step again: --redo prepare"
                    ) from None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", "run the step `prepare` first") from None


def read_examples(path: Path) -> Iterator[Example]:
    """Yield the rows of one of our files as checked examples. Raises DataError with file, line and key."""
    for number, row in enumerate(read_rows(path), 1):
        try:
            yield Example.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{path}:{number}: {where}: {first['msg']}", "make the step again: --redo prepare"
            ) from None
