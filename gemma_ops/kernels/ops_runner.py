"""Runner of the bodies of `ops_reference`: as they are, compiled, or as the Triton kernels of `ops_triton`.

Compiled, a body is one kernel on a GPU instead of five to fifteen: the one that `ops_triton.KERNELS` has for it where
Triton is installed, as it is with torch's CUDA builds, and otherwise what Inductor makes of it, once for each width and
type it meets, with the number of tokens left open, so that rows of any length share it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from gemma_ops.modeling.triton_launch import kernels

Body = Callable[..., Any]


_ROWS = 2
"""Leading dimensions of a body's tensors that count rows and tokens; what follows is the model's own shape."""


_COMPILED: dict[Any, Body] = {}


class OpRunner:
    """Runner of bodies, compiled or not. Where compiling fails, `strict` raises; otherwise it warns once and goes on
    without."""

    def __init__(self, *, compiled: bool = False, strict: bool = False) -> None:
        self.compiled = compiled
        self.strict = strict

    def __call__(self, body: Body, *arguments: Any) -> Any:
        """Run `body(*arguments)`."""
        if not self.compiled:
            return body(*arguments)
        if arguments[0].is_cuda and (kernel := _triton().get(body)):
            return kernel(*arguments)
        key = (body, *map(_kind, arguments))
        found = _COMPILED.get(key)
        try:
            return self._first(key, body, arguments) if found is None else found(*arguments)
        except Exception as error:
            return self._without(error, body, arguments)

    def open(self, body: Body, *arguments: Any) -> Any:
        """Run `body(*arguments)` for tensors none of whose sizes is the model's own: compiled once for all of them."""
        if not self.compiled:
            return body(*arguments)
        if arguments[0].is_cuda and (kernel := _triton().get(body)):
            return kernel(*arguments)
        if body not in _COMPILED:
            _COMPILED[body] = torch.compile(body, dynamic=True, fullgraph=True)
        try:
            return _COMPILED[body](*arguments)
        except Exception as error:
            return self._without(error, body, arguments)

    def _without(self, error: Exception, body: Body, arguments: tuple[Any, ...]) -> Any:
        if self.strict:
            raise error
        warnings.warn(f"torch.compile failed, kernels run without: {str(error).splitlines()[0]}", stacklevel=3)
        self.compiled = False
        return body(*arguments)

    def _first(self, key: tuple[Any, ...], body: Body, arguments: tuple[Any, ...]) -> Any:
        """Compile for these widths, with dynamic numbers of rows and tokens, and run."""
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.ndim > _ROWS:
                for dimension in range(_ROWS):
                    if argument.shape[dimension] > 1:
                        torch._dynamo.maybe_mark_dynamic(argument, dimension)
        compiled = torch.compile(_copy(body, len(_COMPILED)), fullgraph=True)
        result = compiled(*arguments)
        _COMPILED[key] = compiled
        return result


EAGER = OpRunner()


@cache
def _triton() -> dict[Body, Body]:
    """Return Triton's kernels by the body each stands for; none without Triton."""
    found = kernels("gemma_ops.kernels.ops_triton")
    return found.KERNELS if found else {}


def _kind(argument: Any) -> Any:
    """Return what a compiled body is specialised to."""
    if isinstance(argument, Tensor):
        open_ = argument.ndim > _ROWS
        shape = tuple(argument.shape[_ROWS:]) if open_ else tuple(argument.shape)
        ones = tuple(size == 1 for size in argument.shape[:_ROWS]) if open_ else ()
        return shape, ones, argument.dtype, argument.device
    return argument


def _copy(body: Any, number: int) -> Body:
    """Return the same function under a code object of its own: the compiler would otherwise take a second width for a
    sign that widths vary, and give up fixed ones."""
    code = body.__code__.replace(co_name=f"{body.__name__}_{number}")
    return FunctionType(code, body.__globals__, code.co_name, body.__defaults__)
