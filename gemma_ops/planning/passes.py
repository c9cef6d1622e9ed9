"""Settings that the configuration leaves open: tokens of a forward pass, what the backward pass recomputes, and where
the per-layer table lies.

The same answer for the same shape, settings, rows and device, so that `gemma-ops plan` says what `gemma-ops train`
does. Ways are tried from the fastest on: nothing recomputed, the MLPs (two of three of their products again, for half
of the bytes), so many layers, all of them; large passes before small ones, because a pass costs a launch of every
kernel and, in 4 bits, of every weight's dequantization. What doesn't fit even so is tried without recording passes as
CUDA graphs, and so is each way where documents are too long for all passes to be captured: two kinds of passes don't
share memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gemma_ops import family
from gemma_ops.config import TrainConfig
from gemma_ops.config.methods import REINFORCE
from gemma_ops.family import Shape
from gemma_ops.planning import training_memory
from gemma_ops.planning.devices import GIB, Device
from gemma_ops.planning.training_step import Checkpointing, PassShape

USUAL = {True: 8192, False: 4096}
"""Tokens of a forward pass where memory allows: enough to hide a GPU's launches, or to stay near a processor's
caches."""
_LEAST = 2048
"""Tokens of smaller passes, which are only tried when everything else fails."""

FEW, LONG, FAR = 8, 2048, 4096
"""Limits of `attention_packed`, repeated here so that planning needs no torch."""
REPLAYED = ("sft", "dft", "distill", "pretrain")
"""Methods whose passes may be captured as CUDA graphs: each ends with its backward pass before the next begins."""
Place = Literal["device", "host"]


@dataclass(frozen=True)
class Choice:
    """The decision, as `train.checkpointing`, `train.micro_tokens`, `machine.ple` and `train.kernels.graphs` spell
    it."""

    checkpointing: Checkpointing
    tokens: int
    """Token slots of the largest forward pass; with `packing` that is `train.micro_tokens`."""
    ple: Place
    graphs: Literal["auto", "off"]
    """`off` where captured CUDA graphs would not fit: they take memory of their own, and where some passes are too long
    to capture, a pass's memory once more."""
    fits: bool
    """False when even the most frugal way exceeds the device's memory by this arithmetic."""
    step: PassShape


def decide_passes(
    shape: Shape,
    train: TrainConfig,
    device: Device,
    *,
    longest: int,
    ple: str = "auto",
    towers: bool = False,
    processes: int = 1,
) -> Choice:
    """Choose the fastest way that fits `device`, whose memory is in GiB, for rows of at most `longest` tokens, all of
    which may carry loss, on so many processes with a device each. `towers` are loaded where rows show something. What
    `train` and `ple` state is kept."""
    place: Place = "host" if (ple == "host" or (ple == "auto" and device.cuda)) and shape.per_layer_dim else "device"
    linears = () if train.tune == "full" else tuple(family.lora_linears(shape, train.lora.targets))
    last: Choice | None = None
    replays, steady = processes == 1 and _replays(train, shape, device), _steady(shape, device, longest)
    for checkpointing, tokens, graphs in _ways(shape, train, device, longest, mixed=replays and not steady):
        step = PassShape(
            weights=train.weights,
            rank=train.lora.rank,
            linears=linears,
            tokens=tokens,
            length=longest,
            checkpointing=checkpointing,
            kernels=train.kernels.model_copy(update={"graphs": graphs}),
            ple=place,
            optimizer=train.optimizer,
            full=train.tune == "full",
            cuda=device.cuda,
            fused_attention=device.bf16,
            towers=towers,
            replays=replays,
            mixed=not steady,
        )
        table = training_memory.memory_parts(shape, step)
        fits = training_memory.total(table) + training_memory.memory_spread(table) <= device.memory * GIB
        last = Choice(checkpointing, tokens, place, graphs, fits, step)
        if fits:
            break
    assert last is not None
    return last


def _replays(train: TrainConfig, shape: Shape, device: Device) -> bool:
    """True if this training has passes that may be captured: of one row, with nothing random in their layers, by
    attention and experts that don't depend on the documents."""
    one = train.packing or train.micro_batch == 1
    fixed = device.cuda and (device.hopper or _heads(shape) > FEW) and (device.groups or not shape.experts)
    return train.method in REPLAYED and one and not train.lora.dropout and fixed


def _steady(shape: Shape, device: Device, longest: int) -> bool:
    """True if captured passes take the fastest attention there is (`attention_packed.steady`)."""
    return longest <= FAR if device.hopper else _heads(shape) > FEW and longest <= LONG


def _heads(shape: Shape) -> int:
    return max(layer.heads for layer in shape.layers)


def _ways(
    shape: Shape, train: TrainConfig, device: Device, longest: int, *, mixed: bool
) -> Iterator[tuple[Checkpointing, int, Literal["auto", "off"]]]:
    """Yield recomputation, pass sizes and `graphs` to try, the fastest first, the most frugal last. With `mixed`, what
    a capture of some passes takes is better spent on recomputing less."""
    sizes = _sizes(train, device, longest)
    tried = ("auto", "off") if mixed and train.kernels.graphs == "auto" else (train.kernels.graphs,)
    if train.checkpointing != "auto":
        plain: list[tuple[Checkpointing, int]] = [(train.checkpointing, tokens) for tokens in sizes]
    else:
        large = [tokens for tokens in sizes if tokens >= min(_LEAST, sizes[0])]
        count = len(shape.layers)
        some = [round(count * part / 4) for part in (1, 2, 3)]
        for one in ("none", "mlp", *some, "all"):
            yield from ((one, tokens, graphs) for tokens in large[:2] for graphs in tried)  # type: ignore[misc]
        plain = [("all", tokens) for tokens in sizes]
    yield from ((one, tokens, graphs) for one, tokens in plain for graphs in tried)  # type: ignore[misc]
    if tried == ("auto",) and device.cuda:
        yield from ((one, tokens, "off") for one, tokens in plain)


def _sizes(train: TrainConfig, device: Device, longest: int) -> list[int]:
    """Return token slots of a forward pass, largest first; `longest` is a whole row, or for `grpo` and `rloo` a
    prompt."""
    if train.method in REINFORCE:
        return [train.micro_batch * (longest + train.reinforce.max_new_tokens)]
    if not train.packing:
        return [train.micro_batch * longest]
    if train.micro_tokens:
        return [train.micro_tokens]
    tokens = max(longest, USUAL[device.cuda])
    sizes = [tokens]
    while tokens > longest:
        tokens = max(longest, tokens // 2)
        sizes.append(tokens)
    return sizes
