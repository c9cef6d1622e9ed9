"""Bytes alive at every moment of a computation, without computing: each operation runs on fake tensors, which have
shapes and types and no memory, and each storage that appears is counted until the last tensor on it is gone.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Moment:
    """The highest point so far."""

    bytes: int
    operation: str
    """Operation that had just run."""
    shapes: tuple[tuple[int, ...], ...]
    """Output shapes of that operation."""


class Live(TorchDispatchMode):  # type: ignore[misc]
    """Counter of live storages by identity, so that views and in-place operations cost nothing.

    What lives outside `elsewhere` (a table in main memory while the rest is on a GPU) is not counted.
    """

    def __init__(self, elsewhere: tuple[torch.Tensor, ...] = ()) -> None:
        super().__init__()
        self.now = 0
        self.peak = Moment(0, "", ())
        self._sizes: dict[int, int] = {}
        self._elsewhere = {tensor.untyped_storage()._cdata for tensor in elsewhere}

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, if it is new, until it is freed."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes or key in self._elsewhere:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        weakref.finalize(storage, self._freed, key)

    def restart(self) -> None:
        """Reset the highest point; what is alive stays counted."""
        self.peak = Moment(self.now, "", ())

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        for tensor in made:
            self.add(tensor)
        if self.now > self.peak.bytes:
            self.peak = Moment(self.now, str(func), tuple(tuple(tensor.shape) for tensor in made[:2]))
        return out
