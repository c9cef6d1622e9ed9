"""transformers as an engine: a checkpoint, or a base with what was trained on it, in a child process of its own.

It is the reference: the model is loaded and asked by the code of evaluation. It is slow, and holds replies to no
schema.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gemma_ops.family.media import Senses
from gemma_ops.modeling.decoding import Drawing
from gemma_ops.modeling.transformers_server import TransformersSettings
from gemma_ops.serving.child import GONE, ChildEngine
from gemma_ops.serving.engine import EngineGoneError, EngineRefusedError, Sampling, ShownMedia, TokenChance, Tokens

_SEEDS = 1 << 63
"""Bound of the seeds that torch takes; others are folded."""
_CHILD = [sys.executable, "-P", "-m", "gemma_ops.modeling.transformers_server"]


class TransformersEngine(ChildEngine):
    """Engine of the checkpoint in `folder`, with the adapter or the tensors in `changed` put on it.

    `device` is `auto`, `cpu` or `cuda`; `defaults` are the sampling settings of `generation_config.json`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        slots: int,
        context: int,
        changed: Path | None = None,
        threads: int | None = None,
        device: str = "auto",
        defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"transformers {version('transformers')}", slots=slots, context=context)
        self._model, self._changed, self._threads, self._device = folder, changed, threads, device
        self._defaults = defaults or {}
        self.senses = Senses.read(folder)

    async def _spawn(self) -> None:
        settings = TransformersSettings(
            str(self._model), str(self._changed) if self._changed else None, self._socket, self.slots, self.context,
            self._threads, self._device, bool(self.senses and self.senses.kinds),
        )  # fmt: skip
        what = f"{self._changed} on {self._model}" if self._changed else str(self._model)
        await self._spawn_told(_CHILD, asdict(settings), f"transformers can't load {what}")

    async def complete(
        self, prompt: list[int], sampling: Sampling, shown: ShownMedia | None = None
    ) -> AsyncIterator[Tokens]:
        if sampling.schema is not None or sampling.calls:
            what = "a call" if sampling.calls else "a schema"
            raise EngineRefusedError(
                f"transformers can't hold a reply to {what}", "serve a GGUF file, or the same weights with vLLM"
            )
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=1 << 24)
        except OSError as error:
            raise EngineGoneError(f"{self.name} is not there: {error.strerror or error}", GONE) from error
        try:
            body = {"prompt": prompt, "max_tokens": sampling.max_tokens, "drawing": asdict(self._drawing(sampling))}
            body |= {"shown": _shown(shown)} if shown else {}
            writer.write(json.dumps(body).encode() + b"\n")
            while text := await reader.readline():
                line = json.loads(text)
                if "refused" in line:
                    raise EngineRefusedError(f"transformers refuses the request: {line['refused']}", "shorten it")
                yield _tokens(line)
                if "end" in line:
                    return
            raise EngineGoneError(f"{self.name} ended in the middle of a reply", GONE)
        except (OSError, ValueError) as error:
            raise EngineGoneError(f"{self.name} ended in the middle of a reply: {error}", GONE) from error
        finally:
            writer.close()

    def _drawing(self, sampling: Sampling) -> Drawing:
        """Return how the reply is drawn; what a request leaves open is the model's own."""
        seed = int.from_bytes(os.urandom(4)) if sampling.seed is None else sampling.seed % _SEEDS
        return Drawing(*sampling.drawn(self._defaults), seed, sampling.logprobs)


def _shown(shown: ShownMedia) -> dict[str, Any]:
    data = {path: base64.b64encode(found).decode() for path, found in shown.data.items()}
    return {"parts": list(shown.parts), "data": data, "types": list(shown.types)}


def _tokens(line: dict[str, Any]) -> Tokens:
    chances: tuple[TokenChance, ...] = ()
    if "chance" in line:
        token, text, logprob = line["chance"]
        chances = (TokenChance(token, text, logprob, tuple(TokenChance(*one) for one in line["likeliest"])),)
    return Tokens((line["id"],), chances, line.get("end"), line.get("prompt_tokens", 0))
