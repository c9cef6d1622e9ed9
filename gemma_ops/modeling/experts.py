"""The experts of a mixture (26B-A4B) held in 4 bits, and the one forward pass that dense and 4-bit experts share.

`load_in_4bit` converts `nn.Linear` only; Gemma 4's experts are 3-D parameters and stay bf16 there (bitsandbytes#1849).
Here both stacks of a layer are 4-bit. They are dequantized where they are multiplied and nowhere kept: the backward
pass dequantizes them again, so at any time one stack of one layer exists in bf16 (26B-A4B: 0.95 GiB), with and without
recomputation of layers. The products are those of transformers' `grouped_mm` experts in the same order, so loss and
gradients equal the dequantized bf16 model's bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gemma_ops.modeling import nf4

Project = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Function that maps rows sorted by expert, and the end of each expert's rows, to projected rows."""
STACKS = ("gate_up_proj", "down_proj")


class Experts4bit(torch.nn.Module):  # type: ignore[misc]
    """Drop-in for `Gemma4TextExperts`: `gate_up_proj` (experts, 2 * width, hidden) and `down_proj` (experts, hidden,
    width), both `Params4bit` whose `quant_state` has the shape.

    FSDP puts plain parameters in their place, so that what the bytes mean is kept next to them, in `states`.
    """

    is_transposed = False  # the outputs come before the inputs, as PEFT asks

    def __init__(self, original: Any, storage: torch.dtype = torch.uint8) -> None:
        super().__init__()
        self.num_experts: int = original.num_experts
        self.act_fn = original.act_fn
        self.states: dict[str, Any] = {}
        for name in STACKS:
            self.install(name, nf4.placeholder(getattr(original, name).shape, storage))

    def install(self, name: str, stack: Any) -> None:
        """Set one of the stacks to a `Params4bit`."""
        self.register_parameter(name, stack)
        self.states[name] = stack.quant_state

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Map hidden (tokens, hidden), index and weights (tokens, chosen experts) to (tokens, hidden)."""
        return run_experts(self, hidden, index, weights, *(projection(self, name) for name in STACKS))


def dense(experts: Any, name: str) -> torch.Tensor:
    """Return a stack to multiply with, (experts, outputs, inputs): of a 4-bit one a copy that nobody keeps."""
    stack = getattr(experts, name)
    if not isinstance(experts, Experts4bit):
        return stack  # type: ignore[no-any-return]
    return nf4.dequantize_nf4(stack, _state(experts, name))


def _state(experts: Experts4bit, name: str) -> Any:
    """Return the quantization state of a stack, also where FSDP has put a plain parameter in its place."""
    stack = getattr(experts, name)
    return stack.quant_state if nf4.is_4bit(stack) else experts.states[name]


def projection(experts: Any, name: str) -> Project:
    """Return the product with one stack of `experts`, dense or 4-bit."""
    stack = getattr(experts, name)
    if isinstance(experts, Experts4bit):
        state = _state(experts, name)
        return lambda rows, ends: _Grouped4bit.apply(rows, stack, state, ends)
    return lambda rows, ends: grouped(rows.to(stack.dtype), stack.transpose(-2, -1), ends)


def run_experts(
    experts: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, gate_up: Project, down: Project
) -> torch.Tensor:
    """Sort the (token, expert) pairs by expert, project, gate, project, weigh and add up per token."""
    chosen = index.shape[-1]
    order, back, ends = route(index, experts.num_experts)
    gate, up = gate_up(_Sorted.apply(hidden, order, back, chosen), ends).chunk(2, dim=-1)
    out = down(experts.act_fn(gate) * up, ends)
    out = out * _Sorted.apply(weights.reshape(-1, 1), order, back, 1)
    return _Sorted.apply(out, back, order, 1).view(hidden.shape[0], chosen, -1).sum(dim=1).to(hidden.dtype)


class _Sorted(torch.autograd.Function):  # type: ignore[misc]
    """Gather of `rows[order // times]`, each row taken `times` times; `back` is the inverse of `order`. The gradient is
    a gather and a sum: autograd's own would sort the indices again, in every layer."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, order: torch.Tensor, back: torch.Tensor, times: int) -> torch.Tensor:
        ctx.save_for_backward(back)
        ctx.times = times
        return rows[order // times if times > 1 else order]

    @staticmethod
    def backward(ctx: Any, *outers: torch.Tensor) -> tuple[Any, ...]:
        (back,) = ctx.saved_tensors
        found = outers[0][back]
        if ctx.times > 1:
            found = found.view(-1, ctx.times, *found.shape[1:]).sum(1)
        return found, None, None, None


def route(index: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the pairs in the order of their expert, where each of them went, and where each expert's rows end, without
    waiting for the device."""
    flat = index.reshape(-1)
    # Numbers of one byte are sorted in one pass of a GPU's radix sort, those of eight in eight.
    ids, order = torch.sort(flat.to(torch.uint8) if count <= 256 and flat.is_cuda else flat, stable=True)
    sizes = torch.histc(ids.float() if ids.device.type == "cpu" else ids.int(), bins=count, min=0, max=count - 1)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return order, back, torch.cumsum(sizes, dim=0, dtype=torch.int32)


def grouped(rows: torch.Tensor, stack: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Multiply rows (n, in), sorted by expert, with stack (experts, in, out), giving (n, out)."""
    return torch.nn.functional.grouped_mm(rows, stack, offs=ends)


def waits_for_host(device: torch.device) -> bool:
    """True if `grouped` reads the groups' sizes back from the device, which no CUDA graph can hold: PyTorch has a
    kernel that doesn't for compute capability 9 and 10 alone (`_grouped_mm_cuda`, GroupedBlas.cpp; pytorch#169970)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] not in (9, 10)


class _Grouped4bit(torch.autograd.Function):  # type: ignore[misc]
    """The product `grouped` with a 4-bit stack. Only the packed stack is kept for the backward pass, which needs no
    input rows: the stack does not learn."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, stack: Any, state: Any, ends: torch.Tensor) -> torch.Tensor:
        ctx.stack, ctx.state, ctx.dtype = stack, state, rows.dtype
        ctx.save_for_backward(ends)
        dense = nf4.dequantize_nf4(stack, state)
        return grouped(rows.to(dense.dtype), dense.transpose(-2, -1), ends)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (ends,) = ctx.saved_tensors
        dense = nf4.dequantize_nf4(ctx.stack, ctx.state)
        return grouped(gradients[0].to(dense.dtype), dense, ends).to(ctx.dtype), None, None, None
