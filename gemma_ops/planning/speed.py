"""The work of a token, and how long a known GPU takes for it: a roofline over the operations that are really run.

Five terms are added: products, attention, elementwise traffic, dequantization, and the experts' weights; the sum can't
be faster than the kernels can be launched, where they are launched one by one. With every kernel of `train.kernels`
switched off the constants reproduce a simulation of the stock graph on an H200 to 10 % (tests/planning/test_speed.py);
those of our kernels are in `RATES`, fitted to runs of `gemma-ops bench train`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gemma_ops.family import Layer, Shape
from gemma_ops.planning import kept_bytes
from gemma_ops.planning.devices import Device
from gemma_ops.planning.training_memory import NF4
from gemma_ops.planning.training_step import PassShape

FACTOR = 2.0
"""Factor within which a measured speed lies of the estimate on a GPU of the table."""
FACTOR_ROUGH = 4.0
"""Factor within which a measured speed lies on a CPU, on a GPU that emulates bfloat16, and for a mixture of experts,
whose kernels differ most between GPU generations."""

_TRAFFIC = 0.85
"""Share of the memory bandwidth that elementwise kernels reach."""
_DEQUANT = 4.0 + NF4
"""Bytes moved to turn one 4-bit parameter into bf16 and read it once."""
_FLOAT32 = {True: 8, False: 4}
"""Slowdown of a GPU in float32, without tensor cores, and of a processor without its bf16 units."""


@dataclass(frozen=True)
class DeviceRates:
    """Rates that one way of computing reaches."""

    products: float
    """Share of the sustained rate that products of a training step's shapes reach."""
    attention: float
    """Share of the sustained rate that attention reaches, forward and backward."""
    passes: float
    """Bytes moved by elementwise kernels and the thin LoRA products, per byte kept for the backward pass (mask
    aside)."""
    layer: float
    """Seconds the interpreter needs to start the kernels of one layer, forward and backward."""
    again: float
    """Factor on `layer` where the layer is recomputed."""
    mixture: float
    """Factor on `layer` for a mixture of experts."""
    start: float = 0.0
    """Seconds of a pass that overlap with nothing else."""


RATES = {
    "stock": DeviceRates(products=0.85, attention=0.115, passes=20.7, layer=2.6e-3, again=1.4, mixture=1.5),
    "replayed": DeviceRates(products=1.17, attention=0.105, passes=18.6, layer=0.0, again=1.0, mixture=1.0, start=6e-3),
    "launched": DeviceRates(products=1.17, attention=0.105, passes=18.6, layer=8.7e-3, again=1.7, mixture=1.7),
    "cpu": DeviceRates(products=0.85, attention=0.85, passes=20.7, layer=4e-3, again=1.4, mixture=1.5),
}
"""Rates by way of computing: stock operations on a GPU, our kernels in captured CUDA graphs and launched one by one
(fitted to `gemma-ops bench train --suite gpu` on an H200, configs/benchmarks/h200.json), and a CPU. Products of whole
passes exceed the rate that `devices` calls sustained."""


@dataclass(frozen=True)
class TokenWork:
    """Floating-point operations per token slot (a multiply and an add are two)."""

    forward: float
    backward: float
    """Operations for the gradients of activations and of the adapter only: the base is frozen."""
    recompute: float
    """Operations of the second forward pass of gradient checkpointing."""
    attention: float
    """Operations of the score and value products among those, over the whole row."""

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recompute


@dataclass(frozen=True)
class Speed:
    """What to expect of one device."""

    tokens_per_second: float
    """Tokens of the data; padding doesn't count."""
    factor: float
    """Uncertainty: the truth lies between the estimate divided and multiplied by this."""
    bound: str
    """Part of the work that takes most of the time."""
    share: float
    """Share of the time that this part takes."""


