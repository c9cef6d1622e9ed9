"""How many bytes a training step holds on the device, component by component.

Weights and adapters are counted exactly. Activations follow a formula read off the operations of
`modeling_gemma4.py` (transformers 5.23) under PEFT and TRL's fused head; it reproduces the tensors autograd keeps in a
simulation of the real graph at true dimensions to 1 %, and the peak of a whole step to 5 % (tests/test_plan_memory.py
holds those numbers). What no formula knows is the allocator: see `SPREAD`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gemma_ops.family import Layer, Linear, Shape

GIB = 1 << 30

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes per 4-bit parameter: half a byte, one byte of scale for each block of 64, and, with double quantization, one
float32 for each 256 of those (QLoRA, arXiv 2305.14314, section 3)."""
_WIDTH = {"bf16": 2.0, "fp32": 4.0, "nf4": NF4}

TILE_TOKENS, TILE_VOCAB = 4096, 32_768
"""Tile of TRL's fused head: it never holds more logits than this (trl/kernels/chunked_logprob.py, TRL 1.16)."""
_TORCH_TILES = 8
"""Float32 tiles alive at once where Triton doesn't run and the tile is folded by torch operations (CPU)."""

SPREAD = {"weights": 0.02, "adapter": 0.02, "activations": 0.15, "reserve": 0.5}
"""Relative uncertainty by kind. Activations: kernels save slightly different tensors, the allocator rounds and
fragments. Published `reserved` figures of other trainers lie within 10 % of totals computed this way."""


@dataclass(frozen=True)
class Part:
    """One line of the memory table."""

    name: str
    kind: str
    """`weights`, `adapter`, `activations` or `reserve`."""
    dtype: str
    bytes: float


@dataclass(frozen=True)
class Step:
    """What decides the memory of one forward and backward pass."""

    weights: str
    """`bf16`, `fp32` or `nf4`."""
    rank: int
    linears: tuple[Linear, ...]
    """Those that carry an adapter."""
    micro_batch: int
    length: int
    """Tokens of the longest row."""
    checkpointing: bool
    triton: bool = True
    """The fused head runs as a Triton kernel (CUDA)."""
    fused_attention: bool = True
    """An attention kernel that never holds the score matrix; False on GPUs without bfloat16."""

    @property
    def tokens(self) -> int:
        return self.micro_batch * self.length

    @property
    def width(self) -> int:
        """Bytes of an activation: bfloat16 under autocast, or float32 throughout."""
        return 4 if self.weights == "fp32" else 2

    @cached_property
    def adapter_parameters(self) -> int:
        return self.rank * sum(linear.inputs + linear.outputs for linear in self.linears)

    @cached_property
    def by_layer(self) -> dict[int | None, list[Linear]]:
        """The linears that carry an adapter, by decoder layer."""
        found: dict[int | None, list[Linear]] = {}
        for linear in self.linears:
            found.setdefault(linear.layer, []).append(linear)
        return found


def weights(shape: Shape, dtype: str) -> list[Part]:
    """The frozen base, loaded for text: towers are left out. With `nf4` exactly attention, MLP and experts are 4-bit,
    which the loader verifies to the byte (`modeling.audit`)."""
    c = shape.counts()
    plain = "fp32" if dtype == "fp32" else "bf16"
    rest = ["norms"] + ["router"] * bool(c.router) + ["per-layer projections"] * bool(c.per_layer_linears)
    rows = (
        ("attention and MLP", dtype, c.attention + c.mlp),
        ("experts", dtype, c.experts),
        ("embedding and head (tied)", plain, c.embedding),
        ("per-layer embedding table", plain, c.per_layer_table),
        (", ".join(rest), plain, c.norms + c.router + c.per_layer_linears),
    )
    return [Part(name, "weights", kind, count * _WIDTH[kind]) for name, kind, count in rows if count]


def adapter(step: Step) -> list[Part]:
    """LoRA factors, their gradients and AdamW's two moments, all float32, whatever the base is held in."""
    count = step.adapter_parameters
    return [
        Part(f"LoRA ({count / 1e6:.1f} M parameters) and gradients", "adapter", "fp32", 8.0 * count),
        Part("AdamW moments", "adapter", "fp32", 8.0 * count),
    ]


def activations(shape: Shape, step: Step) -> list[Part]:
    """What the forward pass keeps for the backward pass, and the largest workspace on top of it."""
    per_layer = [saved_per_token(shape, layer, step) for layer in shape.layers]
    ends = 4 * shape.hidden + 8  # the last norm's float32 input and its row statistics
    # Autocast keeps a bf16 copy of each float32 factor: all of them, or those of the layer being recomputed.
    copies = 2.0 * step.adapter_parameters if step.width == 2 else 0.0
    if step.checkpointing:
        inputs = float(step.width * shape.hidden * len(shape.layers))
        # Checkpointing makes the embedding require a gradient, so the per-layer inputs and their norm are kept too.
        inputs += (step.width + 4) * shape.per_layer_dim * len(shape.layers)
        kept = (inputs + ends) * step.tokens
        recomputed = max(per_layer) * step.tokens + copies / len(shape.layers)
    else:
        kept = (sum(per_layer) + ends) * step.tokens + copies
        recomputed = 0.0
    work = max(head_workspace(shape, step), recomputed + backward_buffers(shape, step))
    name = "activations (checkpointed)" if step.checkpointing else "activations"
    return [
        Part(name, "activations", "mixed", kept),
        Part("workspace: head and backward", "activations", "mixed", work),
    ]


