"""Adapters in the type of their products, cast once an optimizer step instead of in every product."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


class Copies:
    """Copies of a model's adapters (float32 masters) in `dtype`, for all forward and backward passes until they change.

    A trainer makes it once and calls `refresh` before the passes of an optimizer step; where nobody does, each product
    casts for itself. A copy holds until the next step of any optimizer, or until its master's version or memory
    changes. Versions alone would not do: PyTorch's fused AdamW and all of bitsandbytes' optimizers change parameters
    without counting it. Not for parameters that FSDP gathers, whose values come and go unseen.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.bfloat16) -> None:
        _watch()
        self.dtype = dtype
        self.masters = [
            parameter
            for name, parameter in model.named_parameters()
            if ".lora_" in name and parameter.requires_grad and parameter.dtype == torch.float32
        ]

    def refresh(self) -> None:
        """Cast all copies anew, in one call, into the memory they had."""
        masters, dtype = self.masters, self.dtype
        if not masters:
            return
        copies = [getattr(master, _LOW, (None, None))[1] for master in masters]
        copies = [
            torch.empty_like(master, dtype=dtype, requires_grad=False)
            if copy is None or copy.dtype != dtype or copy.device != master.device
            else copy
            for master, copy in zip(masters, copies, strict=True)
        ]
        with torch.no_grad():
            torch._foreach_copy_(copies, [master.detach() for master in masters])
        for master, copy in zip(masters, copies, strict=True):
            setattr(master, _LOW, (_state(master), copy))


_LOW = "_gemma_ops_low"
"""Attribute of a master weight that holds its version when it was cast, and the copy."""
_steps = [0]
"""Optimizer steps taken in this process."""


@cache
def _watch() -> None:
    """Count the steps of all optimizers from now on."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def stepped(*_: Any) -> None:
        _steps[0] += 1

    register_optimizer_step_post_hook(stepped)


def _state(master: Tensor) -> tuple[int, int, int]:
    return master._version, master.data_ptr(), _steps[0]


def widens(like: Tensor) -> bool:
    """True if cuBLAS gives the product of two tensors `like` this in float32 itself (torch 2.8 on; neither ROCm nor
    TunableOp)."""
    if not like.is_cuda or like.dtype != torch.bfloat16 or torch.version.hip or torch.cuda.tunable.is_enabled():
        return False
    return _widening()


@cache
def _widening() -> bool:
    return hasattr(torch.ops.aten.addmm, "dtype_out") and bool(
        torch._C._dispatch_has_kernel_for_dispatch_key("aten::addmm.dtype_out", "CUDA")
    )


def fresh(master: Tensor, dtype: torch.dtype) -> bool:
    """True if the master has a copy of its present values in `dtype`."""
    state, copy = getattr(master, _LOW, (None, None))
    return copy is not None and copy.dtype == dtype and state == _state(master)


def low(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return LoRA A or B in the type of the product."""
    if factor.dtype == dtype:
        return factor
    found: Tensor = getattr(factor, _LOW)[1] if fresh(factor, dtype) else factor.to(dtype)
    return found