def token_work(shape: Shape, step: PassShape, *, context: float, scored: float = 1.0) -> TokenWork:
    """Return the operations for each slot, of which a share `scored` carries loss; a token's own row has `context`
    tokens on average.

    A linear costs 2 per parameter forward and 2 backward (its input's gradient), an adapter 2 and 4, attention 4 per
    query width and key forward and 2.5 times that backward. The head is one product forward and, fused, one more for
    the gradient; TRL's makes the logits again. Weights that learn cost 2 more.
    """
    products = 2 if step.kernels.head == "fused" else 3
    head = 2.0 * shape.hidden * shape.vocab * scored
    linear = 2.0 * (shape.active_per_token() - shape.vocab * shape.hidden)
    lora = 2.0 * step.adapter_parameters
    attention = sum(4.0 * layer.query_width * _keys(layer, step, context) for layer in shape.layers)
    again = step.recomputed(len(shape.layers)) / len(shape.layers) * (linear + lora + attention)
    if step.checkpointing == "mlp":
        again = sum(4.0 * shape.hidden * layer.ffn for layer in shape.layers)
    share = 1.0 + 2.5 + step.recomputed(len(shape.layers)) / len(shape.layers)
    return TokenWork(
        forward=linear + lora + attention + head,
        backward=linear * (2 if step.full else 1) + 2 * lora + 2.5 * attention + (products - 1) * head,
        recompute=again,
        attention=attention * share,
    )


def _keys(layer: Layer, step: PassShape, context: float) -> float:
    """Return the keys that one query is multiplied with: those it sees, or, with a mask, all of the row."""
    if step.kernels.attention == "documents":
        return min(context / 2, layer.window or context)
    return context


def step_speed(
    shape: Shape, step: PassShape, device: Device, *, slots: float, context: float, scored: float, padded: float
) -> Speed | None:
    """Return the time for one forward and backward pass over `slots` token slots, `padded` per token, on `device`; None
    where the device's speed is unknown."""
    if not device.peak:
        return None
    ours = step.kernels.attention == "documents"
    rates = RATES["cpu" if not device.cuda else "stock" if not ours else "replayed" if step.replayed else "launched"]
    if not device.cuda and step.kernels.head == "trl":
        scored = 1.0  # without Triton the fused head scores prompts and padding too
    amount = token_work(shape, step, context=context, scored=scored)
    rate = device.peak * 1e12 * device.sustained
    if step.weights == "fp32":
        rate /= _FLOAT32[device.cuda]
    bytes_per_second = device.bandwidth * 1e9 * _TRAFFIC
    again = step.recomputed(len(shape.layers)) / len(shape.layers)
    passes = 2 + again
    # Float32 keeps more and casts less: its traffic is that of bf16 under autocast.
    cast = replace(step, weights="bf16") if step.weights == "fp32" else step
    bytes_kept = sum(
        kept_bytes.layer_bytes(shape, layer, cast) - kept_bytes.mask_bytes(layer, cast) for layer in shape.layers
    )
    c = shape.counts()
    times = {
        "matrix products": slots * (amount.total - amount.attention) / (rate * rates.products),
        "attention": slots * amount.attention / (rate * rates.attention),
        "elementwise kernels": slots * bytes_kept * rates.passes * (1 + 0.4 * again) / bytes_per_second,
        "dequantization": (c.attention + c.mlp + c.experts) * _DEQUANT * passes / bytes_per_second
        if step.weights == "nf4"
        else 0.0,
        "expert weights": _expert_traffic(shape, slots, passes, rate * rates.products, bytes_per_second),
    }
    if not device.bf16:
        scores = sum(layer.heads * _keys(layer, step, context) for layer in shape.layers) * slots * 4.0
        times["attention"] = slots * amount.attention / (rate * rates.products) + 12 * scores / bytes_per_second
    if not device.cuda and step.kernels.head == "trl":
        times["elementwise kernels"] += 60.0 * slots * shape.vocab / bytes_per_second  # the head, folded by torch
    busy = sum(times.values())
    factor = (rates.mixture if shape.experts else 1.0) + (rates.again - 1) * again
    launch = len(shape.layers) * rates.layer * factor
    seconds = rates.start + (max(busy, launch) if device.cuda else busy + launch)
    if launch > busy:
        times = {"starting kernels": launch}
    bound = max(times, key=lambda name: times[name])
    rough = not device.cuda or not device.bf16 or shape.experts > 0
    tokens = slots / padded
    return Speed(tokens / seconds, FACTOR_ROUGH if rough else FACTOR, bound, min(1.0, times[bound] / seconds))


def _expert_traffic(shape: Shape, slots: float, passes: float, rate: float, bytes_per_second: float) -> float:
    """Return the seconds by which reading the experts outlasts multiplying with them: nearly all are hit in every
    micro-batch."""
    if not shape.experts:
        return 0.0
    reading = 2.0 * shape.counts().experts * passes / bytes_per_second
    chosen = len(shape.layers) * shape.experts_per_token * 3 * shape.hidden * shape.expert_ffn
    return max(0.0, reading - slots * 2.0 * chosen * passes / rate)
