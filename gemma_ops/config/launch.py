"""On how many processes and machines a training runs, and who starts them. Never part of a fingerprint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.config.section import Section


class LaunchConfig(Section):
    """One process by default; several share each optimizer step and reach the same result up to rounding."""

    engine: Literal["local", "torchrun", "ray"] = "local"
    """Who starts the processes of a training."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes a machine: one a GPU."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` holds the model on each process; `fsdp` spreads its parameters over them."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often a killed worker is replaced; training goes on from the last checkpoint."""
