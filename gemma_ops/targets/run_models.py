"""The models that a run has: what its targets `base`, `tuned`, a format and `champion` stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunModels:
    """Artifacts (or plain folders) that hold the models of a run; None for one that the run doesn't have."""

    base: Path | None = None
    """A checkpoint, as `fetch` leaves it."""
    tuned: Path | None = None
    """The merged checkpoint of the step `merge`."""
    quantized: Path | None = None
    """The step `quantize`: a folder a GGUF format."""
    champion: Path | None = None
    """The step `champion`: the registered version to be compared with."""
