"""Gemma 4 in memory: find it, load it right, answer with it. The step `fetch`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.modeling.checkpoint_source import fetch
else:
    fetch = later("gemma_ops.modeling.checkpoint_source", "fetch")

__all__ = ["fetch"]
