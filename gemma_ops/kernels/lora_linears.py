"""Low-rank adapters on linears that read the same input, computed together.

PEFT computes each adapted linear by itself: the input is cast and kept once for each, and with adapters in float32
every product of theirs runs in float32 or through autocast, which keeps casts of its own. Here the linears of one input
(queries, keys, values; gate and up) are one Function: the input is kept once, one thin product serves all first
factors, factors stay float32 masters and are computed in the base's type, and of a 4-bit base nothing but the packed
weight is kept: the backward pass dequantizes it again.

What this can't do (dropout, DoRA, several adapters, adapters switched off or merged, weights that learn, hooks) is left
to the modules' own forward, decided anew in every call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gemma_ops.kernels.lora_casts import fresh, low, widens
from gemma_ops.modeling import nf4


@dataclass(frozen=True)
class LoraPart:
    """A frozen linear `[out, in]`, dense or in 4 bits, and its adapter, if any."""

    weight: Any
    bias: Tensor | None
    down: Tensor | None = None
    """LoRA A, [r, in] (PEFT's `lora_A`)."""
    up: Tensor | None = None
    """LoRA B, [out, r] (PEFT's `lora_B`)."""
    scale: float = 1.0

    def dense(self) -> Tensor:
        """Return the weight to multiply with; of a 4-bit one a copy that nobody keeps."""
        found: Tensor = nf4.dequantize_nf4(self.weight) if nf4.is_4bit(self.weight) else self.weight
        return found


def linears(x: Tensor, modules: Sequence[Any]) -> Sequence[Tensor]:
    """Return the output of each of `modules` (linears, plain or PEFT's) for `x [..., in]`."""
    parts = read_factors(modules, x)
    if parts is None:
        return [module(x) for module in modules]
    if x.dtype != (dtype := factor_type(parts[0])):
        x = x.to(dtype)  # as autocast would
    outs: Sequence[Tensor] = _Linears.apply(x, parts, *factors(parts))
    return outs


def read_factors(modules: Sequence[Any], x: Tensor) -> list[LoraPart] | None:
    """Return the parts of `modules`, or None where their own forward has to run."""
    parts = []
    for module in modules:
        part = _part(module)
        if part is None:
            return None
        parts.append(part)
    types = {factor_type(part) for part in parts}
    if len(types) != 1 or not _fits(types.pop(), x):
        return None
    return parts


def factors(parts: Sequence[LoraPart]) -> list[Tensor]:
    """Return the adapters' LoRA A and B in turn, which autograd Functions take as arguments."""
    return [factor for part in parts if part.down is not None for factor in (part.down, part.up)]  # type: ignore[misc]


def _fits(dtype: torch.dtype, x: Tensor) -> bool:
    """True if the product in the base's type is what would be computed anyway."""
    if not torch.is_autocast_enabled(x.device.type):
        return bool(x.dtype == dtype)
    return bool(torch.get_autocast_dtype(x.device.type) == dtype)


def factor_type(part: LoraPart) -> torch.dtype:
    """Return the type that the part is computed in."""
    found: torch.dtype = part.weight.quant_state.dtype if nf4.is_4bit(part.weight) else part.weight.dtype
    return found


def _part(module: Any) -> LoraPart | None:
    if hooked(module):
        return None
    if not hasattr(module, "lora_A"):
        return _plain(module)
    from peft.tuners import lora

    base = module.base_layer
    if type(module).__name__ not in ("Linear", "Linear4bit") or not isinstance(module, lora.LoraLayer):
        return None
    if module.disable_adapters or module.merged or module.fan_in_fan_out or hooked(base):
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1:
        return _plain(base) if not active else None
    name = active[0]
    dropout, down, up = module.lora_dropout[name], module.lora_A[name], module.lora_B[name]
    if name in module.lora_variant or (dropout.training and getattr(dropout, "p", 0) > 0):
        return None
    if down.bias is not None or up.bias is not None or hooked(down) or hooked(up):
        return None
    plain = _plain(base)
    return plain and LoraPart(plain.weight, plain.bias, down.weight, up.weight, module.scaling[name])


def _plain(module: Any) -> LoraPart | None:
    """Return a frozen linear without adapter."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.requires_grad or (module.bias is not None and module.bias.requires_grad):
        return None
    if type(module) is torch.nn.Linear:
        return LoraPart(weight, module.bias)
    if type(module).__name__ != "Linear4bit" or not nf4.is_4bit(weight) or weight.quant_state is None:
        return None
    repacked = getattr(module, "enable_optimized_cpu", False) or getattr(
        weight.quant_state, "packing_format_for_cpu", False
    )
    same = module.compute_dtype in (None, weight.quant_state.dtype)
    return None if repacked or not same else LoraPart(weight, module.bias)


def hooked(module: Any) -> bool:
    """True if calling the module does more than its forward pass."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def stacked(given: Sequence[Tensor], dtype: torch.dtype) -> Tensor | None:
    """Return LoRA A matrices stacked to [ranks, in], in the type of the product."""
    if not given:
        return None
    if len(given) == 1:
        return low(given[0], dtype)
    if all(fresh(factor, dtype) for factor in given):
        return torch.cat([low(factor, dtype) for factor in given])
    return torch.cat(list(given)).to(dtype)


def apart(ups: Sequence[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield LoRA B matrices [out, r] in the type of the product, cast together where their ranks agree."""
    if len({up.shape[1] for up in ups}) > 1 or all(fresh(up, dtype) for up in ups):
        return iter([low(up, dtype) for up in ups])
    joined = stacked(ups, dtype)
    return iter(()) if joined is None else iter(joined.split([up.shape[0] for up in ups]))


def scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Compute `scale * a @ b` as one kernel, rounded once."""
    return torch.addmm(a.new_empty(b.shape[1]), a, b, beta=0, alpha=scale)


def learned(a: Tensor, b: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Compute `scale * a @ b`, the gradient of LoRA A or B, in that matrix's type: on a GPU a product in float32 rather
    than a cast."""
    if dtype != torch.float32 or len(a) < 2 or not widens(a):
        return scaled(a, b, scale).to(dtype)
    found = a.new_empty((a.shape[0], b.shape[1]), dtype=dtype)
    torch.ops.aten.addmm.dtype_out(found, a, b, dtype, beta=0, alpha=scale, out=found)
    return found


def project(x: Tensor, parts: Sequence[LoraPart], given: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """Return `x [N, in]` times every part, and `x` times the LoRA A matrices `[N, ranks]`, which the backward pass
    needs."""
    down = stacked(given[::2], x.dtype)
    thin = None if down is None else x @ down.t()
    ups = apart(given[1::2], x.dtype)
    outs, at = [], 0
    for part in parts:
        out = functional.linear(x, part.dense(), part.bias)
        if part.down is not None:
            up = next(ups)
            rank = up.shape[1]
            assert thin is not None
            out.addmm_(thin[:, at : at + rank], up.t(), alpha=part.scale)
            at += rank
        outs.append(out)
    return outs, thin


def project_backward(
    outers: Sequence[Tensor | None],
    x: Tensor,
    thin: Tensor | None,
    parts: Sequence[LoraPart],
    given: Sequence[Tensor],
    *,
    by_input: bool,
    dense: Sequence[Tensor] | None = None,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return the gradients by `x` (where asked for) and by `given`, from those by each output. `dense` are weights at
    hand."""
    downs, own = given[::2], given[1::2]
    ups = zip(own, apart(own, x.dtype), strict=True) if own else iter(())
    by_x: Tensor | None = None
    by_thin, by_ups = [], []
    at = 0
    for index, (outer, part) in enumerate(zip(outers, parts, strict=True)):
        if by_input and outer is not None:
            weight = dense[index] if dense else part.dense()
            by_x = outer @ weight if by_x is None else by_x.addmm_(outer, weight)
        if part.down is None:
            continue
        up, cast = next(ups)
        rank = up.shape[1]
        if outer is None:
            by_thin.append(x.new_zeros(x.shape[0], rank))
            by_ups.append(torch.zeros_like(up))
        else:
            assert thin is not None
            by_thin.append(scaled(outer, cast, part.scale))
            by_ups.append(learned(outer.t(), thin[:, at : at + rank], part.scale, up.dtype))
        at += rank
    if not downs:
        return by_x, []
    joined = by_thin[0] if len(by_thin) == 1 else torch.cat(by_thin, 1)
    if by_input:
        first = stacked(downs, x.dtype)
        assert first is not None
        by_x = joined @ first if by_x is None else by_x.addmm_(joined, first)
    whole = learned(joined.t(), x, 1.0, downs[0].dtype)
    by_downs = whole.split([down.shape[0] for down in downs])
    return by_x, [gradient for pair in zip(by_downs, by_ups, strict=True) for gradient in pair]


class _Linears(torch.autograd.Function):  # type: ignore[misc]
    """The autograd Function of `project`, for `x [..., in]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: Sequence[LoraPart], *given: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            outs, thin = project(flat, parts, given)
        ctx.parts, ctx.shape = parts, x.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(flat if given else None, thin, *given)
        return tuple(out.view(*x.shape[:-1], -1) for out in outs)

    @staticmethod
    def backward(ctx: Any, *outers: Tensor | None) -> tuple[Any, ...]:
        flat, thin, *given = ctx.saved_tensors
        rows = [None if outer is None else outer.reshape(-1, outer.shape[-1]) for outer in outers]
        by_input = ctx.needs_input_grad[0]
        by_x, by_factors = project_backward(rows, flat, thin, ctx.parts, given, by_input=by_input)
        return None if by_x is None else by_x.view(ctx.shape), None, *by_factors
