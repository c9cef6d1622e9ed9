"""One forward and backward pass of a training, as far as it decides memory and time."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from gemma_ops.config import KernelsConfig
from gemma_ops.family import Linear

GIB = 1 << 30


Checkpointing = Literal["none", "mlp", "all"] | int


@dataclass(frozen=True)
class MemoryPart:
    """One line of the memory table."""

    name: str
    kind: str
    """`weights`, `adapter`, `activations` or `reserve`."""
    dtype: str
    bytes: float


@dataclass(frozen=True)
class PassShape:
    """What decides the memory and the time of one forward and backward pass."""

    weights: str
    """`bf16`, `fp32` or `nf4`."""
    rank: int
    linears: tuple[Linear, ...]
    """Linears that carry an adapter."""
    tokens: int
    """Token slots of the largest forward pass: packed tokens, or rows times the longest."""
    length: int
    """Tokens of the longest row of that pass."""
    checkpointing: Checkpointing = "none"
    """What the backward pass recomputes: nothing, the MLPs, all layers, or the first so many."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    scored: float = 1.0
    """Share of the slots with loss."""
    ple: Literal["device", "host"] = "device"
    """Device that holds the per-layer table."""
    optimizer: str = "adamw"
    full: bool = False
    """Whether all parameters learn instead of an adapter."""
    cuda: bool = True
    fused_attention: bool = True
    """Whether an attention kernel runs that never holds the score matrix; False on GPUs without bfloat16."""
    towers: bool = False
    """Whether the vision and audio towers are loaded too."""
    replays: bool = True
    """Whether this training may replay passes that were captured as CUDA graphs."""
    mixed: bool = False
    """Whether some passes, those of long documents, are launched one by one all the same."""

    @property
    def recorded(self) -> bool:
        """True if passes are captured as CUDA graphs: adapters in bfloat16 on one GPU, with every kernel on."""
        return (
            self.kernels.records
            and self.replays
            and self.cuda
            and self.fused_attention
            and not self.full
            and self.width == 2
        )

    @property
    def replayed(self) -> bool:
        """True if every pass is replayed."""
        return self.recorded and not self.mixed

    @property
    def width(self) -> int:
        """Return the bytes of an activation: bfloat16, or float32 throughout."""
        return 4 if self.weights == "fp32" else 2

    @cached_property
    def adapter_parameters(self) -> int:
        return self.rank * sum(linear.inputs + linear.outputs for linear in self.linears)

    @cached_property
    def by_layer(self) -> dict[int | None, list[Linear]]:
        """Return the linears that carry an adapter, by decoder layer."""
        found: dict[int | None, list[Linear]] = {}
        for linear in self.linears:
            found.setdefault(linear.layer, []).append(linear)
        return found

    def recomputed(self, layers: int) -> int:
        """Return how many whole layers of so many are recomputed."""
        if isinstance(self.checkpointing, int):
            return min(self.checkpointing, layers)
        return layers if self.checkpointing == "all" else 0
