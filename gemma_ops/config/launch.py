"""On how many processes and machines a training runs, and who starts them. Never part of a fingerprint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gemma_ops.config.section import ConfigSection


class LaunchConfig(ConfigSection):
    """One process by default; several share each optimizer step and reach the same result up to rounding."""

    engine: Literal["local", "torchrun", "ray"] = "local"
    """Who starts the processes of a training: `local` trains in this one; the others replace workers that die."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes a machine: one a GPU."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines, which see the run folder, the base and the data under the same paths."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` holds the model on each process; `fsdp` spreads its parameters over them."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often a killed worker is replaced; training goes on from the last checkpoint."""
    rendezvous: str | None = None
    """Where several machines meet: `host:port` on the first one for `torchrun`, the address of a running cluster for `ray`; null is this machine."""
    gpu: str | None = None
    """GPU a rendered job asks for, as `gemma-ops plan --device` spells it; null takes the cheapest on which the plan fits."""
    image: str | None = None
    """Container image with gemma-ops in it, for a rendered job or deployment that runs in one."""
    volume: str = "gemma-ops"
    """Claim of the volume with configurations, data and runs that every pod of a rendered TrainJob mounts at `/workspace`."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Time limit of a rendered job; null takes three times what the plan says."""
