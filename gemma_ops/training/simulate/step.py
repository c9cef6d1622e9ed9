"""One optimizer step of a configuration at true size: our real modules, adapters, kernels and loss, on fake tensors.

It answers in seconds on a CPU what no formula knows exactly: the bytes at the highest point. The computation is the
CPU's own; a GPU differs in the workspaces of single kernels, not in what is kept between them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gemma_ops.config import TrainConfig
from gemma_ops.training.simulate.live_bytes import Live, Moment

_SCORED = 0.6
"""Share of tokens with loss where the caller knows none."""


@dataclass(frozen=True)
class Simulated:
    """Bytes of one simulated step."""

    weights: int
    """Bytes of the frozen base on the device."""
    host: int
    """Bytes of the per-layer table, where that lies in main memory."""
    states: int
    """Bytes of the adapter, its gradients and the optimizer's moments."""
    kept: int
    """Bytes alive at the end of the forward pass, beyond weights and states: what the backward pass needs."""
    peak: int
    """Bytes at the highest point, weights and states included."""
    at: Moment
    seconds: float

    @property
    def above(self) -> int:
        """Return the bytes at the highest point beyond weights and states."""
        return self.peak - self.weights - self.states


def simulate(
    text: dict[str, Any],
    settings: TrainConfig,
    documents: list[int],
    *,
    checkpointing: str | int = "none",
    ple: str = "device",
    scored: float = _SCORED,
) -> Simulated:
    """Run one packed forward and backward pass over documents of these lengths, in the steady state of a training:
    moments and gradients of an earlier pass are there.

    `text` is a text configuration with its `model_type`; `checkpointing` and `ple` are as decided, not `auto`.
    """
    from gemma_ops.modeling import adapters, made_up
    from gemma_ops.training import sft

    began = time.perf_counter()
    with torch.device("meta"):
        dtype = torch.float32 if settings.weights == "fp32" else torch.bfloat16
        model = adapters.attach(made_up.skeleton(text, dtype), settings.lora, settings.seed).train()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _fake(model)
        table = _table(model) if ple == "host" else None
        live = Live(elsewhere=() if table is None else (table,))
        for tensor in (*model.parameters(), *model.buffers()):
            if not tensor.requires_grad:
                live.add(tensor)
        weights = live.now
        model = sft.equip(model, settings.model_copy(update={"checkpointing": checkpointing}))
        moments = []
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
                parameter.grad = torch.zeros_like(parameter)
                moments += [torch.zeros_like(parameter), torch.zeros_like(parameter)]
                for tensor in (parameter, parameter.grad, *moments[-2:]):
                    live.add(tensor)
        states = live.now - weights
        arguments = _pass(documents, scored, settings)
        live.restart()
        with live, _autocast(settings):
            loss = model(**arguments, divisor=1.0).loss
            kept = live.now - weights - states
            loss.backward()
        del mode
    host = 0 if table is None else table.numel() * table.element_size()
    return Simulated(weights, host, states, kept, live.peak.bytes, live.peak, time.perf_counter() - began)


def _fake(model: Any) -> None:
    """Give the parameters and buffers of a model on the meta device a place: fake ones, on a CPU that isn't asked for
    memory. A parameter that two modules share stays one.
    """
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                if id(value) not in made:
                    empty = torch.empty(value.shape, dtype=value.dtype, device="cpu")
                    made[id(value)] = torch.nn.Parameter(empty, requires_grad=value.requires_grad)
                module._parameters[name] = made[id(value)]
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cpu")


def _autocast(settings: TrainConfig) -> Any:
    from contextlib import nullcontext

    from gemma_ops.training.arguments import autocasts

    return torch.autocast("cpu", dtype=torch.bfloat16) if autocasts(settings) else nullcontext()


def _pass(documents: list[int], scored: float, settings: TrainConfig) -> dict[str, Any]:
    """Return the arguments of a packed forward pass, as `forward_inputs.Collate` makes them."""
    from gemma_ops.training.forward_inputs import BOUNDS

    total = sum(documents)
    bounds = [0]
    for length in documents:
        bounds.append(bounds[-1] + length)
    labels = max(1, round(total * scored))
    arguments = {
        "input_ids": torch.zeros((1, total), dtype=torch.long),
        "position_ids": torch.zeros((1, total), dtype=torch.long),
        "where": torch.zeros(labels, dtype=torch.long),
        "targets": torch.zeros(labels, dtype=torch.long),
    }
    return arguments | ({BOUNDS: bounds} if settings.kernels.attention == "documents" else {})


def _table(model: Any) -> torch.Tensor | None:
    """Return the per-layer embedding table, where the model has one."""
    return next((value for name, value in model.named_parameters() if "embed_tokens_per_layer" in name), None)
