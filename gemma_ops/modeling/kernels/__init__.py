"""Exact, faster forms of Gemma 4's operations, put into a loaded model one by one."""

from __future__ import annotations

from typing import Any, Literal

from gemma_ops.config import KernelsConfig


def install(model: Any, settings: KernelsConfig, *, recompute: Literal["none", "mlp", "all"] | int = "none") -> None:
    """Put the kernels of `settings` into the decoder layers of a loaded model."""
