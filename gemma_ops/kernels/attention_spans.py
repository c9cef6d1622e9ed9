"""Attention patterns as a list of spans instead of a square of booleans.

A span is a run of queries and the run of keys they see, aligned at their ends: the last query sees every key of the
span, the one before all but the last, and so on, within the window on sliding layers. A packed row is one span per
document, a padded batch one span per row, and a row whose unlabelled positions were dropped one span per run of
positions that are left. What no list of spans can say (images attended to in both directions) is a mask per document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import attention_tiled
from gemma_ops.kernels.ops_runner import EAGER, OpRunner


@dataclass(frozen=True)
class Span:
    """Queries `[q0, q1)` of a batch row and the keys `[k0, k1)` they see."""

    row: int
    q0: int
    q1: int
    k0: int
    k1: int


@dataclass(frozen=True)
class Pattern:
    """The attention pattern of all rows of a forward pass, for one kind of layer.

    transformers hands it from the mask to the layers where it would hand a tensor.
    """

    spans: tuple[Span, ...]
    images: Tensor | None = None
    """[B, T] index of the image a token belongs to, -1 for text; None where nothing is seen in both directions."""
    windowed_images: bool = True
    """Whether a window also limits how far back a token of an image sees its own image (not so in the 12B)."""
    run: OpRunner = EAGER
    """Runner of the elementwise parts of attention."""

    def __getitem__(self, index: Any) -> Pattern:
        """Return the pattern of the last n queries, which layers that reuse keys ask for; n is all of them outside of
        generation."""
        queries = index[2]
        if not isinstance(queries, slice) or (queries.start or 0) != 0 or queries.stop is not None:
            raise NotImplementedError("only whole patterns reach layers that share keys; use `kept`")
        return self

    def kept(self, runs: Sequence[tuple[int, int]]) -> Pattern:
        """Return the pattern of the query positions `runs` (sorted, disjoint, of one row), moved together."""
        spans = []
        done = 0
        for first, last in runs:
            for span in self.spans:
                start, stop = max(first, span.q0), min(last, span.q1)
                if start < stop:
                    offset = done - first
                    end = span.k1 - (span.q1 - stop)
                    spans.append(Span(span.row, start + offset, stop + offset, span.k0, end))
            done += last - first
        return replace(self, spans=tuple(spans))

    @cached_property
    def _made(self) -> dict[Any, Any]:
        """Return what layers derive from the pattern, computed once for a forward pass."""
        return {}

    def cuts(self, batch: int, length: int) -> list[int] | None:
        """Return the bounds of documents over all rows laid end to end (cu_seqlens), padding a document of its own;
        None where images or dropped queries make more of the pattern than that."""
        if ("cuts", batch, length) not in self._made:
            self._made["cuts", batch, length] = self._cuts(batch, length)
            self._made["last"] = self._made["cuts", batch, length]
        found: list[int] | None = self._made["cuts", batch, length]
        return found

    def _cuts(self, batch: int, length: int) -> list[int] | None:
        if self.images is not None or any((span.q0, span.q1) != (span.k0, span.k1) for span in self.spans):
            return None
        edges = {row * length for row in range(batch + 1)}
        for span in self.spans:
            edges |= {span.row * length + span.q0, span.row * length + span.q1}
        return sorted(edges)

    def longest(self, batch: int, length: int) -> int:
        """Return the tokens of the longest document."""
        return max(stop - start for start, stop in pairwise(self.cuts(batch, length) or [0, length]))

    def bounds(self, device: torch.device) -> tuple[Tensor, int]:
        """Return the `cuts` last asked for as int32 on `device`, and the longest document."""
        cuts = self._made["last"]
        if ("bounds", device) not in self._made:
            made = torch.tensor(cuts, dtype=torch.int32)
            self._made["bounds", device] = made.to(device, non_blocking=True)
        return self._made["bounds", device], max(stop - start for start, stop in pairwise(cuts))

    def ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where each token's document begins and ends, int32 on `device`, for the `cuts` last asked for."""
        if ("ends", device) not in self._made:
            made = ends_of(self._made["last"])
            self._made["ends", device] = tuple(one.to(device, non_blocking=True) for one in made)
        found: tuple[Tensor, Tensor] = self._made["ends", device]
        return found

    def places(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each token's document number and its place in the document, for the `cuts` last asked for."""
        if ("places", device) not in self._made:
            cuts = torch.tensor(self._made["last"])
            token = torch.arange(int(cuts[-1]))
            document = torch.bucketize(token, cuts[1:], right=True)
            made = document, token - cuts[document]
            self._made["places", device] = tuple(one.to(device, non_blocking=True) for one in made)
        found: tuple[Tensor, Tensor] = self._made["places", device]
        return found

    def jobs(self, heads: int, device: torch.device) -> list[attention_tiled.TileJob]:
        """Return the `cuts` last asked for as batches of `attention_tiled` for so many query heads."""
        if ("jobs", heads, device) not in self._made:
            self._made["jobs", heads, device] = attention_tiled.plan_tiles(self._made["last"], heads, device)
        found: list[attention_tiled.TileJob] = self._made["jobs", heads, device]
        return found

    def mask(self, span: Span, window: int | None, device: torch.device) -> Tensor:
        """Return [q, k] booleans of one span, for patterns with images."""
        key = ("mask", span, window, device)
        if key not in self._made:
            self._made[key] = self._mask(span, window, device)
        found: Tensor = self._made[key]
        return found

    def _mask(self, span: Span, window: int | None, device: torch.device) -> Tensor:
        query = torch.arange(span.k1 - (span.q1 - span.q0), span.k1, device=device)[:, None]
        key = torch.arange(span.k0, span.k1, device=device)[None]
        near = query - key < window if window else torch.ones_like(query - key, dtype=torch.bool)
        causal = key <= query
        if self.images is None:
            return causal & near
        numbers = self.images[span.row]
        same = (numbers[query] == numbers[key]) & (numbers[query] >= 0)
        return (causal | same) & near if self.windowed_images else (causal & near) | same

    def has_image(self, span: Span) -> bool:
        """True if any key of the span is part of an image."""
        if self.images is None:
            return False
        if "seen" not in self._made:  # the device is asked once for all spans and layers
            self._made["seen"] = (self.images >= 0).cpu()
        return bool(self._made["seen"][span.row, span.k0 : span.k1].any())


def ends_of(cuts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return where each token's document begins and ends, int32, for documents that start at `cuts`, which end with the
    row's length."""
    edges = torch.tensor(cuts, dtype=torch.int32)
    sizes = edges.diff()
    return edges[:-1].repeat_interleave(sizes), edges[1:].repeat_interleave(sizes)


def documents(bounds: Sequence[int]) -> Pattern:
    """Return the pattern of a packed row: `bounds` are the first positions of its documents, and the length of the row
    at the end."""
    return Pattern(tuple(Span(0, start, stop, start, stop) for start, stop in pairwise(bounds)))


def whole_rows(batch: int, length: int) -> Pattern:
    """Return the pattern of rows without padding."""
    return Pattern(tuple(Span(row, 0, length, 0, length) for row in range(batch)))


def padded_rows(mask: Tensor) -> Pattern | None:
    """Return the pattern of rows padded on either side, from their `[B, T]` mask; None when a row has holes."""
    if bool(mask.all()):
        return whole_rows(*mask.shape)
    real = mask.to(torch.int32)
    first = real.argmax(1)
    count = real.sum(1)
    position = torch.arange(mask.shape[1], device=mask.device)[None]
    solid = (position >= first[:, None]) & (position < (first + count)[:, None])
    if not torch.equal(solid, mask.bool()):
        return None
    spans = zip(first.tolist(), count.tolist(), strict=True)
    return Pattern(tuple(Span(row, f, f + n, f, f + n) for row, (f, n) in enumerate(spans) if n))


def bounds_of(position_ids: Tensor) -> list[int]:
    """Return the document bounds of a packed row `[1, T]`: a document starts where positions don't go on."""
    positions = position_ids[0]
    starts = (torch.diff(positions) != 1).nonzero()[:, 0] + 1
    return [0, *starts.tolist(), len(positions)]


def image_numbers(token_types: Tensor, spans: Sequence[Span]) -> Tensor | None:
    """Return [B, T] which image (or video frame run) of its span each token belongs to, -1 for none; None without
    images.

    As transformers numbers them (a run of types 1 or 2), but never across the border of two documents.
    """
    vision = (token_types == 1) | (token_types == 2)
    if not bool(vision.any()):
        return None
    starts = vision & ~torch.roll(vision, 1, dims=-1)
    for span in spans:
        starts[span.row, span.k0] = vision[span.row, span.k0]
    return torch.where(vision, torch.cumsum(starts.int(), dim=-1) - 1, -1)
