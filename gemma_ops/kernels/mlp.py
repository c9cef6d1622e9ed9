"""The dense MLP of a layer as one autograd Function, with a choice of what it keeps for the backward pass.

By default it keeps its input, gate and up: what GeGLU made of them is made again, elementwise. With `recompute` it
keeps its input alone, and the backward pass takes the products with gate and up once more. A 4-bit weight is
dequantized once in the forward and once in the backward pass either way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import lora_linears, ops_reference
from gemma_ops.kernels.lora_casts import low
from gemma_ops.kernels.lora_linears import LoraPart
from gemma_ops.kernels.ops_runner import OpRunner


def mlp(x: Tensor, gate: Any, up: Any, down: Any, *, recompute: bool, run: OpRunner) -> Tensor | None:
    """Compute `down(gelu(gate(x)) * up(x))` of `x [..., H]`, or return None where the modules have to run by
    themselves."""
    parts = lora_linears.read_factors((gate, up, down), x)
    if parts is None:
        return None
    dtype = lora_linears.factor_type(parts[0])
    wide, narrow = lora_linears.factors(parts[:2]), lora_linears.factors(parts[2:])
    found: Tensor = _Mlp.apply(x.to(dtype), parts, len(wide), recompute, run, *wide, *narrow)
    return found


class _Mlp(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, parts: list[LoraPart], wide: int, recompute: bool, run: OpRunner, *given: Tensor
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            (gate, up), thin = lora_linears.project(flat, parts[:2], given[:wide])
            hidden = _one(run(ops_reference.geglu, gate[None], up[None]))
            (out,), thin_down = lora_linears.project(hidden, parts[2:], given[wide:])
        ctx.parts, ctx.wide, ctx.recompute, ctx.run, ctx.shape = parts, wide, recompute, run, x.shape
        kept = (None, None, None) if recompute else (gate, up, thin)
        needs_x = recompute or wide
        ctx.save_for_backward(flat if needs_x else None, *kept, thin_down, *given)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        flat, gate, up, thin, thin_down, *given = ctx.saved_tensors
        parts, wide, run = ctx.parts, ctx.wide, ctx.run
        dense = None
        if ctx.recompute:
            dense = [part.dense() for part in parts[:2]]
            held = [
                LoraPart(weight, part.bias, part.down, part.up, part.scale)
                for weight, part in zip(dense, parts[:2], strict=True)
            ]
            (gate, up), thin = lora_linears.project(flat, held, given[:wide])
        rows = outer.reshape(-1, outer.shape[-1])
        down = parts[2]
        by_hidden = rows @ down.dense()
        narrow = given[wide:]
        if narrow:
            first, second = narrow
            by_thin = lora_linears.scaled(rows, low(second, rows.dtype), down.scale)
            by_hidden.addmm_(by_thin, low(first, rows.dtype))
        by_gate, by_up, hidden = (
            _one(part) for part in run(ops_reference.geglu_backward, by_hidden[None], gate[None], up[None])
        )
        by_narrow: list[Any] = []
        if narrow:
            by_narrow = [
                lora_linears.learned(by_thin.t(), hidden, 1.0, first.dtype),
                lora_linears.learned(rows.t(), thin_down, down.scale, second.dtype),
            ]
        del hidden, by_hidden, gate, up
        by_x, by_wide = lora_linears.project_backward(
            (by_gate, by_up), flat, thin, parts[:2], given[:wide], by_input=ctx.needs_input_grad[0], dense=dense
        )
        return None if by_x is None else by_x.view(ctx.shape), None, None, None, None, *by_wide, *by_narrow


def _one(states: Tensor) -> Tensor:
    return states[0]
