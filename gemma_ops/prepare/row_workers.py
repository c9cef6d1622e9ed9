"""Processes that work through chunks of rows; what they return comes in the order of the chunks.

A task is a function that makes the handler of chunks, with its arguments: each process makes its own handler once, so
that a tokenizer or an index travels once and not with every chunk. The first chunks are handled here, in this process:
small sets don't wait for others to start. A child reads its work from a pipe and ends when that is closed, however its
parent ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from gemma_ops.errors import MachineError, OpsError

T = TypeVar("T")
R = TypeVar("R")
Maker = Callable[..., Callable[[T], R]]

_HERE = 4
"""Chunks of a task that are handled in this process before others are started."""
_MOST = 8
"""Processes that one can feed, and whose rows it can write."""
_CHILD = [sys.executable, "-P", "-m", "gemma_ops.prepare.row_workers"]


class RowWorkers:
    """Up to `count` processes, started when there is work for them. A context manager: leaving it ends them."""

    def __init__(self, count: int | None) -> None:
        self.count = count or _cores()
        self._children: list[_Child] = []
        self._free: queue.SimpleQueue[_Child] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)

    def each(self, maker: Maker[T, R], arguments: tuple[Any, ...], chunks: Iterable[T]) -> Iterator[R]:
        """Yield what the task's handler returns for each chunk, in order. Raises what the handler raises, and
        MachineError when a process dies."""
        rest = iter(chunks)
        handle = maker(*arguments)
        for chunk in islice(rest, _HERE if self.count > 1 else None):
            yield handle(chunk)
        first = next(rest, None)
        if first is None:
            return
        self._start()
        for child in self._children:
            child.task = pickle.dumps((maker, arguments), pickle.HIGHEST_PROTOCOL)
        assert self._threads is not None
        waiting: deque[Future[R]] = deque([self._threads.submit(self._handle, first)])
        for chunk in rest:
            waiting.append(self._threads.submit(self._handle, chunk))
            if len(waiting) > 2 * self.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _start(self) -> None:
        if not self._children:
            self._children = [_Child() for _ in range(self.count)]
            self._threads = ThreadPoolExecutor(self.count)
            for child in self._children:
                self._free.put(child)

    def _handle(self, chunk: Any) -> Any:
        child = self._free.get()
        try:
            return child.handle(chunk)
        finally:
            self._free.put(child)


class _Child:
    """One process, and its two pipes."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(_CHILD, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)
        self.task = b""
        self._given = b""

    def handle(self, chunk: Any) -> Any:
        into, out = self.process.stdin, self.process.stdout
        assert into is not None
        assert out is not None
        try:
            if self._given is not self.task:
                self._given = self.task
                _send(into, self.task)
            _send(into, pickle.dumps((None, chunk), pickle.HIGHEST_PROTOCOL))
            failed, found = pickle.loads(_receive(out))  # noqa: S301 (our own child's)
        except (EOFError, OSError) as error:
            raise MachineError(
                f"a process that prepares rows ended with exit code {self.process.wait()}",
                "start the run again; where memory is short, with fewer processes: --set machine.workers=1",
            ) from error
        if failed:
            raise found
        return found

    def end(self) -> None:
        """End the process, whatever it does."""
        with suppress(OSError):
            if self.process.stdin:
                self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def _cores() -> int:
    """Return how many processes are worth it: the cores that this process may use, and no more than it can serve."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)


def _send(file: IO[bytes], body: bytes) -> None:
    file.write(len(body).to_bytes(8, "little") + body)
    file.flush()


def _receive(file: IO[bytes]) -> bytes:
    size = int.from_bytes(_exactly(file, 8), "little")
    return _exactly(file, size)


def _exactly(file: IO[bytes], size: int) -> bytes:
    body = file.read(size)
    if len(body) != size:
        raise EOFError
    return body


def _serve(into: IO[bytes], out: IO[bytes]) -> None:
    """Handle chunks until the pipe is closed."""
    handle: Callable[[Any], Any] | None = None
    while True:
        try:
            maker, body = pickle.loads(_receive(into))  # noqa: S301 (our own parent's)
        except EOFError:
            return
        if maker is not None:
            handle = _maker_error(maker, body)
            continue
        assert handle is not None
        try:
            reply = (False, handle(body))
        except Exception as error:
            if not isinstance(error, OpsError):
                error.add_note("".join(traceback.format_exception(error)))  # a traceback doesn't travel
            reply = (True, error)
        _send(out, pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))


def _maker_error(maker: Maker[Any, Any], arguments: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Make a handler; where that fails, one that raises the failure when it is asked."""
    try:
        return maker(*arguments)
    except Exception as error:
        failure = error

        def fail(_: Any) -> Any:
            raise failure

        return fail


if __name__ == "__main__":
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the replies
    _serve(sys.stdin.buffer, replies)
