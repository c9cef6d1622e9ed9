"""Settings that the configuration leaves to the plan, decided on the device that trains, by the rows that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.config import TrainConfig
from gemma_ops.config.methods import REINFORCE
from gemma_ops.errors import ConfigError
from gemma_ops.family import Shape
from gemma_ops.planning import devices, passes
from gemma_ops.planning.devices import GIB, Device
from gemma_ops.runs import journal
from gemma_ops.training.launch.world import world
from gemma_ops.training.steps import Layout


def refuse_warm_up_alone(settings: TrainConfig, table: Any) -> None:
    """Raise ConfigError for a training on the rows of a table whose only step is the warm-up's first."""
    rows = table["length"]
    if refusal := settings.warm_up_alone(len(rows), sum(rows)):
        raise ConfigError(*refusal)


def settle(
    settings: TrainConfig, shape: Shape, tables: list[Any], device: str, *, ple: str, towers: bool = False
) -> TrainConfig:
    """Return `settings` with `checkpointing` and, where rows are packed, `micro_tokens` decided for a model of `shape`.

    `tables` hold the rows, with their `length`: of `grpo` and `rloo` the prompts'. The choice is in the journal; it
    changes speed and memory, and the result by no more than rounding.
    """
    lengths = [length for table in tables for length in table["length"]]
    choice = passes.decide_passes(
        shape, settings, settle_here(device), longest=max(lengths), ple=ple, towers=towers, processes=world().size
    )
    journal.record(
        pass_tokens=choice.tokens, checkpointing=choice.checkpointing, per_layer_table=choice.ple, fits=choice.fits,
        graphs=choice.graphs,
    )  # fmt: skip
    micro = {"micro_tokens": choice.tokens} if settings.packing and settings.method not in REINFORCE else {}
    kernels = settings.kernels.model_copy(update={"graphs": choice.graphs})
    return settings.model_copy(update={"checkpointing": choice.checkpointing, "kernels": kernels, **micro})


def recompute(settings: TrainConfig) -> Any:
    """Return what `kernels.install` recomputes: as decided, or nothing where nobody has asked the plan."""
    return "none" if settings.checkpointing == "auto" else settings.checkpointing


def layout(
    settings: TrainConfig, rows: Any, device: str, *, rank: int = 0, world: int = 1, packs: bool = True
) -> Layout:
    """Return how rows with a table `train` become steps on this machine; `packs` says whether this model can read
    packed rows."""
    return Layout(
        batch=settings.batch,
        batch_tokens=settings.batch_tokens,
        micro_tokens=settings.micro_tokens or max(*rows.train["length"], passes.USUAL[device != "cpu"]),
        micro_batch=None if settings.packing and packs else settings.micro_batch,
        seed=settings.seed,
        rank=rank,
        world=world,
    )


def layout_of(settings: TrainConfig, rows: Any, arguments: Any, *, packs: bool = True) -> Layout:
    """Return the layout for the process and the device that a trainer's arguments say."""
    rank, size = arguments.process_index, arguments.world_size
    return layout(settings, rows, arguments.device.type, rank=rank, world=size, packs=packs)


def shape_of(folder: Path) -> Shape:
    """Return the dimensions of the checkpoint in `folder`."""
    return Shape.from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def settle_here(device: str) -> Device:
    """Return the device that torch calls `device`, as the table of devices knows it, with the memory it really has."""
    import torch

    if not device.startswith("cuda"):
        return devices.processor()
    properties = torch.cuda.get_device_properties(torch.device(device))
    return devices.match_device(properties.name, properties.total_memory / GIB)
