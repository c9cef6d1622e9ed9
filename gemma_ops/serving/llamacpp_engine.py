"""llama.cpp as an engine: its server in a child process on a socket file, asked in token ids and started again when it
dies."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gemma_ops.errors import DataError, MachineError
from gemma_ops.family.formats import CacheName
from gemma_ops.family.media import Senses
from gemma_ops.modeling.llamacpp import GREEDY, SPACING, threads_for
from gemma_ops.modeling.llamacpp_server import ServerSettings, asked_server, tokenized
from gemma_ops.modeling.llamacpp_shown import ShownPrompt, find_projector, marked_prompt, shown_arrays
from gemma_ops.serving.calls import call_grammar
from gemma_ops.serving.child import GONE, ChildEngine
from gemma_ops.serving.engine import EngineGoneError, EngineRefusedError, Sampling, ShownMedia, TokenChance, Tokens
from gemma_ops.serving.event_stream import posted_events
from gemma_ops.serving.served_drafter import ServedDrafter

_CHILD = [sys.executable, "-P", "-m", "gemma_ops.modeling.llamacpp_server"]


class LlamaCpp(ChildEngine):
    """A GGUF file served by llama.cpp. `context` is per slot; `defaults` are the sampling settings of
    `generation_config.json`. With an mmproj file beside it, which needs the checkpoint's `tokenizer`, it sees and hears
    what that file says. A `drafter` says tokens ahead, and answers stay the model's own.

    Raises MachineError when `xllamacpp` is not installed.
    """

    def __init__(
        self,
        file: Path,
        *,
        slots: int,
        context: int,
        windowed: bool = False,
        cache: CacheName = "f16",
        threads: int | None = None,
        defaults: dict[str, Any] | None = None,
        tokenizer: Any = None,
        drafter: ServedDrafter | None = None,
    ) -> None:
        try:
            name = f"llama.cpp (xllamacpp {version('xllamacpp')})"
        except ImportError as error:
            raise MachineError(
                "serving GGUF files needs the package xllamacpp, which is not installed",
                "pip install 'gemma-ops[gguf]'",
            ) from error
        super().__init__(name, slots=slots, context=context)
        self._file, self._threads, self._windowed = file, threads_for(file, threads), windowed
        self._cache: CacheName = cache
        self._defaults = defaults or {}
        self._tokenizer = tokenizer
        self._projector = find_projector(file) if tokenizer else None
        self._drafter, self._drafted = (str(drafter.place), drafter.tokens) if drafter else ("", 0)
        if self._projector:
            self.senses = Senses.read(self._projector.parent)

    async def _spawn(self) -> None:
        settings = ServerSettings(
            str(self._file), self._socket, self.slots, self.context, self._threads, self._windowed,
            str(self._projector or ""), self.senses.image.budget if self.senses and self.senses.image else 0,
            self._drafter, self._drafted, self._cache,
        )  # fmt: skip
        await self._spawn_told(_CHILD, asdict(settings), f"llama.cpp can't load {self._file}")

    async def complete(
        self, prompt: list[int], sampling: Sampling, shown: ShownMedia | None = None
    ) -> AsyncIterator[Tokens]:
        body, ended = self._body(prompt, sampling), False
        if shown:
            body["prompt"] = await asyncio.to_thread(self._marked, prompt, shown)
        async with aclosing(posted_events("llama.cpp", self._socket, "/completion", body)) as events:
            async for event in events:
                read = int(event.get("tokens_evaluated") or 0)
                if shown and read not in (0, len(prompt)):
                    raise EngineRefusedError(
                        f"llama.cpp reads {read} tokens, and the prompt has {len(prompt)}", "show it as PNG or WAV"
                    )
                found = _tokens(event)
                ended = ended or found.end is not None
                yield found
        if not ended:
            raise EngineGoneError(f"{self.name} ended in the middle of a reply", GONE)

    def _marked(self, prompt: list[int], shown: ShownMedia) -> dict[str, Any]:
        """Return a prompt that shows something as llama.cpp takes it. Raises EngineRefusedError where it would be
        another prompt there."""
        assert self.senses
        try:
            arrays = shown_arrays(shown.parts, shown.data, self.senses)
            marker = str(asked_server(self._socket, "GET", "/props")["media_marker"])
            given = ShownPrompt(prompt, shown.types, arrays)
            return marked_prompt(given, self._tokenizer, marker, lambda text: tokenized(self._socket, text))
        except DataError as error:
            raise EngineRefusedError(error.what, error.fix) from error
        except (OSError, ValueError, KeyError) as error:
            raise EngineGoneError(f"{self.name} does not answer: {error}", GONE) from error

    def _body(self, prompt: list[int], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": prompt, "n_predict": sampling.max_tokens, "stream": True, "return_tokens": True,
            "cache_prompt": True,
        }  # fmt: skip
        temperature, top_k, top_p = sampling.drawn(self._defaults)
        if temperature <= 0:
            body |= GREEDY
        else:
            body |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            body["samplers"] = ["top_k", "top_p", "temperature"]
            body["seed"] = int.from_bytes(os.urandom(4)) >> 1 if sampling.seed is None else sampling.seed
        if sampling.schema is not None:
            body["json_schema"] = {**sampling.schema, **SPACING}
        if sampling.calls:
            body["grammar"] = call_grammar(sampling.calls)
        if sampling.logprobs is not None:
            body["n_probs"] = max(1, sampling.logprobs)
        return body


def _tokens(event: dict[str, Any]) -> Tokens:
    chances = tuple(_chance(one) for one in event.get("completion_probabilities") or ())
    if not event.get("stop"):
        return Tokens(tuple(event.get("tokens") or ()), chances)
    end = "stop" if event.get("stop_type") in ("eos", "word") else "length"
    return Tokens(
        tuple(event.get("tokens") or ()), chances, "stop" if end == "stop" else "length",
        int(event.get("tokens_evaluated") or 0), int((event.get("timings") or {}).get("cache_n") or 0),
    )  # fmt: skip


def _chance(one: dict[str, Any]) -> TokenChance:
    likeliest = tuple(_chance(other) for other in one.get("top_logprobs") or ())
    return TokenChance(int(one["id"]), str(one["token"]), float(one["logprob"]), likeliest)
