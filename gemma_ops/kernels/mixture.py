"""A mixture of frozen experts, dense or in 4 bits, as one autograd Function that keeps only the outputs of gate and up.

transformers weighs and adds up what the experts return in float32 copies of `tokens x chosen` rows, each kept for the
backward pass. Here a token's rows are weighed and added where they are read. The gradient by the router's weights needs
no output of the experts: it is `<outer, W h> = <W^T outer, h>`, and `W^T outer` is at hand. A 4-bit stack is
dequantized where it is multiplied, once forward and once backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gemma_ops.kernels import ops_reference
from gemma_ops.kernels.lora_linears import hooked
from gemma_ops.kernels.ops_runner import OpRunner
from gemma_ops.modeling import experts as stacks


def mixture(
    experts: Any, hidden: Tensor, index: Tensor, weights: Tensor, run: OpRunner, *, recompute: bool
) -> Tensor | None:
    """Return the output of the experts `index [n, k]`, weighted by `weights [n, k]`, for `hidden [n, H]`; None where
    the module has to run by itself: experts that learn, are adapted or hooked. `recompute` keeps the inputs alone."""
    if not _frozen(experts):
        return None
    found: Tensor = _Mixture.apply(hidden, weights, index, experts, run, recompute)
    return found


def _frozen(experts: Any) -> bool:
    """True if both stacks are plain, dense or 4-bit, and neither learns nor is adapted or hooked."""
    plain = type(experts).__name__ in ("Experts4bit", "Gemma4TextExperts") and not hooked(experts)
    return plain and not any(getattr(experts, name).requires_grad for name in stacks.STACKS)


class _Mixture(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weights: Tensor, index: Tensor, experts: Any, run: OpRunner, recompute: bool
    ) -> Tensor:
        chosen = index.shape[-1]
        order, back, ends = stacks.route(index, experts.num_experts)
        both = _both(experts, hidden, order, ends, chosen)
        out = stacks.grouped(_geglu(both, run), stacks.dense(experts, "down_proj").transpose(-2, -1), ends)
        ctx.save_for_backward(hidden if recompute else None, None if recompute else both, weights, order, back, ends)
        ctx.experts, ctx.run, ctx.chosen = experts, run, chosen
        found: Tensor = run.open(ops_reference.weighed_sum, out, back, weights, chosen)
        return found.to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Any, ...]:
        hidden, both, weights, order, back, ends = ctx.saved_tensors
        experts, chosen, run = ctx.experts, ctx.chosen, ctx.run
        if both is None:
            both = _both(experts, hidden, order, ends, chosen)
        rows = outer.index_select(0, order // chosen).to(both.dtype)
        inner = stacks.grouped(rows, stacks.dense(experts, "down_proj"), ends)
        del rows
        by_both, by_sorted = run.open(
            ops_reference.weighed_geglu_backward, inner, both, weights.reshape(-1)[order].float()
        )
        del both, inner
        by_rows = stacks.grouped(by_both, stacks.dense(experts, "gate_up_proj"), ends)
        by_hidden = run.open(ops_reference.weighed_sum, by_rows, back, None, chosen)
        by_weights = by_sorted[back].view(weights.shape).to(weights.dtype)
        return by_hidden.to(outer.dtype), by_weights, None, None, None, None


def _both(experts: Any, hidden: Tensor, order: Tensor, ends: Tensor, chosen: int) -> Tensor:
    """Return gate and up of every (token, expert) pair, sorted by expert: `[n * k, 2 W]`."""
    stack = stacks.dense(experts, "gate_up_proj")
    rows = hidden.index_select(0, order // chosen).to(stack.dtype)
    return stacks.grouped(rows, stack.transpose(-2, -1), ends)


def _geglu(both: Tensor, run: OpRunner) -> Tensor:
    gate, up = both[None].chunk(2, -1)
    found: Tensor = run(ops_reference.geglu, gate, up)
    return found[0]
