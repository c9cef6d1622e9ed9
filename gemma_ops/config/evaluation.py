"""Who answers which questions, and what must hold before a version is promoted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gemma_ops.config.section import LOCATION, Name, Section


class GateConfig(Section):
    """One condition of the verdict."""

    metric: str
    """A metric of the task, for example `exact_match`."""
    task: str | None = None
    """Which task; may be left out when there is one."""
    target: str = "tuned"
    """Who must pass."""
    test: Literal["superior", "noninferior", "at_least"]
    """`superior`: better than `versus` by more than `margin`; `noninferior`: not worse by `margin`; `at_least`: the
    metric itself reaches `margin`. Each is decided on an interval, so it can end inconclusive."""
    versus: str | None = None
    """The other target, for the two paired tests."""
    margin: float = 0.0
    """In the metric's own units."""

    @model_validator(mode="after")
    def _rival(self) -> GateConfig:
        if (self.versus is None) != (self.test == "at_least"):
            raise ValueError("superior and noninferior need `versus`; at_least takes none")
        return self


class EvaluateConfig(Section):
    """Who answers which questions, and what must hold."""

    tasks: Annotated[tuple[str, ...], LOCATION] = ()
    """Folders under `eval/` (or paths) holding a `task.yaml`."""
    targets: tuple[str, ...] = ("base", "tuned", "q8_0", "q4_0")
    """`base`, `tuned`, or a quantized format of this run."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Answer only this many questions of each task, the first by hash of their id."""
    gates: tuple[GateConfig, ...] = ()
    """Conditions of the verdict."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of every interval, and 1 - alpha of the gates together (Holm)."""
    seed: Annotated[int, Field(ge=0)] = 7
    """Seed of the bootstraps."""


class RegisterConfig(Section):
    """The version in MLflow's registry."""

    name: Name | None = None
    """Registered model name; null takes the run's name."""
    description: str = ""
    """One paragraph for the model card."""
    artifacts: tuple[Literal["adapter", "merged", "bf16", "q8_0", "q4_0"], ...] = ("adapter", "q8_0", "q4_0")
    """What the version carries."""
