"""Gemini through google-genai: the only door to it. Bounded in dollars, guarded by privacy, safe to kill.

`open_gemini` gives a run its door. A request is checked at the boundary, looked up in the store, has its worst price
reserved, is sent by the courier, and is paid for and kept in one transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_ops.config import MachineConfig
    from gemma_ops.gemini.door import Gemini


def open_gemini(machine: MachineConfig, *, run: str) -> Gemini:
    """Open the door for one run (see `door.open_door`, which says what it raises)."""
    from gemma_ops.gemini import door

    return door.open_door(machine, run=run)
