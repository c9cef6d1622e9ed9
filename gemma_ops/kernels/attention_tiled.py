"""Causal attention of documents as batched matrix products, for heads too wide for a flash kernel.

Documents of about one length are padded to it and multiplied together; longer ones go block of queries by block. Scores
are made again in the backward pass from the softmax's logarithm, so nothing quadratic is kept. A group of query heads
that share keys is one tall matrix: keys are never repeated. Scores and softmax are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import ops_reference
from gemma_ops.kernels.ops_runner import EAGER, OpRunner

BLOCK = 2048
"""Queries of a document computed together; shorter documents are batched whole."""
STEP = 512
"""Multiple that lengths are rounded up to, so that batches are few: a GPU waits for launches longer than for
padding."""
SCORES = 1 << 26
"""Scores computed at once, about (256 MiB in float32, twice that in the backward pass)."""


@dataclass(frozen=True)
class TileJob:
    """One batch: `count` runs of `queries` tokens, each seeing the `keys` tokens that end with its own last one."""

    tokens: Tensor
    """[count * queries] indexes of the query tokens; those of padding repeat a real one."""
    key_tokens: Tensor
    """[count * keys] indexes of the key tokens."""
    real: Tensor | None
    """[count * queries, 1, 1] zeros where a query is padding; None without padding."""
    count: int
    queries: int
    keys: int


def plan_tiles(cuts: Sequence[int], heads: int, device: torch.device) -> list[TileJob]:
    """Return the batches for documents that start at `cuts`, which end with the row's length."""
    short: dict[int, list[tuple[int, int]]] = {}
    jobs = []
    for first, last in pairwise(cuts):
        if last - first <= BLOCK and heads * (last - first) ** 2 <= SCORES:
            short.setdefault(-(-(last - first) // STEP) * STEP, []).append((first, last))
            continue
        block = max(STEP, min(BLOCK, SCORES // (heads * (last - first))))
        for start in range(first, last, block):
            stop = min(start + block, last)
            jobs.append(_job([list(range(start, stop))], [list(range(first, stop))], None, device))
    for documents in short.values():
        size = max(last - first for first, last in documents)
        for some in _some(documents, max(1, SCORES // (heads * size * size))):
            runs = [[*range(first, last), *[last - 1] * (size - last + first)] for first, last in some]
            real = [[1.0] * (last - first) + [0.0] * (size - last + first) for first, last in some]
            padded = any(0.0 in row for row in real)
            jobs.append(_job(runs, runs, real if padded else None, device))
    return jobs


def _some(documents: list[tuple[int, int]], count: int) -> list[list[tuple[int, int]]]:
    return [documents[start : start + count] for start in range(0, len(documents), count)]


def _job(runs: list[list[int]], keys: list[list[int]], real: list[list[float]] | None, device: torch.device) -> TileJob:
    tokens, key_tokens = torch.tensor(runs), torch.tensor(keys)
    mask = None if real is None else torch.tensor(real).view(-1, 1, 1).to(device, non_blocking=True)
    places = tokens.view(-1).to(device, non_blocking=True)
    key_places = places if keys is runs else key_tokens.view(-1).to(device, non_blocking=True)
    return TileJob(places, key_places, mask, len(runs), len(runs[0]), len(keys[0]))


def attend(
    query: Tensor, key: Tensor, value: Tensor, jobs: Sequence[TileJob], scale: float, run: OpRunner = EAGER
) -> Tensor:
    """Map `query [T, H, D]`, `key` and `value [T, K, D]` to `[T, H, D]`."""
    found: Tensor = _Tiles.apply(query, key, value, jobs, scale, run)
    return found


class _Tiles(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, jobs: Sequence[TileJob], scale: float, run: OpRunner
    ) -> Tensor:
        groups = key.shape[1]
        out = torch.zeros_like(query)
        lse = query.new_zeros((*query.shape[:2], 1), dtype=torch.float32)
        for job in jobs:
            q, k, v = _tall(query, job, groups), _keys(key, job), _keys(value, job)
            likely, top = run.open(ops_reference.softmax, _product(q, k), job.queries, scale, q.dtype)
            _put(out, likely @ v, job, groups)
            _put(lse, top, job, groups)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.jobs, ctx.scale, ctx.run = jobs, scale, run
        return out

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        found = gradients(outer, query, key, value, out, lse, ctx.jobs, ctx.scale, ctx.run)
        return *found, None, None, None


def gradients(
    outer: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    jobs: Sequence[TileJob],
    scale: float,
    run: OpRunner,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by query, key and value, of attention whose output is `out [T, H, D]`; `lse [T, H, 1]`
    float32 is the logarithm of each softmax's sum."""
    groups = key.shape[1]
    # Documents of a job don't overlap, but the blocks of a long one add to the same keys: those in float32.
    by_query = torch.zeros_like(query)
    by_key, by_value = (torch.zeros_like(states, dtype=torch.float32) for states in (key, value))
    delta = (outer.float() * out).sum(-1, keepdim=True)
    for job in jobs:
        q, g, k, v = _tall(query, job, groups), _tall(outer, job, groups), _keys(key, job), _keys(value, job)
        sums = (_tall(states, job, groups) for states in (lse, delta))
        real = None if job.real is None else _real(job, groups, query.shape[1])
        likely, inner = run.open(
            ops_reference.softmax_backward, _product(q, k), g @ v.transpose(-2, -1), *sums, real, job.queries, scale
        )
        _put(by_query, inner @ k, job, groups)
        for total, part in ((by_key, inner.transpose(-2, -1) @ q), (by_value, likely.transpose(-2, -1) @ g)):
            # [count * K, keys, D] -> [count * keys, K, D]; padding adds zeros to a real token
            rows = part.view(job.count, groups, job.keys, -1).transpose(1, 2).flatten(0, 1)
            total.index_add_(0, job.key_tokens, rows.float())
    return by_query, by_key.to(key.dtype), by_value.to(value.dtype)


def _tall(states: Tensor, job: TileJob, groups: int) -> Tensor:
    """Return queries `[T, H, D]` of a job as `[count * K, heads of a group * queries, D]`."""
    rows = states[job.tokens].view(job.count, job.queries, groups, -1, states.shape[-1])
    return rows.permute(0, 2, 3, 1, 4).reshape(job.count * groups, -1, states.shape[-1])


def _keys(states: Tensor, job: TileJob) -> Tensor:
    """Return keys or values `[T, K, D]` of a job as `[count * K, keys, D]`."""
    rows = states[job.key_tokens].view(job.count, job.keys, *states.shape[1:])
    return rows.transpose(1, 2).flatten(0, 1)


def _real(job: TileJob, groups: int, heads: int) -> Tensor:
    """Return [count * K, heads of a group * queries, 1] zeros where a query is padding."""
    assert job.real is not None
    rows = job.real.view(job.count, 1, 1, job.queries, 1)
    return rows.expand(-1, groups, heads // groups, -1, -1).reshape(job.count * groups, -1, 1)


def _product(q: Tensor, k: Tensor) -> Tensor:
    """Return scores `[count * K, heads of a group * queries, keys]` in float32."""
    if q.is_cuda and q.dtype != torch.float32:
        return torch.bmm(q, k.transpose(-2, -1), out_dtype=torch.float32)
    return q.float() @ k.float().transpose(-2, -1)


def _put(total: Tensor, part: Tensor, job: TileJob, groups: int) -> None:
    """Write `[count * K, heads of a group * queries, D]` to the job's tokens of `total [T, H, D]`."""
    rows = part.view(job.count, groups, -1, job.queries, part.shape[-1]).permute(0, 3, 1, 2, 4)
    rows = rows.reshape(job.count * job.queries, total.shape[1], part.shape[-1]).to(total.dtype)
    if job.real is None:
        total[job.tokens] = rows
    else:  # padding adds nothing
        total.index_add_(0, job.tokens, rows * job.real.to(rows.dtype))
