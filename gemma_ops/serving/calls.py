"""Function calls in Gemma 4's own spelling, read back: `call:NAME{key:value,…}` as the chat template writes them.

Texts stand between `<|"|>` marks and can't hold one, numbers, `true`, `false` and `null` are bare, lists and objects
nest, and keys are bare up to their colon. What is no call in that spelling is reported, never guessed at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CALL, CALL_END = "<|tool_call>", "<tool_call|>"
QUOTE = '<|"|>'
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class FunctionCall:
    """A call of a declared function."""

    name: str
    arguments: dict[str, Any]


def read_call(text: str) -> FunctionCall:
    """Parse the call that stands between `<|tool_call>` and `<tool_call|>`. Raises ValueError for anything else."""
    head, brace, rest = text.strip().partition("{")
    if not head.startswith("call:") or not brace or not head[5:].strip():
        raise ValueError("no call:NAME{…}")
    reader = _Reader("{" + rest)
    arguments = reader.value()
    reader.end()
    return FunctionCall(head[5:].strip(), arguments)


def call_grammar(names: Sequence[str]) -> str:
    """Return the grammar of what follows `<|tool_call>` where one of the names must be called, in llama.cpp's notation
    (GBNF). The arguments are the model's."""
    listed = " | ".join(json.dumps(f"call:{name}{{") for name in names)
    return f"root ::= ({listed}) rest\nrest ::= [^\\x00]*"


def lark_call_grammar(names: Sequence[str], quote: int, end: int) -> str:
    """Return the grammar of a required call for llguidance, in Lark's notation: there special tokens are named by their
    ids, the mark of texts and the end of a call among them."""
    listed = " | ".join(json.dumps(f"call:{name}{{") for name in names)
    return f"start: ({listed}) (REST | <[{quote}]>)* <[{end}]>\nREST: /[^\\x00]+/"


class _Reader:
    """Reader of one value from a text, character by character."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def value(self) -> Any:
        self._space()
        if self.text.startswith(QUOTE, self.at):
            return self._quoted()
        if self._take("{"):
            return self._object()
        if self._take("["):
            return self._list()
        return self._bare()

    def end(self) -> None:
        self._space()
        if self.at != len(self.text):
            raise ValueError(f"something follows the call: {self.text[self.at : self.at + 20]!r}")

    def _object(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._closes("}"):
            return found
        while True:
            self._space()
            if self.text.startswith(QUOTE, self.at):
                key = self._quoted()
                self._space()
                if not self._take(":"):
                    raise ValueError(f"no colon after the key {key!r}")
            else:
                colon = self.text.find(":", self.at)
                if colon < 0:
                    raise ValueError("a key without a value")
                key, self.at = self.text[self.at : colon].strip(), colon + 1
            found[key] = self.value()
            if self._closes("}"):
                return found
            self._comma()

    def _list(self) -> list[Any]:
        found: list[Any] = []
        if self._closes("]"):
            return found
        while True:
            found.append(self.value())
            if self._closes("]"):
                return found
            self._comma()

    def _quoted(self) -> str:
        start = self.at + len(QUOTE)
        end = self.text.find(QUOTE, start)
        if end < 0:
            raise ValueError("a text that is not closed")
        self.at = end + len(QUOTE)
        return self.text[start:end]

    def _bare(self) -> Any:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ",}]":
            self.at += 1
        word = self.text[start : self.at].strip()
        if word in _WORDS:
            return _WORDS[word]
        if _NUMBER.fullmatch(word):
            return json.loads(word)
        raise ValueError(f"{word!r} is no number, true, false or null, and stands outside quotes")

    def _closes(self, mark: str) -> bool:
        self._space()
        return self._take(mark)

    def _comma(self) -> None:
        if not self._take(","):
            raise ValueError(f"no comma before {self.text[self.at : self.at + 20]!r}")

    def _take(self, mark: str) -> bool:
        if self.text.startswith(mark, self.at):
            self.at += len(mark)
            return True
        return False

    def _space(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
