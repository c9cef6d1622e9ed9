"""llama.cpp as an engine: its server in a child process on a socket file, asked in token ids and started again when it
dies.

Its HTTP is spoken by hand, over one connection a request: it closes connections that it was to keep, so that a client
which reuses them loses requests, and a general client costs more CPU than the reply. A connection that is closed early
ends the work.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gemma_ops.errors import MachineError, ModelError
from gemma_ops.modeling.llamacpp import GREEDY, SPACING, threads_for
from gemma_ops.modeling.llamacpp_server import ServerSettings
from gemma_ops.serving.engine import EngineGoneError, EngineRefusedError, Sampling, TokenChance, Tokens

_PATIENCE = 600.0
"""Seconds that loading may take."""
_CHILD = [sys.executable, "-m", "gemma_ops.modeling.llamacpp_server"]
_GONE = "send the request again: it is started anew"


class LlamaCpp:
    """A GGUF file served by llama.cpp. `context` is per slot; `defaults` are the sampling settings of
    `generation_config.json`.

    Raises MachineError when `xllamacpp` is not installed.
    """

    def __init__(
        self,
        file: Path,
        *,
        slots: int,
        context: int,
        threads: int | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        try:
            self.name = f"llama.cpp (xllamacpp {version('xllamacpp')})"
        except ImportError as error:
            raise MachineError(
                "serving GGUF files needs the package xllamacpp, which is not installed",
                "pip install 'gemma-ops[gguf]'",
            ) from error
        self.slots, self.context = slots, context
        self.restarts = 0
        self._file, self._threads = file, threads_for(file, threads)
        self._defaults = defaults or {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._socket = ""
        self._child: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """Process number of the child, None where there is none."""
        return self._child.pid if self._child else None

    def alive(self) -> bool:
        return self._ready.is_set()

    async def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="gemma-ops-")
        try:
            await self._spawn()
        except BaseException:
            await self.stop()
            raise
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._watching:
            self._watching.cancel()
        self._ready.clear()
        if self._child:
            if self._child.returncode is None:
                self._child.kill()  # it holds nothing that could be lost
            await self._child.wait()
            # Its pipes are closed now, while there is a loop: left to the garbage, they complain that it has gone.
            self._child._transport.close()  # type: ignore[attr-defined]
            await asyncio.sleep(0)
        if self._folder:
            self._folder.cleanup()

    async def _spawn(self) -> None:
        assert self._folder
        # A new name each time: the file of a server that was killed stays, and the next could not bind there.
        self._socket = str(Path(self._folder.name) / f"{self.restarts}.sock")
        settings = ServerSettings(str(self._file), self._socket, self.slots, self.context, self._threads)
        self._child = await asyncio.create_subprocess_exec(
            *_CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )  # of its own: Ctrl-C must not end it before what it is answering
        assert self._child.stdin
        assert self._child.stdout
        self._child.stdin.write(json.dumps(asdict(settings)).encode() + b"\n")
        said = b""
        try:
            async with asyncio.timeout(_PATIENCE):
                while line := await self._child.stdout.readline():
                    said = line
                    if line.startswith((b'{"ready"', b'{"error"')):
                        break
        except TimeoutError:
            self._child.kill()
        body = json.loads(said) if said.startswith(b"{") else {}
        if "ready" not in body:
            raise ModelError(
                f"llama.cpp can't load {self._file}: {body.get('error') or 'it ended without a word'}",
                "export it again; `gemma-ops doctor` shows the versions",
            )
        self._ready.set()

    async def _watch(self) -> None:
        """Start the child again whenever it ends, later each time that it ends at once."""
        pause = 0.0
        while True:
            assert self._child
            began = time.monotonic()
            await self._child.wait()
            self._ready.clear()
            pause = min(max(1.0, 2 * pause), 30.0) if time.monotonic() - began < 10 else 0.0
            await asyncio.sleep(pause)
            self.restarts += 1
            try:
                await self._spawn()
            except (ModelError, OSError):
                continue

    async def complete(self, prompt: list[int], sampling: Sampling) -> AsyncIterator[Tokens]:
        try:
            reader, writer = await asyncio.open_unix_connection(self._socket, limit=1 << 24)
        except OSError as error:
            raise EngineGoneError(f"{self.name} is not there: {error.strerror or error}", _GONE) from error
        try:
            body = json.dumps(self._body(prompt, sampling)).encode()
            head = (
                "POST /completion HTTP/1.1\r\nHost: llama\r\nConnection: close\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            status = await _status(reader)
            if status >= 500:
                raise EngineGoneError(f"{self.name} does not answer (HTTP {status})", _GONE)
            if status != 200:
                raise _refusal(await reader.read())
            ended = False
            async for event in _events(reader):
                if "error" in event:
                    raise _refusal(json.dumps(event).encode())
                found = _tokens(event)
                ended = ended or found.end is not None
                yield found
            if not ended:
                raise EngineGoneError(f"{self.name} ended in the middle of a reply", _GONE)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            raise EngineGoneError(f"{self.name} ended in the middle of a reply: {error}", _GONE) from error
        finally:
            writer.close()

    def _body(self, prompt: list[int], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "prompt": prompt, "n_predict": sampling.max_tokens, "stream": True, "return_tokens": True, "cache_prompt": True,
        }  # fmt: skip
        temperature = self._defaults.get("temperature", 1.0) if sampling.temperature is None else sampling.temperature
        if temperature <= 0:
            body |= GREEDY
        else:
            top_k = self._defaults.get("top_k", 0) if sampling.top_k is None else sampling.top_k
            top_p = self._defaults.get("top_p", 1.0) if sampling.top_p is None else sampling.top_p
            body |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
            body["samplers"] = ["top_k", "top_p", "temperature"]
            body["seed"] = int.from_bytes(os.urandom(4)) >> 1 if sampling.seed is None else sampling.seed
        if sampling.schema is not None:
            body["json_schema"] = {**sampling.schema, **SPACING}
        if sampling.grammar is not None:
            body["grammar"] = sampling.grammar
        if sampling.logprobs is not None:
            body["n_probs"] = max(1, sampling.logprobs)
        return body


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of a response, its headers read."""
    head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1])


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The events of a chunked stream. A chunk needs not hold whole events."""
    left = b""
    while True:
        size = int((await reader.readline()).split(b";")[0] or b"0", 16)
        if size == 0:
            return
        left += await reader.readexactly(size)
        await reader.readexactly(2)
        *whole, left = left.split(b"\n\n")
        for event in whole:
            if event.startswith(b"data: ") and event != b"data: [DONE]":
                yield json.loads(event[6:])
            elif event.startswith(b"error: "):
                yield {"error": json.loads(event[7:])}


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


def _refusal(body: bytes) -> EngineRefusedError:
    try:
        error = json.loads(body)["error"]
        said = str(error.get("message") if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        said = body.decode(errors="replace")[:200]
    return EngineRefusedError(f"llama.cpp refuses the request: {said}", "shorten the prompt, or correct the request")
