"""Norms, rotary embedding and GeGLU that keep little for the backward pass; the arithmetic is in `ops_reference`.

transformers' RMSNorm leaves three float32 copies of its input in the graph, and its rotary embedding four more of
queries and keys. Here a norm keeps its input and one number a token, the rotary embedding nothing of its own, and GeGLU
its two inputs. Results agree with transformers' to rounding: float32 1e-6, bfloat16 one rounding instead of up to five.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import ops_reference
from gemma_ops.kernels.ops_runner import EAGER, OpRunner


def norm(x: Tensor, weight: Tensor | None, eps: float, run: OpRunner = EAGER) -> Tensor:
    """Apply Gemma 4's RMSNorm to `[..., D]`; `weight` is None where the model norms without scale (values, router)."""
    if x.ndim < 3:  # the bodies count rows and tokens
        return norm(x[None], weight, eps, run)[0]
    found: Tensor = _Norm.apply(x, weight, eps, run)
    return found


def add_norm(
    residual: Tensor, x: Tensor, weight: Tensor | None, eps: float, scale: Tensor | None = None, run: OpRunner = EAGER
) -> Tensor:
    """Compute `(residual + norm(x)) * scale`, `[B, T, D]`: how a layer's parts join the residual stream. `scale` is a
    constant `[1]`."""
    if residual.dtype != x.dtype:  # under autocast, with a stream in float32
        joined = residual + norm(x, weight, eps, run)
        return joined if scale is None else joined * scale
    found: Tensor = _AddNorm.apply(residual, x, weight, scale, eps, run)
    return found


def rotated(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float, run: OpRunner = EAGER) -> Tensor:
    """Norm queries or keys `[B, T, H, D]`, then rotate them by `cos` and `sin` `[B, T, D]` of their positions."""
    found: Tensor = _Rotated.apply(x, weight, cos, sin, eps, run)
    return found


def geglu(gate: Tensor, up: Tensor, run: OpRunner = EAGER) -> Tensor:
    """Compute `gelu(gate) * up`, `[..., D]`."""
    found: Tensor = _GeGLU.apply(gate, up, run)
    return found


class _Norm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float, run: OpRunner) -> Tensor:
        y, rstd = run(ops_reference.norm, x, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.run = run
        return y

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        by_x = ctx.run(ops_reference.norm_backward, outer, x, weight, rstd) if ctx.needs_input_grad[0] else None
        return by_x, _by_weight(ctx.needs_input_grad[1], outer, x, weight, rstd), None, None


class _AddNorm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, eps: float, run: OpRunner
    ) -> Tensor:
        y, rstd = run(ops_reference.add_norm, residual, x, weight, scale, eps)
        ctx.save_for_backward(x, weight, scale, rstd)
        ctx.run = run
        return y

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, rstd = ctx.saved_tensors
        by_residual, by_x = ctx.run(ops_reference.add_norm_backward, outer, x, weight, scale, rstd)
        by_weight = _by_weight(ctx.needs_input_grad[2], by_residual, x, weight, rstd)
        return by_residual, by_x, by_weight, None, None, None


class _Rotated(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float, run: OpRunner
    ) -> Tensor:
        y, rstd = run(ops_reference.rotated, x, weight, cos, sin, eps)
        ctx.save_for_backward(x, weight, cos, sin, rstd)
        ctx.run = run
        return y

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin, rstd = ctx.saved_tensors
        run = (
            EAGER if ctx.needs_input_grad[1] else ctx.run
        )  # only the plain body gives what the weight's gradient needs
        by_x, back = run(ops_reference.rotated_backward, outer, x, weight, cos, sin, rstd)
        by_weight = _by_weight(ctx.needs_input_grad[1], back, x, weight, rstd)
        return by_x, by_weight, None, None, None, None


class _GeGLU(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, run: OpRunner) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.run = run
        found: Tensor = run(ops_reference.geglu, gate, up)
        return found

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        by_gate, by_up, _ = ctx.run(ops_reference.geglu_backward, outer, *ctx.saved_tensors)
        return by_gate, by_up, None


def _by_weight(needed: bool, outer: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> Tensor | None:
    """Return the gradient of a norm's weight, which only full fine-tuning asks for."""
    if not needed or weight is None:
        return None
    return ops_reference.scale_backward(outer, x, rstd).to(weight.dtype)
