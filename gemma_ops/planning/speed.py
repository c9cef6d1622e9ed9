"""How much work a token is, and how long a known GPU takes for it: a roofline over the operations that are really run.

The product trains with stock PyTorch attention (SDPA with a dense mask, because global layers have heads of 512) and
eager PEFT, so the step is rarely bound by its matrix products. Five terms are added: products, attention, elementwise
traffic, dequantization, and the experts' weights; the sum can't be faster than the kernels can be launched. The
constants reproduce a simulation of the real operation graph on an H200 to 10 % (tests/test_plan_speed.py); on a real
machine expect to be off by up to `FACTOR`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gemma_ops.devices import Device
from gemma_ops.family import Shape
from gemma_ops.planning.memory import NF4, Step, mask_per_token, saved_per_token

FACTOR = 2.0
"""A measured speed lies within this factor of the estimate on a GPU of the table."""
FACTOR_ROUGH = 4.0
"""The same on a CPU, on a GPU that emulates bfloat16, and for a mixture of experts, whose kernels differ most from one GPU
generation to the next."""

_PRODUCTS = 0.85
"""Share of the sustained rate that products of a training step's shapes reach."""
_ATTENTION = 0.068
"""Share that SDPA with a mask reaches, forward and backward: 72 ms for a sliding layer of 26B-A4B at 8,192 tokens on an
H200 (volcengine/verl pull request 7131)."""
_TRAFFIC = 0.85
"""Share of the memory bandwidth that elementwise kernels reach."""
_PASSES = 20.7
"""Bytes moved by elementwise kernels and the thin LoRA products, per byte kept for the backward pass (mask aside)."""
_RECOMPUTED = 1.4
"""The same with checkpointing, which runs the forward kernels twice."""
_DEQUANT = 4.0 + NF4
"""Bytes moved to turn one 4-bit parameter into bf16 and read it once."""
_FLOAT32 = 8
"""How many times slower a GPU multiplies in float32, without tensor cores."""
_LAUNCH = {"cuda": 8e-6, "cpu": 12e-6}
"""Seconds the interpreter needs to start one kernel in eager mode."""
_KERNELS, _KERNELS_MOE = 330, 490
"""Kernels per layer in forward and backward."""


@dataclass(frozen=True)
class Work:
    """Floating-point operations per token slot (a multiply and an add are two)."""

    forward: float
    backward: float
    """Gradients of activations and of the adapter only: the base is frozen."""
    recompute: float
    """The second forward pass of checkpointing."""
    attention: float
    """Of those, the score and value products, over the whole row."""

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recompute


@dataclass(frozen=True)
class Speed:
    """What to expect of one device."""

    tokens_per_second: float
    """Tokens of the data; padding doesn't count."""
    factor: float
    """The truth lies between the estimate divided and multiplied by this."""
    bound: str
    """What most of the time goes to."""
    share: float
    """That part of the time."""


def work(shape: Shape, step: Step, *, row: float, scored: float = 1.0) -> Work:
    """Operations for each slot of rows `row` slots long, of which a share `scored` carries loss.

    A linear costs 2 per parameter forward and 2 backward (its input's gradient), an adapter 2 and 4, attention 4 per
    query width and key forward and 2.5 times that backward, the fused head one product forward and two backward.
    """
    head = 2.0 * shape.hidden * shape.vocab * scored
    linear = 2.0 * (shape.active_per_token() - shape.vocab * shape.hidden)
    lora = 2.0 * step.adapter_parameters
    attention = sum(4.0 * layer.query_width * row for layer in shape.layers)
    again = linear + lora + attention if step.checkpointing else 0.0
    return Work(
        forward=linear + lora + attention + head,
        backward=linear + 2 * lora + 2.5 * attention + 2 * head,
        recompute=again,
        attention=attention * (4.5 if step.checkpointing else 3.5),
    )


def speed(shape: Shape, step: Step, device: Device, *, row: float, scored: float, padded: float) -> Speed | None:
    """Time for one micro-batch of rows of `row` tokens (mean), padded `padded`-fold, on `device`; None where the device's
    speed is unknown."""
    if not device.peak:
        return None
    slots_per_row = min(float(step.length), row * padded)
    padded = slots_per_row / row
    slots = slots_per_row * step.micro_batch
    if not device.cuda:
        scored = 1.0  # without Triton the fused head scores prompts and padding too
    amount = work(shape, step, row=slots_per_row, scored=scored)
    rate = device.peak * 1e12 * device.sustained
    if device.cuda and step.weights == "fp32":
        rate /= _FLOAT32
    bytes_per_second = device.bandwidth * 1e9 * _TRAFFIC
    passes = 3 if step.checkpointing else 2
    # Float32 keeps more and casts less: its traffic is that of bf16 under autocast.
    cast = replace(step, weights="bf16") if step.weights == "fp32" else step
    kept = sum(saved_per_token(shape, layer, cast) - mask_per_token(layer, cast) for layer in shape.layers)
    c = shape.counts()
    times = {
        "matrix products": slots * (amount.total - amount.attention) / (rate * _PRODUCTS),
        "attention": slots * amount.attention / (rate * _ATTENTION),
        "elementwise kernels": slots * kept * _PASSES * (_RECOMPUTED if step.checkpointing else 1) / bytes_per_second,
        "dequantization": (c.attention + c.mlp + c.experts) * _DEQUANT * passes / bytes_per_second
        if step.weights == "nf4"
        else 0.0,
        "expert weights": _expert_traffic(shape, slots, passes, rate, bytes_per_second),
    }
    if not device.bf16:
        scores = sum(layer.heads for layer in shape.layers) * slots_per_row * slots * 4.0
        times["attention"] = slots * amount.attention / (rate * _PRODUCTS) + 12 * scores / bytes_per_second
    if not device.cuda:
        times["attention"] = slots * amount.attention / (rate * _PRODUCTS)
        times["elementwise kernels"] += 60.0 * slots * shape.vocab / bytes_per_second  # the head, folded by torch
    busy = sum(times.values())
    kernels = (
        len(shape.layers) * (_KERNELS_MOE if shape.experts else _KERNELS) * (_RECOMPUTED if step.checkpointing else 1)
    )
    launch = kernels * _LAUNCH["cuda" if device.cuda else "cpu"]
    seconds = max(busy, launch) if device.cuda else busy + launch
    if launch > busy:
        times = {"starting kernels": launch}
    bound = max(times, key=lambda name: times[name])
    rough = not device.cuda or not device.bf16 or shape.experts > 0
    tokens = slots / padded
    return Speed(tokens / seconds, FACTOR_ROUGH if rough else FACTOR, bound, min(1.0, times[bound] / seconds))


def _expert_traffic(shape: Shape, slots: float, passes: int, rate: float, bytes_per_second: float) -> float:
    """Seconds by which reading the experts outlasts multiplying with them: nearly all are hit in every micro-batch."""
    if not shape.experts:
        return 0.0
    reading = 2.0 * shape.counts().experts * passes / bytes_per_second
    chosen = len(shape.layers) * shape.experts_per_token * 3 * shape.hidden * shape.expert_ffn
    return max(0.0, reading - slots * 2.0 * chosen * passes / (rate * _PRODUCTS))
