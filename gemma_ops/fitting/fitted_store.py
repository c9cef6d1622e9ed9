"""What was fitted so far, on disk: one file a tensor, written as soon as it is known.

A fit that was killed goes on from there: rounding skips the tensors that lie here, and the training of scales goes on
from its last state.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gemma_ops.family.formats import TensorType
from gemma_ops.ggml.lattices import Blocks
from gemma_ops.ggml.packing import pack_blocks, unpack_blocks

_ROUNDED, _TRAINED, _STATE = "rounded", "trained", "state.pt"


class FittedStore:
    """Tensors of a GGUF file by name, in a folder of its own: rounded ones, and trained ones in their place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in (_ROUNDED, _TRAINED):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def __contains__(self, name: object) -> bool:
        return any((self.folder / part / str(name)).exists() for part in (_TRAINED, _ROUNDED))

    def read(self, name: str) -> bytes:
        """Return a tensor's bytes as the file holds them, trained where it was."""
        trained = self.folder / _TRAINED / name
        return (trained if trained.exists() else self.folder / _ROUNDED / name).read_bytes()

    def write_rounded(self, name: str, blocks: Blocks) -> None:
        """Keep rounded rows."""
        self._write(f"{_ROUNDED}/{name}", pack_blocks(blocks).cpu().numpy().tobytes())

    def read_rounded(self, name: str, kind: TensorType, rows: int) -> Blocks:
        """Return rounded rows as they were kept, whatever was trained since."""
        data = torch.frombuffer(bytearray((self.folder / _ROUNDED / name).read_bytes()), dtype=torch.uint8)
        return unpack_blocks(data.view(rows, -1), kind)

    def write_trained(self, name: str, data: bytes) -> None:
        """Keep a tensor's bytes after training."""
        self._write(f"{_TRAINED}/{name}", data)

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep the state of the training of scales."""
        temporary = self.folder / f"{_STATE}.tmp"
        torch.save(state, temporary)
        temporary.replace(self.folder / _STATE)

    def load_state(self) -> dict[str, Any] | None:
        """Return the state of the training of scales; None before the first was kept."""
        path = self.folder / _STATE
        return torch.load(path, weights_only=True) if path.exists() else None

    def _write(self, place: str, data: bytes) -> None:
        temporary = self.folder / f"{place}.tmp"
        temporary.write_bytes(data)
        temporary.replace(self.folder / place)
