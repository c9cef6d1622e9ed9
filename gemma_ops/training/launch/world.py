"""The number of processes that share this training, and which one this is: (0, 1) where there is only one.

Everything that leaves a trace (files, records, samples) is done by the main process, number 0; everything that computes
is done by all of them. What must not overtake, waits at a `barrier`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class World(NamedTuple):
    """This process's number, from 0, and how many there are."""

    rank: int
    size: int


def world() -> World:
    """Return the world of the process group, where one is up; a training in one process needs none."""
    distributed = _group()
    return World(distributed.get_rank(), distributed.get_world_size()) if distributed else World(0, 1)


def on_main() -> bool:
    """True if this is the process that writes files and records."""
    return world().rank == 0


def barrier() -> None:
    """Wait until every process is here."""
    distributed = _group()
    if distributed:
        distributed.barrier()


def main_first(make: Callable[[], T]) -> T:
    """Return what `make` makes: on the main process first, then on the others, which find the files it wrote."""
    made = make() if on_main() else None
    barrier()
    return make() if made is None else made


def from_main(value: Any) -> Any:
    """Return the main process's value, on all of them; it is pickled."""
    distributed = _group()
    if not distributed:
        return value
    held = [value]
    distributed.broadcast_object_list(held, src=0)
    return held[0]


def local_device(device: str) -> str:
    """Return this process's own GPU, `cuda:1`, where several processes have one each; anything else as it is."""
    if device != "cuda" or not _group():
        return device
    import torch

    return f"cuda:{torch.cuda.current_device()}"


def _group() -> Any:
    """Return torch.distributed if a process group is up. torch is not imported for it: without torch there is none."""
    if "torch" not in sys.modules:
        return None
    import torch.distributed

    up = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed if up else None
