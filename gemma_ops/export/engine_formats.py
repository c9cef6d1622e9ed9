"""The formats of the step `quantize` that are no GGUF files: checkpoints for vLLM, and files for phones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gemma_ops.config import Privacy
from gemma_ops.export.packed_files import PackedWork, make_packed_files
from gemma_ops.family.formats import PACKED


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
    return {**make_packed_files(work, [name for name in formats if name in PACKED], learned)}
