"""Triton kernels: whether Triton is installed, whether they run where a tensor is, and launches with little Python.

This module does not import Triton, which torch's CPU builds come without.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_READY: dict[Any, Any] = {}
"""Compiled kernels, by everything that Triton specialises them to."""


@cache
def kernels(module: str) -> Any:
    """Return the module of that name, which imports Triton; None without Triton. Any other failed import is raised."""
    try:
        return import_module(module)
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "triton":
            return None
        raise


def triton_here(tensor: Tensor) -> bool:
    """True if the tensor is on the current GPU, where Triton launches its kernels."""
    return bool(tensor.is_cuda and tensor.get_device() == torch.cuda.current_device())


def launch(
    kernel: Any,
    grid: tuple[int, int, int],
    pointers: Sequence[Tensor],
    numbers: Sequence[Any],
    constants: Any,
    warps: int | None = None,
    **options: Any,
) -> None:
    """Launch `kernel`, whose arguments are tensors, then numbers, then constants.

    Triton looks at every argument on every call, for some 40 microseconds. What it looks for (types, multiples of 16,
    ones) is the key here, and a kernel that was started with the same key before is started directly, as its tutorial
    on fused softmax does. `warps` is by the largest constant when not given; `options` go to Triton's compiler.
    """
    bits, found = 0, [id(kernel), constants, warps, *options.values(), pointers[0].device]
    for pointer in pointers:
        bits |= pointer.data_ptr()
        found.append(pointer.dtype)
    found += [number if number == 1 else (number % 16 == 0, number >> 31) for number in numbers if type(number) is int]
    aligned, key = not bits % 16, tuple(found)
    ready = _READY.get(key) if aligned else None
    if ready is not None:
        ready[grid](*pointers, *numbers, *constants)
        return
    if warps is None:
        block = max(constant for constant in constants if type(constant) is int)
        warps = 4 if block <= 1024 else 8 if block <= 4096 else 16
    made = kernel[grid](*pointers, *numbers, *constants, num_warps=warps, **options)
    if aligned and made is not None:
        _READY[key] = made
