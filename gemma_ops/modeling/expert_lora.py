"""LoRA on the experts of a mixture, dense or 4-bit, in PEFT's own layout but without PEFT's cost.

PEFT adapts a 3-D parameter by folding `W + s B A` into a stack of its own in every forward pass (26B-A4B: 1.4 GiB a
layer, kept for the backward pass unless the layer is recomputed; in bf16 the sum also rounds small updates away), and
it can't adapt a 4-bit stack at all. Here the low-rank product is taken for the rows routed to each expert: `x W_e^T + s
(x A_e^T) B_e^T`. The factors are stored as PEFT's `ParamWrapper` stores them (A: experts * rank, inputs; B: outputs,
rank * experts, the expert running fastest), so an adapter trained here is loaded and merged by PEFT, and the other way
round.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper

from gemma_ops.errors import ModelError
from gemma_ops.modeling import experts, nf4

_ALIGNED = 8
"""Ranks are padded with zeros to a multiple of this: grouped products want rows of 16 bytes."""


class ExpertLora(ParamWrapper):  # type: ignore[misc]
    """The adapter of one stack of experts. As with PEFT, the wrapper of `down_proj` holds that of `gate_up_proj`, which
    holds the experts."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        stack = self.get_param()
        shape = stack.quant_state.shape if nf4.is_4bit(stack) else stack.shape
        self.num_experts, self._param_ndim = shape[0], 3
        return shape[1], shape[2]  # PEFT swaps them, because outputs come first

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: Any = None) -> None:
        """Move the adapter to the stack's device, in float32 whatever the stack is held in."""
        place = device or self.get_param().device
        for layers in (self.lora_A, self.lora_B):
            layers[adapter_name] = layers[adapter_name].to(place, dtype=torch.float32)

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Run `Gemma4TextExperts.forward`, with the low-rank products where adapters are on."""
        root, wrappers = self.get_base_layer(), {wrapper.parameter_name: wrapper for wrapper in _chain(self)}
        if self.disable_adapters or self.merged:
            out: torch.Tensor = root(hidden, index, weights)
            return out
        parts = (wrappers[name].projection(root) if name in wrappers else None for name in experts.STACKS)
        gate_up, down = (
            part or experts.projection(root, name) for part, name in zip(parts, experts.STACKS, strict=True)
        )
        return experts.run_experts(root, hidden, index, weights, gate_up, down)

    def projection(self, root: Any) -> experts.Project:
        """Return the product with the stack and its active adapters."""
        dense = experts.projection(root, self.parameter_name)
        active = [name for name in self.active_adapters if name in self.lora_A]

        def project(rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
            out = dense(rows, ends)
            for name in active:
                down, up = self._factors(name, out.dtype)
                middle = experts.grouped(rows.to(out.dtype), down, ends)
                out = torch.add(out, experts.grouped(middle, up, ends), alpha=self.scaling[name])
            return out

        return project

    def _factors(self, name: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return LoRA A as (experts, inputs, rank) and B as (experts, rank, outputs), the rank padded, in the type of
        the product."""
        a, b, rank = self.lora_A[name].weight, self.lora_B[name].weight, self.r[name]
        padding = -rank % _ALIGNED
        down = a.reshape(self.num_experts, rank, -1)
        up = b.reshape(-1, rank, self.num_experts).permute(2, 1, 0)
        if padding:
            down, up = (torch.nn.functional.pad(factor, (0, 0, 0, padding)) for factor in (down, up))
        return down.to(dtype).contiguous().transpose(-2, -1), up.to(dtype).contiguous()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold the adapter into the stack. Raises ModelError on a 4-bit stack, which would round it away."""
        if nf4.is_4bit(self.get_param()):
            raise ModelError(
                "an adapter can't be merged into 4-bit experts", "merge into the bf16 base: `gemma-ops merge`"
            )
        super().merge(safe_merge=safe_merge, adapter_names=adapter_names)


def inject(tuned: Any, config: Any, ranks: dict[str, tuple[int, float]] | None = None, adapter: str = "default") -> int:
    """Put adapters on every stack of experts of a PEFT model, and return how many layers got them.

    `ranks` are (rank, alpha) by stack (`gate_up_proj`, `down_proj`); by default both stacks with those of `config`.
    """
    chosen = ranks or dict.fromkeys(experts.STACKS, (config.r, config.lora_alpha))
    found = list(modules(tuned))
    for parent, leaf, module in found:
        wrapped = module
        for name in experts.STACKS:
            if name in chosen:
                rank, alpha = chosen[name]
                wrapped = ExpertLora(wrapped, adapter, name, config=config, r=rank, lora_alpha=alpha)
        setattr(parent, leaf, wrapped.train(module.training))
    return len(found)


def modules(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield (parent, attribute, experts) of every layer that has experts not yet adapted."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "num_experts") and all(hasattr(module, stack) for stack in experts.STACKS):
            parent, _, leaf = name.rpartition(".")
            yield model.get_submodule(parent), leaf, module


def targets(names: Iterator[str] | list[str]) -> dict[str, list[str]]:
    """Return the tensors of an adapter file that belong to experts, by stack."""
    found: dict[str, list[str]] = {}
    for name in names:
        match = re.search(r"\.experts\.((?:base_layer\.)*)lora_[AB]\b", name)
        if match:
            found.setdefault(match[1], []).append(name)
    return found


def _chain(outer: Any) -> Iterator[Any]:
    while isinstance(outer, ExpertLora):
        yield outer
        outer = outer.base_layer
