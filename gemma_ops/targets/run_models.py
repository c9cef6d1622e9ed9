"""The models of a run, which its targets `base`, `tuned`, a format and `champion` stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunModels:
    """Artifacts (or plain folders) that hold the models of a run; None for one that the run doesn't have."""

    base: Path | None = None
    """Folder of the base checkpoint, as `fetch` leaves it."""
    tuned: Path | None = None
    """Folder of the merged checkpoint, from the step `merge`."""
    quantized: Path | None = None
    """Folder of the step `quantize`, which holds a folder for each GGUF format."""
    champion: Path | None = None
    """Folder of the step `champion`: the registered version to be compared with."""
