"""The settings of one benchmark: a shape, rows, a step, and how often. Free of torch; what differs between two specs
makes their numbers incomparable, so a spec is kept with every result.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from gemma_ops import family
from gemma_ops.bench.training import bench_shapes
from gemma_ops.errors import ConfigError

LENGTHS = {"chat": (300, 2048), "long": (1200, 4096)}
"""Mean and longest row in tokens; lengths are log-normal with a sigma of 0.9, as chats are."""
DEFAULT_ARMS = ("trl", "trl-packed", "gemma-ops", "unsloth", "axolotl")
_ROWS = {("cpu", "chat"): 8, ("cpu", "long"): 4, ("cuda", "chat"): 64, ("cuda", "long"): 16}
"""Rows of an optimizer step by device: some 2,400 to 4,800 tokens on a CPU, 19,000 on a GPU."""

Device = Literal["cpu", "cuda"]
Weights = Literal["bf16", "nf4", "fp32"]


@dataclass(frozen=True)
class BenchSpec:
    """One benchmark. Every arm sees the same rows in every optimizer step."""

    size: str
    """`tiny`, `cpu`, or a size of the family in lower case."""
    device: Device
    weights: Weights
    mean: int
    """Tokens of a row on average, before the longest are cut."""
    longest: int
    batch: int
    """Rows of an optimizer step."""
    micro_batch: int
    """Rows of a forward pass where rows are padded. TRL's default is 8, which pads more."""
    row_length: int
    """Tokens of a packed row of TRL."""
    steps: int
    """Timed optimizer steps; one more goes before them and is not timed."""
    repeats: int
    arms: tuple[str, ...] = DEFAULT_ARMS
    micro_tokens: int | None = None
    """`train.micro_tokens` of gemma-ops; None leaves it to the plan, as a user would."""
    checkpointing: str = "auto"
    """`train.checkpointing` of gemma-ops."""
    graphs: str = "auto"
    """`train.kernels.graphs` of gemma-ops."""
    layers: int | None = None
    """Decoder layers left of the stack; None takes all."""
    scored: float = 0.6
    """Share of tokens with loss, on average."""
    rank: int = 16
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.size not in bench_shapes.KEYS:
            raise ConfigError(f"unknown size {self.size!r}", f"one of: {', '.join(bench_shapes.KEYS)}")
        if self.longest > self.row_length:
            raise ConfigError(
                f"rows of up to {self.longest:,} tokens don't fit packed rows of {self.row_length:,}",
                "raise --row-length, or lower --max",
            )
        if self.batch % self.micro_batch:
            raise ConfigError(
                f"--micro-batch ({self.micro_batch}) must divide --batch ({self.batch})", "change one of them"
            )
        bench_shapes.text_config(self.size, self.layers)  # refuses a stack that can't be cut there

    @property
    def name(self) -> str:
        """Return what tells this benchmark from others of a suite, for a folder's name."""
        cut = f"-{self.layers}-layers" if self.layers else ""
        again = "" if self.checkpointing == "auto" else f"-{self.checkpointing}"
        launched = "-launched" if self.graphs == "off" else ""
        return f"{self.size}{cut}-{self.weights}-{self.mean}-{self.row_length}{again}{launched}"

    @property
    def saved(self) -> bool:
        """True if the model is written once as a checkpoint and loaded by every arm; true sizes are made in memory
        instead."""
        return self.size in bench_shapes.SMALL

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"arms": list(self.arms)}

    def measures_like(self, body: dict[str, Any]) -> bool:
        """True if results kept under another spec can be compared with this one's: only the arms and the number of
        repeats may differ."""
        free = {"arms", "repeats"}
        return {k: v for k, v in self.to_json().items() if k not in free} == {
            k: v for k, v in body.items() if k not in free
        }


def from_json(body: dict[str, Any]) -> BenchSpec:
    known: dict[str, Any] = {field.name: body[field.name] for field in fields(BenchSpec) if field.name in body}
    return BenchSpec(**known | {"arms": tuple(body["arms"])})


def make_spec(
    size: str = "cpu",
    *,
    device: Device | None = None,
    weights: Weights = "bf16",
    lengths: str = "chat",
    mean: int | None = None,
    longest: int | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
    row_length: int | None = None,
    steps: int | None = None,
    repeats: int | None = None,
    **more: Any,
) -> BenchSpec:
    """Return a spec with the defaults of its size and lengths filled in. Raises ConfigError for what can't be."""
    if lengths not in LENGTHS:
        raise ConfigError(f"unknown lengths {lengths!r}", f"one of: {', '.join(LENGTHS)}; or give --mean and --max")
    size = size.lower()
    place: Device = device or ("cpu" if size in bench_shapes.SMALL else "cuda")
    if size == "tiny":
        typical, most, rows, micro = 40, 120, 8, 4
    else:
        (typical, most), rows = LENGTHS[lengths], _ROWS[place, lengths]
        micro = 4 if lengths == "chat" else 2
    longest = longest or (min(most, row_length) if row_length else most)
    rows = batch or rows
    return BenchSpec(
        size=size,
        device=place,
        weights=weights,
        mean=mean or typical,
        longest=longest,
        batch=rows,
        micro_batch=micro_batch or min(micro, rows),
        row_length=row_length or longest,
        steps=steps or (1 if place == "cpu" else 3),
        repeats=repeats or 3,
        **more,
    )


def check_arms(names: tuple[str, ...], known: tuple[str, ...]) -> None:
    """Raise ConfigError for an arm that is unknown."""
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ConfigError(f"unknown arm {wrong[0]!r}", f"one of: {', '.join(known)}")


def parameters(spec: BenchSpec) -> int:
    """Return the exact parameters of the whole text model."""
    return family.Shape.from_config(bench_shapes.text_config(spec.size, spec.layers)).counts().text