def saved_per_token(shape: Shape, layer: Layer, step: Step) -> float:
    """Bytes one layer keeps per token without checkpointing.

    Term by term: each RMSNorm its input in float32 and two statistics; attention q, k, v and output (k and v repeated
    to the number of query heads, except where one head serves all), the row of the mask and the log-sum-exp; the MLP
    gate, its activation and up; each LoRA its input and its rank-wide middle; a mixture of experts the same per chosen
    expert. `layer` tells sliding from global layers apart only by its heads: the mask is dense in both.
    """
    h, q, kv, width = shape.hidden, layer.query_width, layer.kv_width, step.width
    own = not layer.shares_kv
    norms = 4 + bool(shape.per_layer_dim) + 4 * bool(shape.experts)
    total = 4.0 * h * norms + 8 * norms
    total += 4 * (q + 2 * kv * own) + 8 * (layer.heads + 2 * layer.kv_heads * own)
    repeated = 1 < layer.kv_heads < layer.heads
    total += width * (2 * q + (2 * q if repeated else 2 * kv * own)) + 4 * layer.heads
    total += mask_per_token(layer, step) + 3 * width * layer.ffn + _lora_inputs(h, layer, step)
    total += 2 * width * shape.per_layer_dim
    if shape.experts:
        chosen = shape.experts_per_token
        total += chosen * width * (h + 3 * shape.expert_ffn) + 24 * chosen + 4 * shape.experts
    return total


def mask_per_token(layer: Layer, step: Step) -> float:
    """Bytes per token that grow with the length of the row: the mask in the activations' type, and the scores where no
    kernel avoids them."""
    return (step.width + (0 if step.fused_attention else 4 * layer.heads)) * step.length


def _lora_inputs(h: int, layer: Layer, step: Step) -> float:
    """Bytes per token that the adapters of one layer keep."""
    here = step.by_layer.get(layer.index, [])
    middles = step.width * step.rank * len(here)
    if step.width == 2:  # PEFT casts the input to the adapter's float32 and autocast back: a copy of its own per module
        return middles + sum(2 * linear.inputs for linear in here)
    # In one type throughout nothing is copied: modules fed by one tensor share it, and attention keeps its output anyway.
    names = {linear.name.rsplit(".", 1)[1] for linear in here}
    shared = bool(names & {"q_proj", "k_proj", "v_proj"}) + bool(names & {"gate_proj", "up_proj"})
    return middles + step.width * (h * shared + layer.ffn * ("down_proj" in names))


def head_workspace(shape: Shape, step: Step) -> float:
    """The fused head: one tile of logits, the scored hidden states, and their gradient in float32. Counted for every
    token scored; prompts are not, so this is an upper bound."""
    tokens, vocab = min(step.tokens, TILE_TOKENS), min(shape.vocab, TILE_VOCAB)
    tile = float(step.width * tokens * TILE_VOCAB)
    if not step.triton:
        tile += 4.0 * _TORCH_TILES * tokens * vocab
    return tile + 8.0 * step.tokens * shape.hidden


def backward_buffers(shape: Shape, step: Step) -> float:
    """Gradients alive at once inside one layer (about five of the widest), and one dequantized weight (or a layer's
    stack of experts) for nf4."""
    widest = max(layer.ffn for layer in shape.layers)
    per_token = step.width * (5.0 * widest + 6 * shape.experts_per_token * shape.hidden)
    if not step.fused_attention:
        per_token += 8 * max(layer.heads for layer in shape.layers) * step.length
    stack = 2 * shape.experts * shape.expert_ffn * shape.hidden
    dequantized = 2 * max(stack, *(linear.parameters for linear in shape.linears())) if step.weights == "nf4" else 0
    return per_token * step.tokens + dequantized


def reserve(step_parts: list[Part], *, cuda: bool) -> Part:
    """What the process takes beside tensors: on a GPU the CUDA context, cuBLAS workspaces and 5 % of the activations for
    fragmentation; on a CPU the interpreter with torch, transformers and PEFT (0.9 GiB resident)."""
    loose = sum(part.bytes for part in step_parts if part.kind == "activations")
    if cuda:
        return Part("CUDA context and fragmentation", "reserve", "", 0.6 * GIB + 0.05 * loose)
    return Part("Python with torch and transformers", "reserve", "", 0.9 * GIB)


def parts(shape: Shape, step: Step, *, cuda: bool) -> list[Part]:
    """The whole table, largest kinds first."""
    found = [*weights(shape, step.weights), *adapter(step), *activations(shape, step)]
    return [*found, reserve(found, cuda=cuda)]


def spread(table: list[Part]) -> float:
    """Half-width of the uncertainty in bytes."""
    return sum(part.bytes * SPREAD[part.kind] for part in table)
