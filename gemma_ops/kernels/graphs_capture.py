"""What records a function's work and plays it again: a CUDA graph, or, without a GPU, the function itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch


class Tape(Protocol):
    """Records once, plays often."""

    again: bool
    """Whether playing runs the function anew, which then needs what it needed to be recorded."""
    play: Callable[[], Any]

    def prepare(self, function: Callable[[], Any]) -> None:
        """Run what will be recorded, and let its memory go: nothing is compiled or loaded while recording."""

    def record(self, function: Callable[[], Any]) -> None:
        """Record what the function does. Raises RuntimeError where that can't be."""


class Graph:
    """One CUDA graph. All that one `maker` makes share a stream to record on and a pool of memory: only one of them may
    be in use at a time, with what was recorded before it."""

    again = False

    def __init__(self, stream: Any, pool: Any) -> None:
        self.stream, self.pool = stream, pool
        self.graph = torch.cuda.CUDAGraph()
        self.play: Callable[[], Any] = self.graph.replay

    @classmethod
    def maker(cls) -> Callable[[], Graph]:
        """Makes graphs on the device that is current when the first is asked for."""
        shared: list[Any] = []

        def make() -> Graph:
            if not shared:
                shared.extend((torch.cuda.Stream(), torch.cuda.graph_pool_handle()))
            return cls(*shared)

        return make

    def prepare(self, function: Callable[[], Any]) -> None:
        """See `Tape`."""
        self._here(function)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def record(self, function: Callable[[], Any]) -> None:
        """See `Tape`; nothing runs."""
        self._here(lambda: self._captured(function))

    def _captured(self, function: Callable[[], Any]) -> None:
        # Other threads, such as a loader's that pins memory, may call the driver meanwhile.
        self.graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            function()
        except BaseException:
            with suppress(RuntimeError):  # what broke the recording is the error to tell
                self.graph.capture_end()
            raise
        self.graph.capture_end()

    def _here(self, function: Callable[[], Any]) -> None:
        """On the stream to record on, after what was asked for before and before what follows."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            function()
        torch.cuda.current_stream().wait_stream(self.stream)


class Again:
    """A tape that needs no GPU: it runs the function anew. For tests of everything but the graphs themselves."""

    again = True

    def __init__(self) -> None:
        self.play: Callable[[], Any] = lambda: None

    def prepare(self, function: Callable[[], Any]) -> None:
        """See `Tape`."""
        function()

    def record(self, function: Callable[[], Any]) -> None:
        """See `Tape`: it is kept."""
        self.play = function
