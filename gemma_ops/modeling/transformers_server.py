"""A checkpoint run by transformers as a process: `python -m gemma_ops.modeling.transformers_server`.

It reads its settings as one JSON line, says in one JSON line that it answers or what is wrong, and ends when its input
ends. It listens on a socket file: a connection brings one request as a JSON line (`prompt` as token ids, `max_tokens`,
what a `Drawing` has, and perhaps what is shown, as `serving.engine.ShownMedia` with its bytes in base64), and is
answered by a JSON line for every token, or by one with `refused`. Several replies are written in turns, a token each; a
connection that is closed ends its reply.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import queue
import socket
import sys
import threading
import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.errors import DataError, OpsError
from gemma_ops.modeling.decoding import Drawing, Drawn, ReplyInMemory
from gemma_ops.modeling.media_inputs import Perceiver, Seen

_STUCK = 30.0
"""Seconds that a client has to take a line."""


@dataclass(frozen=True)
class TransformersSettings:
    """Settings that a server is started with."""

    model: str
    """Folder of the checkpoint."""
    changed: str | None
    """The folder with an adapter, or with the tensors of a full fine-tune, that is put on it."""
    socket: str
    """Socket file that the server makes."""
    slots: int
    """Replies that are written at once."""
    context: int
    """Tokens that a prompt and its reply may take together."""
    threads: int | None
    device: str
    """`auto`, `cpu` or `cuda`."""
    sees: bool = False
    """Whether images and sounds may be shown, so that their towers are loaded."""


class Exchange:
    """A connection with its reply."""

    def __init__(self, connection: socket.socket, body: dict[str, Any]) -> None:
        self._connection, self.body = connection, body
        self.reply: ReplyInMemory | None = None

    def gone(self) -> bool:
        """True if the client has closed its end."""
        self._connection.settimeout(0)  # with another, Python waits for something to read
        try:
            return self._connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self._connection.settimeout(_STUCK)

    def tell(self, line: dict[str, Any]) -> bool:
        """Send a line, and return whether the client took it."""
        try:
            self._connection.sendall(json.dumps(line).encode() + b"\n")
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class TransformersServer:
    """Server of a loaded model, which answers connections. `tokenizer` spells the tokens whose probabilities are
    told."""

    def __init__(
        self, model: Any, tokenizer: Any, stops: set[int], slots: int, context: int, perceiver: Perceiver | None = None
    ) -> None:
        self._model, self._tokenizer, self._stops, self._perceiver = model, tokenizer, stops, perceiver
        self._slots, self._context = slots, context
        self._waiting: queue.SimpleQueue[Exchange] = queue.SimpleQueue()

    def listen(self, listening: socket.socket) -> None:
        """Take connections for ever, each in a thread that reads its request."""
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def work(self) -> None:
        """Write replies for ever, a token of each in turn."""
        writing: deque[Exchange] = deque()
        while True:
            while len(writing) < self._slots and not (writing and self._waiting.empty()):
                writing.append(self._waiting.get())
            exchange = writing.popleft()
            if self.advance(exchange):
                writing.append(exchange)
            else:
                exchange.close()

    def _read(self, connection: socket.socket) -> None:
        connection.settimeout(_STUCK)
        with contextlib.suppress(OSError, ValueError), connection.makefile("rb") as lines:
            self._waiting.put(Exchange(connection, json.loads(lines.readline())))
            return
        connection.close()

    def advance(self, exchange: Exchange) -> bool:
        """Write the next token, and return whether more follow."""
        import torch

        if exchange.gone():
            return False
        if exchange.reply is None:
            body = exchange.body
            prompt, room = body["prompt"], self._context - len(body["prompt"])
            if not prompt or room < 1:
                why = f"the prompt has {len(prompt):,} tokens, and the context {self._context:,}"
                exchange.tell({"refused": why})
                return False
            how = Drawing(**body["drawing"])
            most = max(1, min(int(body["max_tokens"]), room))
            try:
                seen = self._seen(body.get("shown"))
            except DataError as error:
                exchange.tell({"refused": error.what})
                return False
            exchange.reply = ReplyInMemory(self._model, prompt, most, self._stops, how, seen)
        try:
            drawn = exchange.reply.step()
        except torch.OutOfMemoryError:
            exchange.tell({"refused": "the device has no memory left for it"})
            return False
        return exchange.tell(self._line(drawn, exchange.body)) and drawn.end is None

    def _seen(self, shown: dict[str, Any] | None) -> Seen | None:
        if shown is None or self._perceiver is None:
            return None
        data: dict[str, Path | bytes] = {path: base64.b64decode(found) for path, found in shown["data"].items()}
        return self._perceiver.see(shown["parts"], data, shown["types"])

    def _line(self, drawn: Drawn, body: dict[str, Any]) -> dict[str, Any]:
        line: dict[str, Any] = {"id": drawn.id}
        if drawn.logprob is not None:
            line["chance"] = self._chance(drawn.id, drawn.logprob)
            line["likeliest"] = [self._chance(*one) for one in drawn.likeliest]
        if drawn.end is not None:
            line |= {"end": drawn.end, "prompt_tokens": len(body["prompt"])}
        return line

    def _chance(self, token: int, logprob: float) -> list[Any]:
        return [token, self._tokenizer.decode([token], skip_special_tokens=False), logprob]


def _opened(settings: TransformersSettings) -> TransformersServer:
    """Return the server with its model loaded, as evaluation loads it."""
    from gemma_ops.modeling import generate, load
    from gemma_ops.modeling.threads import settle_threads

    folder, changed = Path(settings.model), Path(settings.changed) if settings.changed else None
    settle_threads(folder, settings.threads)
    device = load.pick_device(settings.device, folder)
    towers = changed is not None or settings.sees  # an adapter may reach into them
    model = load.load_model(folder, device=device, towers=towers, packed=True)
    if changed:
        model = load.put_on(model, changed, folder)
    stops = set(generate.stop_ids(model))
    perceiver = Perceiver(folder) if settings.sees else None
    return TransformersServer(model, load.load_tokenizer(folder), stops, settings.slots, settings.context, perceiver)


def _end_with_input() -> None:
    sys.stdin.read()
    os._exit(0)


def transformers_main() -> None:
    """Serve until the input ends."""
    warnings.simplefilter("ignore")  # of libraries, to whoever reads the server's log
    logging.disable(logging.WARNING)
    settings = TransformersSettings(**json.loads(sys.stdin.readline()))
    try:
        server = _opened(settings)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(settings.socket)
        listening.listen(128)
    except OpsError as error:
        print(json.dumps({"error": error.what}), flush=True)
        os._exit(1)
    except (ImportError, RuntimeError, OSError, ValueError, KeyError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        os._exit(1)
    print(json.dumps({"ready": settings.model}), flush=True)
    threading.Thread(target=_end_with_input, daemon=True).start()
    threading.Thread(target=server.listen, args=(listening,), daemon=True).start()
    server.work()


if __name__ == "__main__":
    transformers_main()
