"""Elementwise arithmetic between a layer's products: plain functions over whole tensors, forward and backward.

They have no autograd of their own, so that the Functions in `ops_autograd` and `mixture` decide what is kept.
Everything is computed in float32 and rounded once, at the end. `ops_runner` runs them, as they are, compiled, or as
Triton kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def norm(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return RMSNorm over the last dimension, and the reciprocal root mean square [..., 1] in float32."""
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    rstd = torch.rsqrt(mean + eps)
    y = x * rstd  # float32, whatever x is
    if weight is not None:
        y = y * weight.float()
    return y.to(x.dtype), rstd


def norm_backward(outer: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> Tensor:
    """Return the gradient by `norm`'s input."""
    g = outer.float() if weight is None else outer * weight.float()
    unit = x * rstd
    return ((g - unit * (g * unit).mean(-1, keepdim=True)) * rstd).to(x.dtype)


def scale_backward(outer: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """Return the gradient by `norm`'s weight, float32."""
    return (outer * (x * rstd)).flatten(0, -2).sum(0)


def add_norm(
    residual: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return `(residual + norm(x)) * scale`, and the norm's reciprocal root mean square."""
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    rstd = torch.rsqrt(mean + eps)
    y = x * rstd
    if weight is not None:
        y = y * weight.float()
    y = y + residual
    if scale is not None:
        y = y * scale.float()
    return y.to(residual.dtype), rstd


def add_norm_backward(
    outer: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients by `add_norm`'s residual and x."""
    g = outer.float() if scale is None else outer * scale.float()
    by_residual = g.to(outer.dtype)
    if weight is not None:
        g = g * weight.float()
    unit = x * rstd
    return by_residual, ((g - unit * (g * unit).mean(-1, keepdim=True)) * rstd).to(x.dtype)


def rotated(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return heads `[B, T, H, D]` normed and rotated by their positions (`cos`, `sin` `[B, T, D]`), and the norm's
    `rstd`."""
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    rstd = torch.rsqrt(mean + eps)
    y = x * rstd
    if weight is not None:
        y = y * weight.float()
    half = x.shape[-1] // 2
    cos, sin = cos.float().unsqueeze(2), sin.float().unsqueeze(2)
    first, second = y[..., :half], y[..., half:]
    turned = torch.cat(
        (
            first * cos[..., :half] - second * sin[..., :half],
            second * cos[..., half:] + first * sin[..., half:],
        ),
        -1,
    )
    return turned.to(x.dtype), rstd


def rotated_backward(
    outer: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients by `rotated`'s x and, float32, by its normed input before the weight (for the weight's
    own)."""
    half = x.shape[-1] // 2
    cos, sin = cos.float().unsqueeze(2), sin.float().unsqueeze(2)
    first, second = outer[..., :half], outer[..., half:]
    back = torch.cat(
        (
            first * cos[..., :half] + second * sin[..., half:],
            second * cos[..., half:] - first * sin[..., :half],
        ),
        -1,
    )
    g = back if weight is None else back * weight.float()
    unit = x * rstd
    return ((g - unit * (g * unit).mean(-1, keepdim=True)) * rstd).to(x.dtype), back


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """Compute `gelu(gate) * up`, in the tanh form that Gemma 4 uses."""
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


def geglu_backward(outer: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by gate and up, and `geglu` once more, for the product that read it."""
    active = torch.nn.functional.gelu(gate, approximate="tanh")
    return torch.ops.aten.gelu_backward(outer * up, gate, approximate="tanh"), outer * active, active * up


def softmax(scores: Tensor, queries: int, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the causal softmax of float32 `scores [N, heads * queries, keys]`, the last query at the last key, in
    `dtype`, and its logarithm `[N, heads * queries, 1]`."""
    scores = (scores * scale).masked_fill(_later(scores, queries), -torch.inf)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    return torch.exp(scores - lse).to(dtype), lse


def softmax_backward(
    scores: Tensor, outer: Tensor, lse: Tensor, delta: Tensor, real: Tensor | None, queries: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the softmax once more, and the gradient by `scores`, in the type of `outer`, the gradient by it. `delta`
    is the sum of output times gradient per query; `real` is zero for queries of padding."""
    likely = torch.exp((scores * scale).masked_fill(_later(scores, queries), -torch.inf) - lse)
    if real is not None:
        likely = likely * real
    return likely.to(outer.dtype), (likely * (outer.float() - delta) * scale).to(outer.dtype)


def _later(scores: Tensor, queries: int) -> Tensor:
    """Return [heads * queries, keys] booleans of which keys come after the query."""
    rows, keys = scores.shape[-2:]
    place = torch.arange(rows, device=scores.device) % queries + (keys - queries)
    return torch.arange(keys, device=scores.device)[None] > place[:, None]


def weighed_sum(rows: Tensor, back: Tensor, weights: Tensor | None, count: int) -> Tensor:
    """Compute `out[t] = sum over j of weights[t, j] * rows[back[t * count + j]]`: `rows [n * count, H]` -> `[n, H]`,
    added up in float32; without `weights`, all are one."""
    taken = rows[back].view(-1, count, rows.shape[-1]).float()
    return (taken if weights is None else taken * weights.float().unsqueeze(-1)).sum(1).to(rows.dtype)


def weighed_geglu_backward(outer: Tensor, both: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `weight * outer` through GeGLU of `both [m, 2 W]` (gate, then up): the gradient by
    `both`, and float32 [m] that by `weight`, for `outer [m, W]` and `weight [m]` float32."""
    gate, up = both.float().chunk(2, -1)
    g = outer.float()
    active = torch.nn.functional.gelu(gate, approximate="tanh")
    by_weight = (g * active * up).sum(-1)
    g = g * weight.unsqueeze(-1)
    by_gate = torch.ops.aten.gelu_backward(g * up, gate, approximate="tanh")
    return torch.cat((by_gate, g * active), -1).to(both.dtype), by_weight
