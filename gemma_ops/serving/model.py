"""The served model: conversations become prompts and tokens become replies, with the code of training and evaluation.

Both protocols, the canary and the terminal ask through here, so that there is one prompt whoever asks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, SchemaError

from gemma_ops.answer import Prompt
from gemma_ops.data import documents
from gemma_ops.data.control import control_tokens
from gemma_ops.data.normal import conversation
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError
from gemma_ops.serving.calls import CALL, FunctionCall
from gemma_ops.serving.engine import Engine, EngineRefusedError, Sampling, ShownMedia, TokenChance, Tokens
from gemma_ops.serving.showing import shown_turns
from gemma_ops.serving.token_reader import Piece, ReplyReader
from gemma_ops.targets.prompt_encoder import Encoder
from gemma_ops.targets.target import AskingMode
from gemma_ops.wire.ask import Ask, RefusalError


@dataclass
class Said:
    """A reply as it grows, from which the fronts count and close."""

    text: str = ""
    thought: str = ""
    calls: list[FunctionCall] = field(default_factory=list)
    end: str = ""
    """End of the reply: `stop`, `length` or `calls`; empty while it goes on, and where it broke off."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    tokens: int = 0
    thought_tokens: int = 0
    chances: list[TokenChance] = field(default_factory=list)
    """Logprobs of the answer's tokens, where they were asked for."""
    ids: list[int] | None = None
    """The tokens as the engine gave them, kept where a list is given."""


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as an engine takes it."""

    ids: list[int]
    shown: ShownMedia | None = None

    def __len__(self) -> int:
        return len(self.ids)


class ServedModel:
    """A tokenizer, its template and a mode of thinking before an engine.

    `folder` holds the tokenizer and the chat template; `usual` are the tokens of a reply where a request doesn't say.
    `thinks` is the mode that the model was trained and evaluated in; `both`: it was trained in both modes, so that a
    request may choose.
    """

    def __init__(self, folder: Path, engine: Engine, *, thinks: bool, both: bool = False, usual: int = 1024) -> None:
        self.engine, self.thinks, self.both, self.usual = engine, thinks, both, usual
        self._encoders = {
            mode: Encoder(folder, AskingMode(mode), engine.senses) for mode in ({True, False} if both else {thinks})
        }
        self.tokenizer = self._encoders[thinks].tokenizer

    def on(self, engine: Engine) -> ServedModel:
        """Return the same model in front of another engine."""
        other = copy.copy(self)
        other.engine = engine
        return other

    def prompt(self, ask: Ask) -> RenderedPrompt:
        """Return the prompt that asks for the reply. Raises RefusalError for what can't be asked as the model was
        trained."""
        if ask.raw is not None:
            return RenderedPrompt(self._continued(ask.raw))
        encode = self._encoder(ask)
        try:
            messages, tools, _ = conversation(
                [dict(message) for message in ask.messages], list(ask.tools) or None, asked=True
            )
            turns = shown_turns(messages, ask.shown, self.engine.senses)
            encoded = encode.encoded(Prompt(turns.messages, media=turns.found, tools=tools or ()), ask.schema)
            return RenderedPrompt(encoded.ids, turns.at(encoded))
        except RowError as error:
            raise RefusalError(error.reason, field="messages", code=error.code) from error
        except DataError as error:
            raise RefusalError(error.what, field="messages") from error

    def _continued(self, raw: str | tuple[int, ...]) -> list[int]:
        """Return the token ids of a text that is continued as it stands."""
        if not isinstance(raw, str):
            if max(raw) >= self.tokenizer.get_vocab_size():
                raise RefusalError(f"the vocabulary ends before the token {max(raw)}", field="prompt")
            return list(raw)
        spelled = next((token for token in control_tokens(self.tokenizer) if token in raw), None)
        if spelled:
            raise RefusalError(f"the prompt spells the control token {spelled}: send token ids", field="prompt")
        return documents.encode_document(self.tokenizer, raw).ids[:-1]  # without the document's end

    def begun(self, ask: Ask) -> list[int]:
        """Return the tokens that a reply begins with whatever the model would say: those of a call that must be made.
        Raises RefusalError where thoughts would have to come before."""
        if not ask.must_call:
            return []
        if self._asks_to_think(ask):
            raise RefusalError("a call can't be required of a model that thinks first", field="tool_choice")
        if ask.schema is not None:
            raise RefusalError("a reply that must be a call follows no schema", field="tool_choice")
        return [self.tokenizer.token_to_id(CALL)]

    def sampling(self, ask: Ask, prompt: RenderedPrompt) -> Sampling:
        """Return the sampling settings of the reply to a prompt. Raises RefusalError where the context has no room, or
        the schema is none."""
        room = self.engine.context - len(prompt) - bool(ask.must_call)
        if room < 1:
            raise RefusalError(
                f"the prompt has {len(prompt):,} tokens, and {self.engine.context:,} is all that prompt and reply "
                "may have",
                field="messages",
                code="context_length_exceeded",
            )
        if ask.schema is not None:
            _check_is_schema(json.dumps(ask.schema, sort_keys=True))
        thoughts = 0 if ask.raw is not None else self._encoder(ask).thoughts
        wanted = (ask.max_tokens or self.usual) + thoughts
        return Sampling(
            min(wanted, room), ask.temperature, ask.top_p, ask.top_k, ask.seed, ask.schema, ask.must_call, ask.logprobs
        )  # fmt: skip

    def _asks_to_think(self, ask: Ask) -> bool:
        return self.thinks if ask.thinking is None else ask.thinking

    def _encoder(self, ask: Ask) -> Encoder:
        """Return the encoder that makes prompts in the mode that is asked for. Raises RefusalError for one that the
        model wasn't trained in."""
        found = self._encoders.get(self._asks_to_think(ask))
        if found is None:
            mode = "on" if self.thinks else "off"
            raise RefusalError(
                f"this model was trained and evaluated with thinking {mode}, and is asked in no other way",
                field="thinking",
            )
        return found

    async def answer(
        self,
        prompt: RenderedPrompt,
        sampling: Sampling,
        said: Said,
        stop: tuple[str, ...] = (),
        begun: Sequence[int] = (),
    ) -> AsyncGenerator[Piece]:
        """Yield the pieces of a reply as they come; `said` grows with them. The reply goes on from `begun`.

        Raises RefusalError where the engine refuses, and where a reply that ended breaks its schema, or holds no call
        although it had to: llama.cpp drops a schema or a grammar that it can't read without a word.
        """
        reader = ReplyReader(self.tokenizer, prompt.ids, stop)
        list(reader.feed(begun))  # opens a call, which is no piece yet
        reader.tokens = 0
        shown = prompt.shown and prompt.shown.longer(len(begun))
        tokens = self.engine.complete([*prompt.ids, *begun], sampling, shown)
        try:
            async for found in tokens:
                said.prompt_tokens = found.prompt_tokens or said.prompt_tokens
                said.cached_tokens = found.cached_tokens or said.cached_tokens
                if said.ids is not None:
                    said.ids += found.ids
                for piece in reader.feed(found.ids):
                    yield self._added(piece, said)
                self._chances(found, reader, said)
                if found.end == "stop" or reader.stopped:
                    said.end = "stop"
                if reader.stopped and found.end is None:
                    break  # a stop sequence: the engine goes on, and is told to end
        except EngineRefusedError as error:
            raise RefusalError(error.what) from error
        finally:
            await tokens.aclose()  # type: ignore[attr-defined]
        said.end = said.end or "length"
        for piece in reader.close():
            yield self._added(piece, said)
        said.prompt_tokens = said.prompt_tokens or len(prompt)
        said.tokens, said.thought_tokens = reader.tokens, reader.thought_tokens
        if sampling.schema is not None and said.end == "stop":
            _check_schema(said.text, sampling.schema)
        if begun and not said.calls and said.end == "stop":
            raise RefusalError(
                "the reply is no call that can be read, although one was required", status=502, code="call"
            )
        if said.calls and said.end == "stop":
            said.end = "calls"

    def _added(self, piece: Piece, said: Said) -> Piece:
        if piece.call is not None:
            said.calls.append(piece.call)
        elif piece.kind == "thought":
            said.thought += piece.text
        else:
            said.text += piece.text
        return piece

    def _chances(self, found: Tokens, reader: ReplyReader, said: Said) -> None:
        if found.chances and not reader.inside and not reader.calling:
            said.chances += [one for one in found.chances if one.id not in reader.ends]


@lru_cache(maxsize=256)  # a client sends the same one again and again, and a check takes a millisecond
def _check_is_schema(text: str) -> None:
    try:
        Draft202012Validator.check_schema(json.loads(text))
    except SchemaError as error:
        raise RefusalError(f"the schema is no JSON schema: {error.message}", field="schema") from error


def _check_schema(text: str, schema: dict[str, Any]) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        raise RefusalError(
            "the reply is no JSON, although it was held to a schema", status=502, code="schema"
        ) from None
    problem = next(iter(Draft202012Validator(schema).iter_errors(value)), None)
    if problem is not None:
        raise RefusalError(f"the reply breaks the schema: {problem.message}", status=502, code="schema")
