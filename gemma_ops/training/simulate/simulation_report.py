"""The report of `gemma-ops plan --simulate`: the plan's own pass, run on fake tensors, next to the plan's formula."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gemma_ops import family
from gemma_ops.config import RunConfig
from gemma_ops.family import Shape
from gemma_ops.planning import TrainingPlan, training_memory
from gemma_ops.planning.training_step import GIB


@dataclass(frozen=True)
class Simulation:
    """Bytes on the device at the highest point of one training step."""

    total: int
    """Bytes of weights, adapter, moments and activations, without what the process itself takes."""
    formula: int
    """Bytes that the plan's formula gives for `total`."""
    kept: int
    """Bytes that the forward pass keeps for the backward pass."""
    operation: str
    """Operation that runs at the highest point."""
    shapes: tuple[tuple[int, ...], ...]
    seconds: float

    def lines(self) -> list[str]:
        """Return two lines for a person."""
        where = " and ".join("x".join(map(str, shape)) for shape in self.shapes) or "a number"
        highest = f"{self.total / GIB:.2f} GiB at the highest point ({self.operation}, making {where})"
        return [
            f"simulated {highest}, {self.kept / GIB:.2f} GiB of it kept for the backward pass",
            (
                f"          the formula says {self.formula / GIB:.2f} GiB; one real step on fake tensors took "
                f"{self.seconds:.0f} s"
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def simulate_plan(config: RunConfig, made: TrainingPlan) -> Simulation:
    """Run the largest forward and backward pass of `made` on documents as long as its rows.

    Weights in 4 bits are counted by formula (`memory.weights`, exact), with the largest one dequantized on top, and so
    are towers and what recording passes takes (`memory.recorded`); all else is what the real modules allocate. Takes
    seconds to a minute and some 600 MB, whatever the size of the model.
    """
    from gemma_ops.training.simulate.step import simulate

    step, shape = made.choice.step, _shape(config.model.base, made)
    done = simulate(
        _text(config.model.base, made),
        config.train,
        _documents(made, step.tokens),
        checkpointing=step.checkpointing,
        ple=step.ple,
        scored=step.scored,
    )
    total = done.peak + int(training_memory.total(training_memory.recorded(shape, step)))
    if step.weights == "nf4":
        total += (
            int(training_memory.total(training_memory.weight_parts(shape, step))) - done.weights + _dequantized(shape)
        )
    elif step.towers:
        total += int(
            sum(part.bytes for part in training_memory.weight_parts(shape, step) if part.name == training_memory.TOWERS)
        )
    formula = sum(part.bytes for part in made.parts if part.kind != "reserve")
    return Simulation(total, int(formula), done.kept, done.at.operation, done.at.shapes, done.seconds)


def _dequantized(shape: Shape) -> int:
    """Return the bytes of the largest 4-bit weight in bf16: a stack of experts, or a linear."""
    stack = 2 * shape.experts * shape.hidden * shape.expert_ffn
    return 2 * max(stack, *(linear.parameters for linear in shape.linears()))


def _documents(made: TrainingPlan, tokens: int) -> list[int]:
    """Return lengths of rows that fill one pass, spread over the distribution."""
    lengths = [max(1, round(length)) for length in made.rows.lengths]
    found: list[int] = []
    index = 0
    while sum(found) < tokens:
        length = lengths[(index * 7919) % len(lengths)]  # a prime: all of them in turn, short and long mixed
        found.append(min(length, tokens - sum(found)))
        index += 1
    return found


def _text(base: str, made: TrainingPlan) -> dict[str, Any]:
    """Return the text part of the model's configuration, with its `model_type`."""
    body = family.CONFIGS[made.size] if made.size else _body(base)
    if "text_config" not in body:
        return dict(body)
    return {"model_type": f"{body['model_type']}_text", **body["text_config"]}


def _shape(base: str, made: TrainingPlan) -> Shape:
    return family.SIZES[made.size].shape if made.size else Shape.from_config(_body(base))


def _body(base: str) -> dict[str, Any]:
    from gemma_ops.planning.training_plan import base_folder

    found: dict[str, Any] = json.loads((Path(base_folder(base)) / "config.json").read_text(encoding="utf-8"))
    return found
