"""The language model head, a tile of tokens by vocabulary at a time: logits are computed, used and discarded in cache.

Gemma 4 caps its logits, `z' = c tanh(z / c)` with c = 30, and that makes one pass over the vocabulary enough. A capped
logit never exceeds c, so `exp(z' - c)` neither overflows nor vanishes in float32 (it is at least e^-60), no row maximum
has to be known first, and the gradient of a row can be summed without its normaliser and divided once at the end:

    nll = log S - log e_y            e_v = exp(z'_v - c),  S = sum of e_v,  p_v = e_v / S,  slope_v = dz'_v / dz_v
    dh  = 1/S sum_{v != y} e_v slope_v W_v + (p_y - 1) slope_y W_y

Two products with the head per token instead of the three of a loss that makes its gradient in the backward pass. The
label's own term is added apart, in float32: `p_y - 1` of a confident token would drown in the rounding of `p_y`.

With x = -2 z / c and s = sigmoid(x): z' - c = -2 c s and slope = 4 s (1 - s). One sigmoid and one power of two replace
the tanh and the exp, which cost four times as much on a CPU; the error, 2e-6 in a probability, is far below that of
bfloat16 logits. Float32 weights take the exact road. Without a cap the running maximum of flash attention is used.

On a GPU with Triton all of that, for capped bfloat16 logits, is one kernel between the products (`head_triton`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels.lora_casts import widens
from gemma_ops.modeling.triton_launch import kernels, triton_here

LARGEST_CAP = 40.0
"""Largest soft cap: `exp(-2 c)` must stay a normal float32."""
_CPU_TILE = (512, 512)
"""Tokens by vocabulary entries of a tile on a CPU: two float32 copies of it and the head's rows stay in the
second-level cache. Measured on 262,144 entries of width 384, AVX-512: 8.7 ns a logit, of which 7.3 are the two
products."""
_GPU_TILE = (2048, 8192)
"""Tokens by vocabulary entries of a tile on a GPU: 160 MiB of buffers, large enough that launches hide behind the
products."""
_FOLDED_TILE = (4096, 16_384)
"""Tokens by vocabulary entries of a tile where Triton folds it: 128 MiB, the logits alone, with three launches a tile
and 16 tiles for 262,144 entries. Wide rather than tall: the sums of gradients are read and written once a tile, and
their buffers grow with the tokens."""


@dataclass
class Scores:
    """Results of one pass over the vocabulary for N tokens."""

    nll: Tensor
    """[N] float32, minus the log-probability of each label; infinite where a label is no entry of the vocabulary."""
    total: Tensor
    """[N] float32, the sum of `exp(z' - shift)` over the vocabulary."""
    shift: Tensor | float
    """Value that was subtracted from the logits before the exponential: the cap, zero, or [N] maxima."""
    top: Tensor | None
    """[N] bool, whether no entry has a larger logit than the label; None when not asked for."""
    gradient: Tensor | None
    """[N, H] in the type of the hidden states, the derivative of `nll`; None when not asked for."""


def tile_of(device: torch.device, *, folded: bool = False) -> tuple[int, int]:
    """Return the tokens and vocabulary entries computed at once; `folded` where Triton's kernel needs no other
    buffer."""
    if folded:
        return _FOLDED_TILE
    return _CPU_TILE if device.type == "cpu" else _GPU_TILE


class Tile:
    """Buffers of one tile, and the logits' function and slope on it. With `fold`, which stands for `powers` and
    `sloped`, only the logits have a buffer."""

    def __init__(self, tokens: int, entries: int, like: Tensor, softcap: float | None, fold: Any = None) -> None:
        self.softcap = softcap
        self.fold = fold
        self.exact = like.dtype == torch.float32
        size = tokens * entries
        self._logits = torch.empty(size, dtype=like.dtype, device=like.device)
        self._powers = torch.empty(0 if fold else size, dtype=torch.float32, device=like.device)
        needs_inner = softcap is not None and not self.exact and not fold
        self._inner = torch.empty(size if needs_inner else 0, dtype=torch.float32, device=like.device)

    @property
    def shift(self) -> float:
        """Return what is subtracted from a soft-capped logit before the exponential."""
        return 0.0 if self.exact or self.softcap is None else self.softcap

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Compute `hidden [n, H] @ weight [v, H].T`, scaled as `powers` wants it, in this tile's buffer."""
        z = self._view(self._logits, hidden, weight)
        scale = 1.0 if self.softcap is None else (1 if self.exact else -2) / self.softcap
        return torch.addmm(z, hidden, weight.t(), beta=0, alpha=scale, out=z)

    def powers(self, z: Tensor, shift: Tensor | None = None) -> Tensor:
        """Compute `exp(z' - shift)` in float32; overwrites `z` with what `slope` needs. `shift [n]` only without a
        cap."""
        e = self._powers[: z.numel()].view(z.shape)
        if self.softcap is None:
            e.copy_(z)
            return e.exp_() if shift is None else e.sub_(shift[:, None]).exp_()
        if self.exact:
            return torch.mul(z.tanh_(), self.softcap, out=e).exp_()
        s = self._inner[: z.numel()].view(z.shape)
        s.copy_(z).sigmoid_()
        return torch.mul(s, -2 * self.softcap * math.log2(math.e), out=e).exp2_()

    def sloped(self, e: Tensor, z: Tensor) -> Tensor:
        """Compute `e * dz'/dz`, except for the factor `slope_unit`, in the type of the head and over the buffer of
        `z`."""
        if self.softcap is None:
            return z.copy_(e)
        if self.exact:
            return torch.ops.aten.tanh_backward.grad_input(e, z, grad_input=z)
        s = self._inner[: z.numel()].view(z.shape)
        return z.copy_(torch.ops.aten.sigmoid_backward.grad_input(e, s, grad_input=e))

    @property
    def slope_unit(self) -> float:
        """Return the constant factor that `sloped` leaves out."""
        return 1.0 if self.exact or self.softcap is None else 4.0

    def slope_at(self, e: Tensor) -> Tensor:
        """Return `dz'/dz` of single logits, from their powers."""
        if self.softcap is None:
            return torch.ones_like(e)
        capped = (e.log() + self.shift) / self.softcap
        return 1 - capped * capped

    @staticmethod
    def _view(buffer: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        return buffer[: len(hidden) * len(weight)].view(len(hidden), len(weight))


def score_tiles(
    hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None, *, gradient: bool, top: bool
) -> Scores:
    """Run one pass over the vocabulary for `hidden [N, H]`, `weight [V, H]`, `labels [N]`; see `Scores`."""
    count, width = hidden.shape
    fold = _fold(weight, softcap)
    tokens, entries = tile_of(hidden.device, folded=fold is not None)
    tokens, entries = min(tokens, max(count, 1)), min(entries, len(weight))
    tile = Tile(tokens, entries, weight, softcap, fold)
    labels = labels.contiguous()
    fresh = {"dtype": torch.float32, "device": hidden.device}
    found = Scores(
        nll=torch.empty(count, **fresh),
        total=torch.empty(count, **fresh),
        shift=tile.shift if softcap is not None else torch.empty(count, **fresh),
        top=torch.empty(count, dtype=torch.bool, device=hidden.device) if top else None,
        gradient=torch.empty_like(hidden) if gradient else None,
    )
    partial = None if widens(weight) else torch.empty(tokens, width, dtype=weight.dtype, device=hidden.device)
    summed = torch.empty(tokens, width, **fresh)
    for start in range(0, count, tokens):
        rows = slice(start, min(start + tokens, count))
        _score_rows(hidden[rows], weight, labels[rows], tile, entries, found, rows, partial, summed)
    return found


def _score_rows(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    tile: Tile,
    entries: int,
    found: Scores,
    rows: slice,
    partial: Tensor | None,
    summed: Tensor,
) -> None:
    count = len(hidden)
    summed = summed[:count].zero_()
    total = torch.zeros(count, dtype=torch.float32, device=hidden.device)
    label_power, best = torch.zeros_like(total), torch.zeros_like(total)
    peak = torch.full_like(total, -torch.inf) if tile.softcap is None else None
    # Without a cap the label may lie so far below the peak that its power is no number of float32: its logit is kept.
    label_logit = torch.full_like(total, -torch.inf)
    for start in range(0, len(weight), entries):
        part = weight[start : start + entries]
        z = tile.logits(hidden, part)
        if tile.fold is not None:
            raised = None if found.top is None else best
            tile.fold(z, labels, start, tile.softcap, total, label_power, raised, slopes=found.gradient is not None)
            if found.gradient is not None:
                _add(summed, z, part, partial)
            continue
        if peak is not None:
            higher = torch.maximum(peak, z.amax(1).float())
            fade = torch.exp(peak - higher)
            for sums in (total, label_power, best):
                sums.mul_(fade)
            summed.mul_(fade[:, None])
            peak = higher
        local = labels - start
        inside = (local >= 0) & (local < len(part))
        column = local.clamp(0, len(part) - 1)[:, None]
        if peak is not None:
            label_logit = torch.where(inside, z.gather(1, column)[:, 0].float(), label_logit)
        e = tile.powers(z, peak)
        total += e.sum(1)
        if found.top is not None:
            best = torch.maximum(best, e.amax(1))
        own = e.gather(1, column) * inside[:, None]
        label_power += own[:, 0]
        if found.gradient is not None:
            e.scatter_add_(1, column, own.neg_())  # exactly zero at the label, which is added apart
            _add(summed, tile.sloped(e, z), part, partial)
    found.nll[rows] = total.log() + (-label_power.log() if peak is None else peak - label_logit)
    found.total[rows] = total
    if peak is not None and isinstance(found.shift, Tensor):
        found.shift[rows] = peak
    if found.top is not None:
        found.top[rows] = label_power >= best
    if found.gradient is not None:
        missing = (label_power - total) / total * tile.slope_at(label_power)
        label_rows = weight[labels.clamp(0, len(weight) - 1)].float()
        summed.mul_((tile.slope_unit / total)[:, None]).addcmul_(missing[:, None], label_rows)
        found.gradient[rows] = summed


def _add(summed: Tensor, slopes: Tensor, part: Tensor, partial: Tensor | None) -> None:
    """Add `slopes [n, v] @ part [v, H]` to `summed`, in float32; `partial`, at least `[n, H]`, takes the product
    otherwise."""
    if partial is not None:
        summed += torch.mm(slopes, part, out=partial[: len(summed)])
    elif len(summed) > 1:
        torch.ops.aten.addmm.dtype_out(summed, slopes, part, torch.float32, out=summed)
    else:  # a row is taken for a bias, which cuBLASLt adds in ways of its own
        summed += torch.mm(slopes, part)


def _fold(weight: Tensor, softcap: float | None) -> Any:
    """Return Triton's kernel for a tile (`head_triton.fold`), or None where torch's operations have to do."""
    if softcap is None or weight.dtype != torch.bfloat16 or not triton_here(weight):
        return None
    kernel = _kernel()
    return None if kernel is None else kernel.fold


_kernel = partial(kernels, "gemma_ops.kernels.head_triton")


def weight_gradient(
    hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None, scores: Scores, outer: Tensor
) -> Tensor:
    """Return the derivative `[V, H]` of `sum(outer * nll)` by the head, whose logits are recomputed: for full
    fine-tuning.

    `outer [N]` float32. Each tile is one product over all tokens, added up in float32.
    """
    tokens, entries = tile_of(hidden.device)
    tokens, entries = min(tokens, max(len(hidden), 1)), min(entries, len(weight))
    tile = Tile(tokens, entries, weight, softcap)
    result = torch.empty_like(weight)
    scale = outer / scores.total
    for start in range(0, len(weight), entries):
        part = weight[start : start + entries]
        summed = torch.zeros(part.shape, dtype=torch.float32, device=weight.device)
        for first in range(0, len(hidden), tokens):
            rows = slice(first, first + tokens)
            z = tile.logits(hidden[rows], part)
            e = tile.powers(z, scores.shift[rows] if isinstance(scores.shift, Tensor) else None)
            e.mul_(scale[rows, None])
            local = labels[rows] - start
            inside = (local >= 0) & (local < len(part))
            e.scatter_add_(1, local.clamp(0, len(part) - 1)[:, None], (-outer[rows] * inside)[:, None])
            summed += torch.mm(tile.sloped(e, z).t(), hidden[rows])
        result[start : start + entries] = summed.mul_(tile.slope_unit)
    return result
