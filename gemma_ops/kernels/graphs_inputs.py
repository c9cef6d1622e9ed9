"""Inputs of a captured pass: memory at fixed places, a little larger than the pass, and how a pass is copied into it.

A captured pass is replayed with the addresses, sizes and launch grids it was captured with. So its row has a fixed
number of tokens, rounded up, and its documents are described by numbers on the device: whatever is left of the row is
one more document, which nobody's loss reads, and document bounds that are left over are those of empty documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels.attention_spans import Pattern, documents, ends_of
from gemma_ops.kernels.ops_runner import OpRunner

_UNIT = 128
"""Multiple that tokens are rounded up to, as well as to a sixteenth of the power of two below: 3 % of padding on
average."""
_DOCUMENTS = 16
"""Multiple that the number of documents is rounded up to."""
_LONGEST = 512
"""Tokens from which the longest document is rounded up to a power of two: launch grids are sized by it."""


@dataclass(frozen=True)
class Room:
    """The size of a captured pass."""

    tokens: int
    documents: int
    longest: int

    def holds(self, other: Room) -> bool:
        """True if a pass that needs `other` fits into this one; only rows of the same rounded length do."""
        return self.tokens == other.tokens and self.documents >= other.documents and self.longest >= other.longest

    def joined(self, other: Room) -> Room:
        """Return the smallest room for both, of rows of one rounded length."""
        return Room(self.tokens, max(self.documents, other.documents), max(self.longest, other.longest))


def room_for(cuts: Sequence[int]) -> Room:
    """Return the room that documents that start at `cuts`, which end with the row's length, need."""
    length = cuts[-1]
    unit = max(_UNIT, (1 << (length.bit_length() - 1)) // 16)
    tokens = -(-length // unit) * unit
    count = len(cuts) - 1 + (tokens > length)
    longest = max(tokens - length, *(stop - start for start, stop in pairwise(cuts)))
    power = max(_LONGEST, 1 << (longest - 1).bit_length())
    return Room(tokens, -(-count // _DOCUMENTS) * _DOCUMENTS, min(power, tokens))


@dataclass(frozen=True)
class Fixed(Pattern):
    """An attention pattern whose documents only the device knows: `numbers` are read when a layer runs, not when it is
    captured."""

    numbers: Any = None
    """Positions of the documents; it has a default only because the pattern's fields have."""

    def cuts(self, batch: int, length: int) -> list[int] | None:
        """Return the bounds of the whole row, which say only that there are documents."""
        return [0, length]

    def longest(self, batch: int, length: int) -> int:
        """Return the tokens of the longest document there is room for."""
        return int(self.numbers.room.longest)

    def bounds(self, device: torch.device) -> tuple[Tensor, int]:
        """Return document bounds and the longest document, as `Pattern.bounds` does."""
        return self.numbers.bounds, self.numbers.room.longest

    def ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where each token's document begins and ends, as `Pattern.ends` does."""
        return self.numbers.starts, self.numbers.stops


class Numbers:
    """Begins and ends of documents, int32, in one piece of memory."""

    def __init__(self, room: Room, device: torch.device) -> None:
        self.room = room
        self.whole = torch.zeros(room.documents + 1 + 2 * room.tokens, dtype=torch.int32, device=device)
        self.bounds, self.starts, self.stops = self.whole.split([room.documents + 1, room.tokens, room.tokens])

    def fill(self, cuts: Sequence[int]) -> None:
        """Fill in the documents of a pass, without waiting for the device."""
        tokens = self.room.tokens
        edges = [*cuts, *([tokens] if cuts[-1] < tokens else [])]
        bounds = torch.full((self.room.documents + 1,), tokens, dtype=torch.int32)
        bounds[: len(edges)] = torch.tensor(edges)
        made = torch.cat([bounds, *ends_of(edges)])
        if self.whole.is_cuda:
            made = made.pin_memory()
        self.whole.copy_(made, non_blocking=True)


class Slots:
    """Input buffers of one captured pass of a language model's layers, and the gradient by its output. They lie in the
    memory of `other` where that is long enough: one pass is under way at a time, and each is laid in anew."""

    def __init__(
        self, room: Room, embeds: Tensor, per_layer: Tensor | None, positions: Tensor, other: Slots | None = None
    ) -> None:
        self.room = room
        self.embeds: Tensor = _longer(embeds, room.tokens, other and other.embeds)
        self.outer: Tensor = _longer(embeds, room.tokens, other and other.outer)
        self.positions: Tensor = _longer(positions, room.tokens, other and other.positions)
        self.per_layer: Tensor | None = None
        if per_layer is not None:
            self.per_layer = _longer(per_layer, room.tokens, other and other.per_layer)
        self.numbers = Numbers(room, embeds.device)
        self._cuts: list[int] = [0, room.tokens]

    def fill(self, cuts: Sequence[int], embeds: Tensor, per_layer: Tensor | None, positions: Tensor) -> None:
        """Copy a pass of `embeds [1, T, H]`, `per_layer [1, T, L, P]` and `positions [1, T]` into the memory. What
        stood behind its end stays: it is a document of its own."""
        length = embeds.shape[1]
        self.embeds[:, :length].copy_(embeds)
        self.positions[:, :length].copy_(positions)
        if self.per_layer is not None:
            assert per_layer is not None
            self.per_layer[:, :length].copy_(per_layer)
        self._cuts = [*cuts, *([self.room.tokens] if length < self.room.tokens else [])]
        self.numbers.fill(cuts)

    def arguments(self, run: OpRunner) -> dict[str, Any]:
        """Return the arguments of the language model's own forward pass."""
        if self.embeds.is_cuda:
            pattern: Pattern = Fixed((), run=run, numbers=self.numbers)
        else:
            pattern = documents(self._cuts)
        given = {
            "inputs_embeds": self.embeds,
            "position_ids": self.positions,
            "attention_mask": {"full_attention": pattern, "sliding_attention": pattern},
            "use_cache": False,
        }
        return given if self.per_layer is None else given | {"per_layer_inputs": self.per_layer}


def _longer(like: Tensor, tokens: int, there: Tensor | None) -> Tensor:
    if there is not None and there.shape[1] >= tokens:
        return there[:, :tokens]
    return like.new_zeros((like.shape[0], tokens, *like.shape[2:]))
