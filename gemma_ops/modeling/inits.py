"""Initialisation of adapters from the principal parts of the base weights, or orthogonally; and the conversion of such
an adapter into a plain one.

PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) take `s B0 A0` out of the base weight, so the adapter they train
belongs to a base that nobody else has. What was learned is `s (B A - B0 A0)`: a plain LoRA of twice the rank on the
original base, which any engine loads and merges. PEFT computes the factors in the base's type and rounds them to bf16;
here they are float32 throughout, so that what is taken out is what is put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from gemma_ops.modeling import nf4

Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""LoRA matrices an adapter started from, (A0, B0) by the name of the adapted module."""
_OVERSAMPLED = 8
_POWERS = 16
"""Directions beyond the rank, and power iterations, of the randomised singular value decomposition."""


def layers(tuned: Any, adapter: str = "default") -> Iterator[tuple[str, Any]]:
    """Yield every adapted linear of a PEFT model by its name there; experts are no linears."""
    for name, module in tuned.named_modules():
        if adapter in getattr(module, "lora_A", {}) and isinstance(module.get_base_layer(), torch.nn.Linear):
            yield name, module


@torch.no_grad()  # type: ignore[untyped-decorator]
def start_factors(tuned: Any, how: str, adapter: str = "default") -> Factors:
    """Set LoRA A and B of every adapted linear as `how` says (`pissa`, `olora`, `orthogonal`), changing base weights
    for the first two; return the matrices that were taken out of the base, on the host."""
    taken: Factors = {}
    for name, module in layers(tuned, adapter):
        scale, rank = module.scaling[adapter], module.r[adapter]
        weight = module.get_base_layer().weight
        if how == "orthogonal":
            a, b = _orthogonal(rank, module.in_features, module.out_features)
        else:
            dense = weight.data.float()
            a, b = (_principal if how == "pissa" else _triangular)(dense, rank, scale)
            weight.data.copy_(dense.addmm_(b, a, alpha=-scale))
            taken[name] = a.cpu(), b.cpu()
        module.lora_A[adapter].weight.data.copy_(a)
        module.lora_B[adapter].weight.data.copy_(b)
    return taken


@torch.no_grad()  # type: ignore[untyped-decorator]
def measure_magnitudes(tuned: Any, adapter: str = "default") -> None:
    """Compute DoRA's magnitudes in float32: PEFT computes them in the base's type, and in bf16 the model at the first
    step is not the base."""
    for _, module in layers(tuned, adapter):
        if adapter in module.lora_magnitude_vector:
            weight = module.get_base_layer().weight
            dense = nf4.dequantize_nf4(weight) if nf4.is_4bit(weight) else weight.data
            magnitude = module.lora_magnitude_vector[adapter].weight
            magnitude.data = torch.linalg.norm(dense.float(), dim=1).to(magnitude.device)


def plain_init(tensors: dict[str, torch.Tensor], taken: Factors) -> dict[str, torch.Tensor]:
    """Return the adapter `s (B A - B0 A0)` as one of twice the rank: A over A0, B next to -B0."""
    found = dict(tensors)
    for name, (a, b) in taken.items():
        down, up = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        found[down] = torch.cat([tensors[down], a.to(tensors[down])])
        found[up] = torch.cat([tensors[up], -b.to(tensors[up])], dim=1)
    return found


def plain_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the adapter's settings with twice the rank and the same scale."""
    growth = math.sqrt(2) if config.get("use_rslora") else 2
    alpha = config["lora_alpha"] * growth
    return {**config, "r": 2 * config["r"], "lora_alpha": alpha, "init_lora_weights": True}


def _principal(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest singular directions, their values shared between LoRA A and B."""
    u, s, v = torch.svd_lowrank(weight, q=min(rank + _OVERSAMPLED, *weight.shape), niter=_POWERS)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * v[:, :rank].T, u[:, :rank] * root


def _triangular(weight: torch.Tensor, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first columns of Q and rows of R."""
    q, r = torch.linalg.qr(weight)
    return r[:rank].contiguous(), q[:, :rank].contiguous()


def _orthogonal(rank: int, inputs: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return LoRA A and B, both filled and orthogonal to each other, so that their product is zero (peft 0.21,
    `orthogonal_init`)."""
    q, _ = torch.linalg.qr(torch.randn(rank, rank))
    a = (torch.randn(inputs, rank // 2) @ q[0::2]).T / 10
    b = torch.randn(outputs, rank // 2) @ q[1::2] / 10
    return a, b
