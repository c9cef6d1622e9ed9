"""The elementwise arithmetic between a layer's products: plain functions, run as they are or compiled.

Each comes as a forward and a backward body over whole tensors, with no autograd of its own, so that the Functions in
`elementwise` decide what is kept. Everything is computed in float32 and rounded once, at the end. Compiled (`Runner`),
a body is one kernel on a GPU instead of five to fifteen: one of `rowwise` where Triton is installed, as it is with
torch's CUDA builds, and otherwise what Inductor makes of it, once for each width and type it meets, with the number of
tokens left open, so that rows of any length share it.
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
    """Calls bodies, compiled or not. Where compiling fails, `strict` raises; otherwise it warns once and goes on without."""

    def __init__(self, *, compiled: bool = False, strict: bool = False) -> None:
        self.compiled = compiled
        self.strict = strict

    def __call__(self, body: Body, *arguments: Any) -> Any:
        """`body(*arguments)`."""
        if not self.compiled:
            return body(*arguments)
        if arguments[0].is_cuda and (kernel := _rowwise().get(body.__name__)):
            return kernel(*arguments)
        key = (body, *map(_kind, arguments))
        found = _COMPILED.get(key)
        try:
            return self._first(key, body, arguments) if found is None else found(*arguments)
        except Exception as error:
            return self._without(error, body, arguments)

    def open(self, body: Body, *arguments: Any) -> Any:
        """`body(*arguments)` for tensors none of whose sizes is the model's own: compiled once for all of them."""
        if not self.compiled:
            return body(*arguments)
        if arguments[0].is_cuda and (kernel := _rowwise().get(body.__name__)):
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
        """Compile for these widths, with open numbers of rows and tokens, and run."""
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
def _rowwise() -> dict[str, Body]:
    """Triton's kernels by the name of their body; none without Triton."""
    rowwise = kernels("gemma_ops.kernels.ops_triton")
    return rowwise.KERNELS if rowwise else {}


def _kind(argument: Any) -> Any:
    """What a compiled body is specialised to."""
    if isinstance(argument, Tensor):
        open_ = argument.ndim > _ROWS
        shape = tuple(argument.shape[_ROWS:]) if open_ else tuple(argument.shape)
        ones = tuple(size == 1 for size in argument.shape[:_ROWS]) if open_ else ()
        return shape, ones, argument.dtype, argument.device
    return argument


def _copy(body: Any, number: int) -> Body:
    """The same function under a code object of its own: the compiler would otherwise take a second width for a sign that
    widths vary, and give up fixed ones."""
    code = body.__code__.replace(co_name=f"{body.__name__}_{number}")
    return FunctionType(code, body.__globals__, code.co_name, body.__defaults__)


def norm(x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """RMSNorm over the last dimension, and the reciprocal root mean square [..., 1] in float32."""
    mean = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
    rstd = torch.rsqrt(mean + eps)
    y = x * rstd  # float32, whatever x is
    if weight is not None:
        y = y * weight.float()
    return y.to(x.dtype), rstd


def norm_backward(outer: Tensor, x: Tensor, weight: Tensor | None, rstd: Tensor) -> Tensor:
    """The gradient by `norm`'s input."""
    g = outer.float() if weight is None else outer * weight.float()
    unit = x * rstd
    return ((g - unit * (g * unit).mean(-1, keepdim=True)) * rstd).to(x.dtype)


def scale_backward(outer: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """The gradient by `norm`'s weight, float32."""
    return (outer * (x * rstd)).flatten(0, -2).sum(0)


def add_norm(
    residual: Tensor, x: Tensor, weight: Tensor | None, scale: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """`(residual + norm(x)) * scale`, and the norm's reciprocal root mean square."""
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
    """The gradients by `add_norm`'s residual and x."""
    g = outer.float() if scale is None else outer * scale.float()
    by_residual = g.to(outer.dtype)
    if weight is not None:
        g = g * weight.float()
    unit = x * rstd
    return by_residual, ((g - unit * (g * unit).mean(-1, keepdim=True)) * rstd).to(x.dtype)


def rotated(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Heads `[B, T, H, D]` normed and turned by their positions (`cos`, `sin` `[B, T, D]`), and the norm's `rstd`."""
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
    """The gradients by `rotated`'s x and, float32, by what its norm gave before the weight (for the weight's own)."""
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
    """`gelu(gate) * up`, the tanh form that Gemma 4 uses."""
    return torch.nn.functional.gelu(gate, approximate="tanh") * up


def geglu_backward(outer: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by gate and up, and `geglu` once more, for the product that read it."""
    active = torch.nn.functional.gelu(gate, approximate="tanh")
    return torch.ops.aten.gelu_backward(outer * up, gate, approximate="tanh"), outer * active, active * up


def softmax(scores: Tensor, queries: int, scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Causal softmax of float32 `scores [N, heads * queries, keys]`, the last query at the last key, in `dtype`, and
    its logarithm `[N, heads * queries, 1]`."""
    scores = (scores * scale).masked_fill(_later(scores, queries), -torch.inf)
    lse = torch.logsumexp(scores, -1, keepdim=True)
    return torch.exp(scores - lse).to(dtype), lse


def softmax_backward(
    scores: Tensor, outer: Tensor, lse: Tensor, delta: Tensor, real: Tensor | None, queries: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The softmax once more, and the gradient by `scores`, in the type of `outer`, the gradient by it. `delta` is the sum
    of output times gradient per query; `real` is zero for queries of padding."""
    likely = torch.exp((scores * scale).masked_fill(_later(scores, queries), -torch.inf) - lse)
    if real is not None:
        likely = likely * real
    return likely.to(outer.dtype), (likely * (outer.float() - delta) * scale).to(outer.dtype)


def _later(scores: Tensor, queries: int) -> Tensor:
    """[heads * queries, keys] which keys come after the query."""
    rows, keys = scores.shape[-2:]
    place = torch.arange(rows, device=scores.device) % queries + (keys - queries)
    return torch.arange(keys, device=scores.device)[None] > place[:, None]
