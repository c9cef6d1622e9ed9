"""Capture and replay of a function's work: by a CUDA graph, or, without a GPU, by the function itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch


class Tape(Protocol):
    """The interface of a captured function, which is captured once and replayed often."""

    again: bool
    """Whether replaying runs the function anew, which then needs what it needed when it was captured."""
    play: Callable[[], Any]

    def prepare(self, function: Callable[[], Any]) -> None:
        """Run once what will be captured, and free its memory: nothing is compiled or loaded during capture."""

    def record(self, function: Callable[[], Any]) -> None:
        """Capture what the function does. Raises RuntimeError where that can't be."""


class Graph:
    """A captured CUDA graph. All that one `maker` makes share a stream to capture on and a pool of memory: only one of
    them may be in use at a time, with what was captured before it."""

    again = False

    def __init__(self, stream: Any, pool: Any) -> None:
        self.stream, self.pool = stream, pool
        self.graph = torch.cuda.CUDAGraph()
        self.play: Callable[[], Any] = self.graph.replay

    @classmethod
    def maker(cls) -> Callable[[], Graph]:
        """Return a function that makes graphs on the device that is current when the first is asked for."""
        shared: list[Any] = []

        def make() -> Graph:
            if not shared:
                shared.extend((torch.cuda.Stream(), torch.cuda.graph_pool_handle()))
            return cls(*shared)

        return make

    def prepare(self, function: Callable[[], Any]) -> None:
        """Run once what will be captured, on the capture stream."""
        self._here(function)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def record(self, function: Callable[[], Any]) -> None:
        """Capture the function's launches; nothing runs."""
        self._here(lambda: self._captured(function))

    def _captured(self, function: Callable[[], Any]) -> None:
        # Other threads, such as a loader's that pins memory, may call the driver meanwhile.
        self.graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
        try:
            function()
        except BaseException:
            with suppress(RuntimeError):  # what broke the capture is the error to report
                self.graph.capture_end()
            raise
        self.graph.capture_end()

    def _here(self, function: Callable[[], Any]) -> None:
        """Switch to the capture stream, after earlier work and before what follows."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            function()
        torch.cuda.current_stream().wait_stream(self.stream)


class Again:
    """A replay without a GPU, which runs the function anew. For tests of everything but the graphs themselves."""

    again = True

    def __init__(self) -> None:
        self.play: Callable[[], Any] = lambda: None

    def prepare(self, function: Callable[[], Any]) -> None:
        """Do nothing: there is nothing to prepare without a GPU."""
        function()

    def record(self, function: Callable[[], Any]) -> None:
        """Keep the function instead of capturing it."""
        self.play = function
