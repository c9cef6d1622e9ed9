"""Second moments of what each matrix is multiplied with, on the rows of the user.

For a linear layer they are E[xxᵀ] of its inputs; for a stack of experts one matrix an expert, of the tokens that were
sent to it. An expert that saw few tokens borrows from the others: to its sum that of all experts is added, as if it had
seen as many tokens as its inputs have dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from gemma_ops.fitting.fit_rows import FitRow
from gemma_ops.fitting.packed_rows import packed_passes, packed_states


class Moments:
    """Running second moments of the inputs of some layers, by parameter name. Use as a context manager around the
    forward passes; `of` gives the result."""

    def __init__(self, layers: dict[str, tuple[Any, str]]) -> None:
        """`layers`: module and attribute of each matrix, by its parameter name."""
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._layers = layers
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for name, (module, attribute) in self._layers.items():
            take = self._of_linear(name) if attribute == "weight" else self._of_experts(name, attribute)
            self._hooks.append(module.register_forward_pre_hook(take))
        return self

    def __exit__(self, *_error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def of(self, name: str) -> torch.Tensor:
        """Return the second moments of a matrix, (inputs, inputs) or (experts, inputs, inputs), float32."""
        total, count = self._sums[name], self._counts[name]
        if total.ndim == 2:
            return total / count
        every = total.sum(0) / count.sum().clamp_min(1)
        borrowed = total.shape[-1]
        return (total + borrowed * every) / (count + borrowed)[:, None, None]

    def _of_linear(self, name: str) -> Callable[[Any, Any], None]:
        def take(_module: Any, arguments: Any) -> None:
            x = arguments[0].detach().reshape(-1, arguments[0].shape[-1]).float()
            self._add(name, x.t() @ x, torch.tensor(float(len(x)), device=x.device))

        return take

    def _of_experts(self, name: str, attribute: str) -> Callable[[Any, Any], None]:
        def take(module: Any, arguments: Any) -> None:
            hidden, index = arguments[0].detach(), arguments[1]
            count = len(module.gate_up_proj)
            found, sizes = [], []
            for expert in range(count):
                x = hidden[(index == expert).any(-1)]
                if attribute == "down_proj":
                    gate, up = (x @ module.gate_up_proj[expert].detach().t()).chunk(2, -1)
                    x = module.act_fn(gate) * up
                found.append(x.float().t() @ x.float())
                sizes.append(len(x))
            self._add(name, torch.stack(found), torch.tensor(sizes, dtype=torch.float32, device=hidden.device))

        return take

    def _add(self, name: str, total: torch.Tensor, count: torch.Tensor) -> None:
        if name in self._sums:
            self._sums[name] += total
            self._counts[name] += count
        else:
            self._sums[name], self._counts[name] = total, count


def collect_moments(model: Any, layers: dict[str, tuple[Any, str]], rows: Sequence[FitRow]) -> Moments:
    """Return the moments of some layers over rows."""
    with Moments(layers) as moments, torch.no_grad():
        for group in packed_passes(rows, range(len(rows))):
            packed_states(model, [rows[row] for row in group])
    return moments
