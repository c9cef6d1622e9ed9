"""The emulator as an HTTP server: real sockets, so that the real client with its timeouts, retries and parsing runs."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from gemma_ops.emulator import routes
from gemma_ops.emulator.emulated_batches import Pace
from gemma_ops.emulator.emulated_service import Service
from gemma_ops.emulator.emulated_wire import EmulatedCall, Reaction
from gemma_ops.emulator.emulator_log import LogEntry
from gemma_ops.emulator.rehearsal import rehearsed_reply
from gemma_ops.emulator.responder import Responder
from gemma_ops.errors import ConfigError, MachineError
from gemma_ops.gemini import handshake
from gemma_ops.wire.gemini_wire import Refusal, camel


class Emulator:
    """A Gemini server on this machine.

        with Emulator(seed=1) as service:
            service.fail("429", times=2, seconds=0.1)
            ...  # machine.gemini.base_url = service.url
            assert [entry.status for entry in service.log] == [429, 429, 200]

    `responder` answers (a rehearsal by default); `latency` is in seconds per reply; `thoughts` is the range of thinking
    tokens per request (by default the level's own, kept below what the reply needs); `keys` are the API keys that it
    knows (by default any); `log` is a file that the request log is appended to; `routes` says which model answers for a
    retired one, or None for one that is gone (404).
    """

    def __init__(
        self,
        responder: Responder | None = None,
        *,
        seed: int = 0,
        latency: float = 0.0,
        log: Path | str | None = None,
        port: int = 0,
        thoughts: tuple[int, int] | None = None,
        keys: frozenset[str] | None = None,
        pace: Pace | None = None,
        routes: Mapping[str, str | None] | None = None,
    ) -> None:
        self.latency = latency
        self.pace = pace or Pace()
        """Pace of batch jobs; it may be changed at any time."""
        self._service = Service(
            responder or rehearsed_reply,
            seed=seed,
            thoughts=thoughts,
            keys=keys,
            pace=self.pace,
            log=Path(log) if log else None,
            routes=routes or {},
        )
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Listen on 127.0.0.1; raises MachineError when the port is taken, ConfigError for an impossible one."""
        try:
            self._server = _Server(self._port, self._service, lambda: self.latency)
        except OverflowError as error:
            raise ConfigError(
                f"there is no port {self._port}", "take one from 0 to 65535; 0 takes a free one"
            ) from error
        except OSError as error:
            raise MachineError(
                f"port {self._port} is taken ({error.strerror})", "stop what listens there, or take another with --port"
            ) from error
        self._service.address = self.url
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close the port and every connection. The log stays readable."""
        if self._server is not None:
            self._server.end()
            self._server = None
        if self._thread is not None:
            self._thread.join()
        self._service.log.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Return the address for `machine.gemini.base_url`."""
        assert self._server is not None, "not started"
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def log(self) -> list[LogEntry]:
        """Return all log entries so far, in order."""
        return list(self._service.log.entries)

    def of(self, *ops: str) -> list[LogEntry]:
        """Return the entries of these operations, such as `generate`, `stream`, `item`, `batch_create`, `upload`."""
        return [entry for entry in self.log if entry.op in ops]

    def billed(self) -> list[LogEntry]:
        """Return the entries that would be billed."""
        return [entry for entry in self.log if entry.billed]

    def fail(
        self,
        fault: str,
        *,
        times: int | None = 1,
        match: str | Callable[[EmulatedCall], bool] | None = None,
        on: str | None = None,
        share: float = 1.0,
        seconds: float = 1.0,
    ) -> None:
        """Order a fault (`faults.py` lists them): for the next `times` calls it fits (None: all of them).

        `match` limits it to calls whose path or body holds a text, or for which a function is true; `on` to an
        operation (`generate`, `stream`, `item`, `count`, `batch`, `poll`, `upload`, `download`, `cache`, `embed`,
        `models`, `any`); `share` to a share of the calls, chosen by the seed. `seconds` is the delay that a 429 asks
        for, or how long `slow` takes.
        """
        self._service.faults.add(fault, times=times, match=match, on=on, share=share, seconds=seconds)

    def heal(self) -> None:
        """Cancel all faults that are still on order."""
        self._service.faults.clear()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # many threads connect at once
    allow_reuse_address = True

    def __init__(self, port: int, service: Service, latency: Callable[[], float]) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.service = service
        self.latency = latency
        self.ending = threading.Event()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that leave in the middle, by timeout or kill: only other errors deserve a traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def end(self) -> None:
        self.ending.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # already gone


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the request log is elsewhere."""

    def _handle(self) -> None:
        raw = self._read()
        if proof := handshake.answer_challenge(self.path):
            self._send(Reaction(200, proof.encode()))
            return
        reaction = self._react(raw)
        if self.server.latency():
            self.server.ending.wait(self.server.latency())
        if reaction.delivery == "slow":
            self.server.ending.wait(reaction.seconds)
        if reaction.delivery == "cut":
            self._cut()
        elif reaction.events is not None:
            self._stream(reaction)
        else:
            self._send(reaction)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _handle  # noqa: N815  (names of http.server)

    def _react(self, raw: bytes) -> Reaction:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query))
        path = unquote(parts.path)
        try:
            op, named = routes.match_route(self.command, path)
        except Refusal as refusal:
            return self.server.service.unrouted(self.command, path, raw, refusal)
        sent: Any = None
        body: dict[str, Any] = {}
        if op != "upload" and raw:
            try:
                sent = json.loads(raw)
            except ValueError:
                message = "Invalid JSON payload received. Unexpected token."
                return self.server.service.unrouted(self.command, path, raw, Refusal(400, message))
            body = camel(sent) if isinstance(sent, dict) else {}
        call = EmulatedCall(
            self.command,
            path,
            op,
            named.get("name", ""),
            named.get("version", ""),
            bool(named.get("cloud")),
            query,
            headers,
            raw,
            sent,
            body,
        )
        return self.server.service.react(call)

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _head(self, reaction: Reaction, **more: str) -> None:
        self.send_response(reaction.status)
        headers = {"Content-Type": "application/json; charset=UTF-8"} | more | dict(reaction.headers)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _send(self, reaction: Reaction) -> None:
        data = (
            reaction.body
            if isinstance(reaction.body, bytes)
            else json.dumps(reaction.body, ensure_ascii=False).encode()
        )
        self._head(reaction, Content_Length=str(len(data)))
        if reaction.delivery == "cut_reply":
            self.wfile.write(data[: len(data) // 2])
            self._cut()
        else:
            self.wfile.write(data)

    def _stream(self, reaction: Reaction) -> None:
        """Send server-sent events, one chunk each, as they arrive."""
        self._head(reaction, Content_Type="text/event-stream", Transfer_Encoding="chunked")
        for number, event in enumerate(reaction.events or ()):
            if number and reaction.delivery == "stream_error":
                self._chunk(Refusal(503, "The model is overloaded. Please try again later.").body())
                break
            self._chunk(event)
            if reaction.delivery in ("cut_stream", "cut_reply"):
                self._cut()
                return
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, event: dict[str, Any]) -> None:
        data = b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\r\n\r\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _cut(self) -> None:
        """Close the connection in the middle of a reply."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
