"""The bytes that a training step holds on the device, component by component.

Weights, adapters and optimizer states are counted exactly. What a forward pass keeps is in `kept_bytes`; here it is
laid over the layers that are recomputed and those that are not, and the largest workspace is put on top. A simulation
of the real graph (`plan --simulate`) agrees to a few per cent, tests/planning/test_training_memory.py holds its
numbers. What no formula knows is the allocator: see `SPREAD`.
"""

from __future__ import annotations

from gemma_ops.family import Shape
from gemma_ops.planning import kept_bytes
from gemma_ops.planning.training_step import GIB, MemoryPart, PassShape

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per 4-bit parameter: half a byte, one byte of scale for each block of 64, and, with double quantization, one
float32 for each 256 of those (QLoRA, arXiv 2305.14314, section 3)."""
_WIDTH = {"bf16": 2.0, "fp32": 4.0, "nf4": NF4}
_MOMENTS = {"adamw": 8.0, "adamw_8bit": 2.0, "paged_adamw_8bit": 2.0}
"""Bytes of AdamW's two moments per parameter; paged ones may leave a full GPU, and are counted as if they stayed."""

SPREAD = {"weights": 0.02, "adapter": 0.02, "activations": 0.15, "reserve": 0.5}
"""Relative uncertainty by kind. Activations: kernels save slightly different tensors, the allocator rounds and
fragments. Published `reserved` figures of other trainers lie within 10 % of totals computed this way."""

RECORDED = 0.6
"""GiB that captured CUDA graphs keep apart from all other work."""

TOWERS = "vision and audio towers"


def weight_parts(shape: Shape, step: PassShape) -> list[MemoryPart]:
    """Return the frozen base on the device; towers where they are loaded, a per-layer table only where it is not on the
    host.

    With `nf4` exactly attention, MLP and experts are 4-bit. Weights that learn are float32.
    """
    c = shape.counts()
    plain = "fp32" if step.weights == "fp32" or step.full else "bf16"
    packed = "nf4" if step.weights == "nf4" else plain
    rest = ["norms"] + ["router"] * bool(c.router) + ["per-layer projections"] * bool(c.per_layer_linears)
    rows = (
        ("attention and MLP", packed, c.attention + c.mlp),
        ("experts", packed, c.experts),
        ("embedding and head (tied)", plain, c.embedding),
        ("per-layer embedding table", plain, c.per_layer_table if step.ple == "device" else 0),
        (", ".join(rest), plain, c.norms + c.router + c.per_layer_linears),
        (TOWERS, "bf16" if step.weights == "nf4" else plain, step.towers * (c.vision + c.audio)),
    )
    return [MemoryPart(name, "weights", kind, count * _WIDTH[kind]) for name, kind, count in rows if count]


def host_bytes(shape: Shape, step: PassShape) -> float:
    """Return the bytes of the per-layer table in main memory; 0 where it is on the device."""
    return 2.0 * shape.counts().per_layer_table if step.ple == "host" else 0.0


def learning_parts(shape: Shape, step: PassShape) -> list[MemoryPart]:
    """Return what training adds to the weights: LoRA matrices, gradients and AdamW's moments, in float32 whatever the
    base is held in (8-bit optimizers hold their moments in a byte each)."""
    c = shape.counts()
    count = c.text - c.per_layer_table if step.full else step.adapter_parameters
    named = f"LoRA ({count / 1e6:.1f} M parameters) and gradients"
    moments = "fp32" if step.optimizer == "adamw" else "8 bit"
    return [
        MemoryPart("gradients" if step.full else named, "adapter", "fp32", (4.0 if step.full else 8.0) * count),
        MemoryPart("AdamW moments", "adapter", moments, _MOMENTS[step.optimizer] * count),
    ]


def activation_parts(shape: Shape, step: PassShape) -> list[MemoryPart]:
    """Return what the forward pass keeps for the backward pass, and the largest workspace on top of it."""
    layers = [kept_bytes.layer_bytes(shape, layer, step) for layer in shape.layers]
    again = step.recomputed(len(layers))
    inside = max(layers[:again], default=0.0)
    per_token = sum(layers[again:]) + again * step.width * shape.hidden + kept_bytes.end_bytes(shape, step)
    if step.checkpointing == "mlp":
        per_token -= sum(kept_bytes.mlp_bytes(layer, step) for layer in shape.layers)
        inside = max(kept_bytes.mlp_bytes(layer, step) for layer in shape.layers)
    copies = kept_bytes.copy_bytes(step)
    inside_copies = copies / len(layers) if again == len(layers) else 0.0
    always = per_token * step.tokens + (0.0 if again == len(layers) else copies)
    backward = inside * step.tokens + inside_copies + kept_bytes.backward_bytes(shape, step)
    name = "activations" if not again and step.checkpointing != "mlp" else f"activations ({_told(step, len(layers))})"
    return [
        MemoryPart(name, "activations", "mixed", always),
        MemoryPart(
            "workspace: head and backward", "activations", "mixed", max(kept_bytes.head_bytes(shape, step), backward)
        ),
    ]


def _told(step: PassShape, layers: int) -> str:
    if step.checkpointing == "mlp":
        return "MLPs recomputed"
    again = step.recomputed(layers)
    return "recomputed" if again == layers else f"{again} of {layers} layers recomputed"


def recorded(shape: Shape, step: PassShape) -> list[MemoryPart]:
    """Return the extra memory of captured CUDA graphs: their fixed inputs and outputs, a second set of the adapters'
    gradients, and memory that other work can't share with them (fitted to `gemma-ops bench train` on an H200). Where
    other passes are launched, those need what a pass holds once more."""
    if not step.recorded:
        return []
    per_token = step.width * (3 * shape.hidden + len(shape.layers) * shape.per_layer_dim)
    apart = RECORDED * GIB + 4.0 * step.adapter_parameters
    if step.mixed:
        apart += total(activation_parts(shape, step))
    return [MemoryPart("captured CUDA graphs", "activations", "mixed", per_token * step.tokens + apart)]


def reserve(step_parts: list[MemoryPart], *, cuda: bool) -> MemoryPart:
    """Return what the process takes besides tensors: on a GPU the CUDA context, cuBLAS workspaces and 5 % of the
    activations for fragmentation; on a CPU the interpreter with torch, transformers and PEFT (0.55 GiB resident), and
    half of the activations again, which malloc holds in pieces (fitted to `gemma-ops bench train` at both lengths)."""
    loose = sum(part.bytes for part in step_parts if part.kind == "activations")
    if cuda:
        return MemoryPart("CUDA context and fragmentation", "reserve", "", 0.6 * GIB + 0.05 * loose)
    return MemoryPart("Python with torch and transformers", "reserve", "", 0.55 * GIB + 0.5 * loose)


def memory_parts(shape: Shape, step: PassShape) -> list[MemoryPart]:
    """Return the whole table, largest kinds first."""
    found = [
        *weight_parts(shape, step),
        *learning_parts(shape, step),
        *activation_parts(shape, step),
        *recorded(shape, step),
    ]
    return [*found, reserve(found, cuda=step.cuda)]


def total(table: list[MemoryPart]) -> float:
    """Return the bytes of the whole table."""
    return sum(part.bytes for part in table)


def memory_spread(table: list[MemoryPart]) -> float:
    """Return the half-width of the uncertainty in bytes."""
    return sum(part.bytes * SPREAD[part.kind] for part in table)
