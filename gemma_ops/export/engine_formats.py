"""The formats of the step `quantize` that are no GGUF files: checkpoints for vLLM, and files for phones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gemma_ops.config import MachineConfig, Privacy, QuantizeConfig
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.edge_files import make_edge_files
from gemma_ops.export.packed_files import PackedWork, make_packed_files
from gemma_ops.family import Shape
from gemma_ops.family.formats import EDGE, PACKED
from gemma_ops.planning.edge_memory import check_conversion
from gemma_ops.runs.processes import free_memory
from gemma_ops.toolenvs.format_tools import missing_tools


def check_engine_formats(source: MergedCheckpoint, settings: QuantizeConfig, machine: MachineConfig) -> None:
    """Refuse, before anything is made, formats whose tool isn't here, and files for phones that this machine has no
    memory for. Raises MachineError, and ModelError for a model that is not converted."""
    for missing in missing_tools(settings, machine):
        raise missing
    if any(form in EDGE for form in settings.formats):
        shape = Shape.from_config(source.config)
        check_conversion(shape, free_memory(), grafted=settings.edge_graphs is not None)


class MadeFormat(Protocol):
    """What a format became."""

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""

    def metrics(self) -> dict[str, float]:
        """Return the step's metrics."""


def make_engine_formats(
    work: PackedWork, formats: Sequence[str], learned: Mapping[str, Privacy]
) -> dict[str, MadeFormat]:
    """Make, audit and measure formats, each with its class in `learned`. Raises as `make_packed_files` does."""
    return {
        **make_packed_files(work, [name for name in formats if name in PACKED], learned),
        **make_edge_files(work, [name for name in formats if name in EDGE], learned),
    }
