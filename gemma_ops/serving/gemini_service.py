"""Gemini as a service behind the fronts of both protocols: its answers come as pieces, whole or streamed, like a
model's."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

from gemma_ops.answer import Answer
from gemma_ops.errors import BoundaryError, BudgetError, DataError, OpsError
from gemma_ops.gemini.request import Request
from gemma_ops.routing.gemini_lane import GeminiLane
from gemma_ops.serving.calls import FunctionCall
from gemma_ops.serving.model import Said
from gemma_ops.serving.serving_state import ServedFacts
from gemma_ops.serving.token_reader import Piece
from gemma_ops.wire.ask import Ask, RefusalError


class GeminiFailedError(RefusalError):
    """Gemini did not answer: another lane may."""


class GeminiService:
    """Gemini's answer to one request."""

    def __init__(self, lane: GeminiLane, request: Request) -> None:
        self._lane, self._request = lane, request
        self.facts = ServedFacts(source="gemini", model=lane.rules.model, engine="Gemini API")
        self.answer: Answer | None = None
        """Answer, once it is there."""
        self.sent = False
        """Whether the request was sent, as far as is known."""

    @asynccontextmanager
    async def replying(self, ask: Ask, said: Said) -> AsyncIterator[AsyncIterator[Piece]]:
        """Give the pieces of the reply, as `ModelService.replying` gives those of a model. Raises GeminiFailedError,
        and RefusalError for what Gemini blocks or refuses."""
        async with aclosing(self._pieces(said)) as pieces:
            yield pieces

    async def reply(self, ask: Ask) -> Said:
        """Return the whole reply."""
        said = Said()
        async for _ in self._pieces(said):
            pass
        return said

    async def replies(self, ask: Ask) -> tuple[list[Said], Said]:
        """Return the one reply that there is, and its usage."""
        said = await self.reply(ask)
        return [said], said

    async def _pieces(self, said: Said) -> AsyncGenerator[Piece]:
        try:
            async with aclosing(self._lane.answer(self._request)) as messages:
                self.sent = True
                async for message in messages:
                    if message.piece:
                        said.text += message.piece
                        yield Piece("text", message.piece)
                    elif message.error is not None:
                        raise message.error
                    elif message.answer is not None:
                        for piece in self._ended(message.answer, said):
                            yield piece
        except (BoundaryError, BudgetError) as error:  # of the door: nothing was sent
            self.sent = False
            raise GeminiFailedError(error.what.splitlines()[0], status=503, code=_code(error)) from error
        except DataError as error:
            raise RefusalError(error.what, field="messages") from error
        except OpsError as error:
            raise GeminiFailedError(error.what.splitlines()[0], status=503, code=_code(error)) from error

    def _ended(self, answer: Answer, said: Said) -> list[Piece]:
        """Return what is left to be told when the answer is there; `said` is closed with it."""
        self.answer = answer
        self.facts = replace(self.facts, model=answer.model or self.facts.model)
        said.prompt_tokens, said.cached_tokens = answer.prompt_tokens, answer.cached_tokens
        said.tokens, said.thought_tokens = answer.new_tokens, answer.thought_tokens
        if answer.end == "error":
            raise GeminiFailedError(f"Gemini did not answer: {answer.reason}", status=502, code="gemini")
        if answer.end == "blocked":
            raise RefusalError(f"Gemini blocks this: {answer.reason}", code="content_filter")
        text, calls = _said(answer.text, functions=any("function" in tool for tool in self._request.tools))
        pieces = [] if said.text or not text else [Piece("text", text)]
        said.text, said.end = text, "calls" if calls else answer.end
        for call in calls:
            said.calls.append(call)
            pieces.append(Piece("call", call=call))
        return pieces


def _said(text: str, *, functions: bool) -> tuple[str, list[FunctionCall]]:
    """Return text and calls of an answer; with calls it is JSON (see `gemini.reply`)."""
    if not (functions and text.startswith("{")):
        return text, []
    try:
        body = json.loads(text)
    except ValueError:
        return text, []
    if not isinstance(body, dict) or set(body) != {"content", "tool_calls"}:
        return text, []
    calls: list[Any] = [call["function"] for call in body["tool_calls"]]
    return str(body["content"]), [FunctionCall(call["name"], call["arguments"]) for call in calls]


def _code(error: OpsError) -> str:
    return {BoundaryError: "boundary", BudgetError: "budget"}.get(type(error), "gemini")
