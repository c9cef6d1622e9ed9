"""The rows of each optimizer step, and how they are packed into forward passes: plain arithmetic, without torch.

A step is the same set of rows however it is computed. Packed, its rows are laid end to end into *passes* of at most
`micro_tokens` tokens, as evenly as possible; unpacked, rows of like length share a pass and are padded. On several
processes the passes of one step are dealt out, each process getting equally many, so that none waits for collectives
that never come. Everything follows from the lengths, the seed and the epoch: a run resumed on another number of
processes takes the same rows in the same order.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

Pass = list[int]
"""Indexes of the rows of one forward pass; empty where another process has one more pass to compute."""


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step as one process sees it."""

    passes: list[Pass]
    """Forward passes of this process."""
    rows: list[int]
    """All rows of the step, whoever computes them, over which the loss is averaged."""


@dataclass(frozen=True)
class Layout:
    """The layout of rows in optimizer steps."""

    batch: int
    """Rows per optimizer step, over all processes."""
    batch_tokens: int | None = None
    """Tokens per optimizer step, instead of `batch`."""
    micro_tokens: int = 4096
    """Tokens per packed forward pass; a longer row has one to itself."""
    micro_batch: int | None = None
    """Rows per padded forward pass; None packs."""
    seed: int = 0
    rank: int = 0
    world: int = 1


class Steps:
    """The optimizer steps of an epoch, for one process; iterating gives a `Step` each.

    Shaped like a batch sampler of torch, so that its loader, and accelerate's skipping on resume, take it as one.
    """

    def __init__(self, lengths: Sequence[int], layout: Layout) -> None:
        self.lengths = lengths
        self.layout = layout
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Order the rows as they come in this epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        rows, layout = len(self.lengths), self.layout
        if layout.batch_tokens is None:
            return ceil(rows / layout.batch)
        total, longest = sum(self.lengths), max(self.lengths)
        # With steps no narrower than the longest row each holds the start of one, so that none is empty.
        return max(1, min(ceil(total / layout.batch_tokens), total // longest))

    def __iter__(self) -> Iterator[OptimizerStep]:
        for group in self.groups():
            yield self.deal(group)

    def groups(self) -> Iterator[list[int]]:
        """Yield the rows of each optimizer step, over all processes."""
        order = list(range(len(self.lengths)))
        random.Random(f"{self.layout.seed}/{self.epoch}").shuffle(order)
        if self.layout.batch_tokens is None:
            for start in range(0, len(order), self.layout.batch):
                yield order[start : start + self.layout.batch]
            return
        total, steps = sum(self.lengths), len(self)
        found: list[list[int]] = [[] for _ in range(steps)]
        start = 0
        for row in order:
            found[start * steps // total].append(row)
            start += self.lengths[row]
        yield from found

    def deal(self, group: list[int]) -> OptimizerStep:
        """Return what this process computes of a step's rows."""
        layout = self.layout
        if layout.micro_batch is None:
            passes = pack(group, self.lengths, layout.micro_tokens, layout.world)
        else:
            passes = pad(group, self.lengths, layout.micro_batch, layout.world)
        return OptimizerStep(passes[layout.rank :: layout.world], group)


def pack(rows: Sequence[int], lengths: Sequence[int], capacity: int, multiple: int = 1) -> list[Pass]:
    """Pack rows into as few passes of at most `capacity` tokens as longest-first finds (a multiple of `multiple`), then
    even them out: the longest row left always goes to the emptiest pass that can take it.

    Longest-first into any pass with room needs at most 11/9 of the optimum and two thirds of a pass more (Dósa 2007).
    """
    order = sorted(rows, key=lambda row: (-lengths[row], row))
    room: list[int] = []
    for row in order:
        place = next((index for index, left in enumerate(room) if left >= lengths[row]), None)
        if place is None:
            room.append(capacity - lengths[row])
        else:
            room[place] -= lengths[row]
    count = -(-max(1, len(room)) // multiple) * multiple
    return _even(order, lengths, capacity, count) or _first(order, lengths, capacity, count)


def _even(order: list[int], lengths: Sequence[int], capacity: int, count: int) -> list[Pass] | None:
    """Put each row into the emptiest pass; None where that overfills one."""
    heap = [(0, index) for index in range(count)]
    passes: list[Pass] = [[] for _ in range(count)]
    for row in order:
        used, index = heapq.heappop(heap)
        if used and used + lengths[row] > capacity:
            return None
        passes[index].append(row)
        heapq.heappush(heap, (used + lengths[row], index))
    return passes


def _first(order: list[int], lengths: Sequence[int], capacity: int, count: int) -> list[Pass]:
    """Put each row into the first pass with room."""
    passes: list[Pass] = [[] for _ in range(count)]
    used = [0] * count
    for row in order:
        index = next(i for i in range(count) if not used[i] or used[i] + lengths[row] <= capacity)
        passes[index].append(row)
        used[index] += lengths[row]
    return passes


def pad(rows: Sequence[int], lengths: Sequence[int], size: int, multiple: int = 1) -> list[Pass]:
    """Return passes of at most `size` rows, neighbours in length; fewer rows each where `multiple` passes would not be
    filled, and empty passes up to a multiple of it."""
    order = sorted(rows, key=lambda row: (-lengths[row], row))
    size = min(size, max(1, -(-len(order) // multiple)))  # no process idles while another computes the whole step
    passes = [order[start : start + size] for start in range(0, len(order), size)]
    return passes + [[] for _ in range(-len(passes) % multiple)]
