"""A reply read while it comes: its tokens become text, thoughts and function calls, as evaluation reads them whole.

The channel's tokens, the calls' and the stops are told by their ids, never by their spelling, so nothing that a model
writes out is taken for structure. Joined, the pieces of text are what `modeling.generate.read_reply` makes of the same
tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers.decoders import DecodeStream

from gemma_ops.data.control import CHANNEL, CHANNEL_END
from gemma_ops.modeling.generate import STOPS
from gemma_ops.modeling.thoughts import left_open
from gemma_ops.serving.calls import CALL, CALL_END, FunctionCall, read_call

_NAME = "thought"


@dataclass(frozen=True)
class Piece:
    """A part of a reply. A call has no text."""

    kind: Literal["text", "thought", "call"]
    text: str = ""
    call: FunctionCall | None = None


class _Words:
    """Text that grows, without the white space around it, `skip` at its beginning, and what follows a stop sequence."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), skip: str = "") -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stops, self._skip = tuple(stops), skip
        self._ids: list[int] = []
        self._decoded = 0
        self._held = ""
        self._begun = False
        self.stopped = False

    def add(self, token: int) -> str:
        """Return what may be shown now."""
        self._ids.append(token)
        new = self._stream.step(self._tokenizer, token) or ""
        self._decoded += len(new)
        self._held += new
        return self._release(last=False)

    def rest(self) -> str:
        """Return what is left when nothing follows: bytes of a character that was never finished among it."""
        if not self.stopped:
            self._held += self._tokenizer.decode(self._ids, skip_special_tokens=True)[self._decoded :]
        return self._release(last=True)

    def _release(self, *, last: bool) -> str:
        if not self._begun:
            self._held = self._held.lstrip()
            if self._skip and (self._held.startswith(self._skip) or last):
                self._held, self._skip = self._held.removeprefix(self._skip).lstrip(), ""
            elif self._skip and self._skip.startswith(self._held):
                return ""
            if not self._held:
                return ""
            self._begun = True
        ends = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            shown, self._held = self._held[: min(ends)].rstrip(), ""
            return shown
        kept = len(self._held.rstrip())
        if not last and self._stops:
            kept = min(kept, len(self._held) - max(_overlap(self._held, stop) for stop in self._stops))
        shown, self._held = self._held[:kept], self._held[kept:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of a text that could be the beginning of a stop sequence."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)


class ReplyReader:
    """Reader of one reply: `feed` it ids as they come, `close` it at the end. `stops` are texts that end it.

    `broken` says in words what was wrong with calls that could not be read; they appear as text.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        ids = {name: tokenizer.token_to_id(name) for name in (CHANNEL, CHANNEL_END, CALL, CALL_END)}
        self._opens, self._closes, self._calls, self._called = ids.values()
        self.ends = {tokenizer.token_to_id(name) for name in STOPS}
        self._text, self._thought = _Words(tokenizer, stops), _Words(tokenizer, skip=_NAME)
        self.inside = left_open(tokenizer, prompt)
        self._call: list[int] | None = None
        self.tokens = self.thought_tokens = 0
        self.stopped = False
        """Whether a stop token or sequence was read: what follows is ignored."""
        self.broken: list[str] = []

    @property
    def calling(self) -> bool:
        """True if it is inside a function call."""
        return self._call is not None

    def feed(self, ids: Sequence[int]) -> Iterator[Piece]:
        """Yield the pieces that these tokens complete."""
        for token in ids:
            if self.stopped:
                return
            if self.inside and token not in (self._opens, self._closes, *self.ends):
                self.thought_tokens += 1
            else:
                self.tokens += 1
            yield from self._take(token)

    def close(self) -> Iterator[Piece]:
        """Yield the pieces that were held back."""
        if self._call is not None:
            yield from self._finish_call()
        for kind, words in (("thought", self._thought), ("text", self._text)):
            if left := words.rest():
                yield Piece(kind, left)  # type: ignore[arg-type]

    def _take(self, token: int) -> Iterator[Piece]:
        if token in self.ends:
            self.stopped = True
        elif self._call is not None:
            if token == self._called:
                yield from self._finish_call()
            else:
                self._call.append(token)
        elif token in (self._opens, self._closes):
            self.inside = token == self._opens
        elif token == self._calls and not self.inside:
            self._call = []
        elif self.inside:
            if said := self._thought.add(token):
                yield Piece("thought", said)
        else:
            if said := self._text.add(token):
                yield Piece("text", said)
            self.stopped = self.stopped or self._text.stopped

    def _finish_call(self) -> Iterator[Piece]:
        text, self._call = self._tokenizer.decode(self._call or [], skip_special_tokens=False), None
        try:
            yield Piece("call", call=read_call(text))
        except ValueError as error:
            self.broken.append(str(error))
            yield Piece("text", text)
