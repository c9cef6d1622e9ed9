"""The step and the offset of a group of weights that leave the least weighted squared error.

For trial steps the nearest codes are found, and to these codes the best step (and offset) by least squares, whose error
has a closed form: with `w` the importance, `x` the weights and `v` the levels of the codes, the best step is
Σwxv / Σwv², and leaves Σwx² - (Σwxv)² / Σwv². llama.cpp's encoders work alike (ggml-quants.c, `make_qx_quants`,
`make_qkx3_quants`) with fewer trials and without going back to the codes.
"""

from __future__ import annotations

import torch

from gemma_ops.ggml.lattices import Lattice, nearest_levels

_NEAR = [1 + 0.025 * place for place in range(-10, 7)]
"""Trial steps as multiples of the one that lays the largest weight on the outermost level."""
_SPANS = [0.05 * place for place in range(-16, 17, 2)]
"""Trial ranges of the codes, added to the number of steps between the smallest and the largest weight."""


def search_steps(x: torch.Tensor, w: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """Return the best step of each group, (…) for weights `x` (…, group) whose importance `w` broadcasts against it."""
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best = torch.zeros_like(largest)
    most = torch.full_like(largest, -1.0)
    for divisor in _divisors(lattice):
        step, gain = _refit(x, w, nearest_levels(x, largest / divisor, None, lattice))
        better = gain > most
        most, best = torch.where(better, gain, most), torch.where(better, step, best)
    step, gain = _refit(x, w, nearest_levels(x, best, None, lattice))
    return torch.where(gain > most, step, best).squeeze(-1)


def search_steps_and_offsets(x: torch.Tensor, w: torch.Tensor, lattice: Lattice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best step and offset of each group, both at least zero; arguments as of `search_steps`."""
    low = x.amin(-1, keepdim=True).clamp_max_(0.0)
    span = x.amax(-1, keepdim=True).clamp_min_(0.0) - low
    best_step, best_offset = span / lattice.high, -low
    most = torch.full_like(low, -torch.inf)
    sums = (w * x).sum(-1, keepdim=True), w.expand_as(x).sum(-1, keepdim=True)
    # The spans first, then twice the best so far, with the codes that are nearest now.
    for extra in [*_SPANS, None, None]:
        tried = (best_step, best_offset) if extra is None else (span / (lattice.high + extra), -low)
        step, offset, gain = _refit_both(x, w, nearest_levels(x, *tried, lattice), sums)
        better = gain > most
        most = torch.where(better, gain, most)
        best_step, best_offset = torch.where(better, step, best_step), torch.where(better, offset, best_offset)
    return best_step.squeeze(-1), best_offset.squeeze(-1)


def _divisors(lattice: Lattice) -> list[float]:
    """Return the levels, in steps, on which the group's largest weight is tried: about each end of the range, and,
    where levels are few and even, each whole number, on which weights lie that came from this lattice."""
    ends = [end * factor for end in lattice.extremes for factor in _NEAR]
    inner = range(1, -lattice.low) if lattice.levels is None and lattice.high < 16 else ()
    return ends + [float(sign * level) for level in inner for sign in (1, -1)]


def _refit(x: torch.Tensor, w: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best step to the levels and by how much it lowers the weighted squared error below that of zeros."""
    weighted = w * levels
    both = (weighted * x).sum(-1, keepdim=True)
    square = (weighted * levels).sum(-1, keepdim=True)
    step = torch.where(square > 0, both / square, 0.0)
    return step, step * both


def _refit_both(
    x: torch.Tensor, w: torch.Tensor, levels: torch.Tensor, sums: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the best step and offset to the levels, and by how much they lower the error; `sums` are Σwx and Σw."""
    total, count = sums
    weighted = w * levels
    first = weighted.sum(-1, keepdim=True)
    both = (weighted * x).sum(-1, keepdim=True)
    square = (weighted * levels).sum(-1, keepdim=True)
    step, offset = solve_step_and_offset(square, first, count, both, total)
    gain = 2 * step * (both + offset * first) - step * step * square - offset * (offset * count + 2 * total)
    return step, offset, gain


def solve_step_and_offset(
    square: torch.Tensor, first: torch.Tensor, count: torch.Tensor, both: torch.Tensor, total: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the step a and the offset o, both at least zero, of least Σw(x - av + o)², from `square` Σwv², `first`
    Σwv, `count` Σw, `both` Σwxv and `total` Σwx; for an offset with levels of its own, Σwvu, Σwu² and Σwxu in place of
    `first`, `count` and `total`."""
    determinant = count * square - first * first
    sound = determinant > 1e-9 * count * square
    step = torch.where(sound, (count * both - total * first) / determinant, 0.0)
    offset = torch.where(sound, (first * both - square * total) / determinant, 0.0)
    # Where the best offset is below zero, the best step without one.
    alone = ~sound | (offset < 0)
    step = torch.where(alone, torch.where(square > 0, both / square, 0.0), step).clamp_min(0.0)
    return step, torch.where(alone, 0.0, offset)
