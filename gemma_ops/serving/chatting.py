"""A conversation in the terminal with what is served, or with two of them side by side; and one question for
scripts."""

from __future__ import annotations

import asyncio
import base64
import mimetypes
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.errors import DataError, OpsError
from gemma_ops.serving.model import Said
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.server import opened_server
from gemma_ops.serving.serving_state import ModelService
from gemma_ops.serving.showing import read_with_media
from gemma_ops.wire.ask import Ask, RefusalError
from gemma_ops.wire.beyond import openai_beyond
from gemma_ops.wire.openai import read_chat

Content = str | list[dict[str, Any]]
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_HELP = (
    "/system TEXT sets the system turn, /show FILE shows an image or plays a sound with the next question, "
    "/reset forgets the conversation, /quit ends (as does Ctrl-D)"
)


def ask_once(sources: list[str], prompt: str, system: str, machine: MachineConfig, settings: ServeConfig) -> None:
    """Print each one's answer to one question: only the answer where there is one source, so that scripts can use it.

    Raises DataError for a question that is refused, and what `opened` raises.
    """

    async def run() -> None:
        async with _services(sources, machine, settings) as services:
            for service in services:
                try:
                    said = await service.reply(Ask(messages=_turns(system, [], prompt), temperature=0.0))
                except RefusalError as refusal:
                    raise DataError(refusal.message, "ask otherwise") from refusal
                head = f"{service.facts.source}: " if len(services) > 1 else ""
                print(f"{head}{said.text}", flush=True)

    asyncio.run(run())


def converse(sources: list[str], system: str, machine: MachineConfig, settings: ServeConfig) -> None:
    """Read turns from the terminal until it ends, and answer each."""

    async def run() -> None:
        async with _services(sources, machine, settings) as services:
            for service in services:
                print(f"{service.facts.source}: {service.facts.format or 'GGUF'}, canary: {service.facts.canary}")
            print(_HELP)
            await _talk(services, system)

    asyncio.run(run())


async def _talk(services: list[ModelService], system: str) -> None:
    histories: list[list[dict[str, Any]]] = [[] for _ in services]
    shown: list[dict[str, Any]] = []
    while True:
        try:
            line = (await asyncio.to_thread(input, "\n› ")).strip()
        except EOFError:
            print()
            return
        verb, _, rest = line.partition(" ")
        if verb == "/quit":
            return
        if verb == "/reset":
            histories, shown = [[] for _ in services], []
        elif verb == "/show":
            shown += _file(rest.strip())
        elif verb == "/system":
            system, histories = rest.strip(), [[] for _ in services]
        elif verb.startswith("/"):
            print(_HELP)
        elif line:
            content = [*shown, {"type": "text", "text": line}] if shown else line
            for service, history in zip(services, histories, strict=True):
                await _turn(service, history, system, content, named=len(services) > 1)
            shown = []


async def _turn(
    service: ModelService, history: list[dict[str, Any]], system: str, content: Content, *, named: bool
) -> None:
    """Stream one question's answer; what is refused, or not answered, is reported and forgotten."""
    if named:
        print(f"\n{service.facts.source}", flush=True)
    said = Said()
    colour = sys.stdout.isatty()
    try:
        body = {"messages": _turns(system, history, content), "temperature": 0}  # as evaluations ask
        ask = read_with_media(body, read_chat, openai_beyond, service.model.engine.senses)
        async with service.replying(ask, said) as pieces:
            async for piece in pieces:
                if piece.call is not None:
                    print(f"[calls {piece.call.name} {piece.call.arguments}]", flush=True)
                elif piece.kind == "thought":
                    print(f"{_DIM}{piece.text}{_PLAIN}" if colour else piece.text, end="", flush=True)
                else:
                    print(piece.text, end="", flush=True)
    except RefusalError as refusal:
        print(f"refused: {refusal.message}")
        return
    except OpsError as error:
        print(f"failed: {error.what}; {error.fix}")
        return
    print(" […]" if said.end == "length" else "")
    history += [{"role": "user", "content": content}, {"role": "assistant", "content": said.text or "…"}]


def _file(name: str) -> list[dict[str, Any]]:
    """Return an image or a sound as OpenAI's protocol carries it; none where it can't be read, which is reported."""
    path = Path(name).expanduser()
    kind = mimetypes.guess_type(path.name)[0] or ""
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        print(f"{path} can't be read: {error.strerror or error}")
        return []
    if kind.startswith("audio/"):
        return [{"type": "input_audio", "input_audio": {"data": data, "format": path.suffix[1:].lower()}}]
    return [{"type": "image_url", "image_url": {"url": f"data:{kind or 'application/octet-stream'};base64,{data}"}}]


def _turns(system: str, history: list[dict[str, Any]], content: Content) -> list[dict[str, Any]]:
    head = [{"role": "system", "content": system}] if system else []
    return [*head, *history, {"role": "user", "content": content}]


@asynccontextmanager
async def _services(
    sources: list[str], machine: MachineConfig, settings: ServeConfig
) -> AsyncIterator[list[ModelService]]:
    services: list[ModelService] = []
    try:
        for name in sources:
            services.append(await opened_server(open_source(name, machine, settings), machine, settings))  # noqa: PERF401
        yield services
    finally:
        for service in services:
            await service.model.engine.stop()
