"""Gemma 4 in memory: find it, load it right, answer with it. The step `fetch`."""

from __future__ import annotations

from pathlib import Path

from gemma_ops.config import MachineConfig, ModelConfig


def fetch(out: Path, settings: ModelConfig, machine: MachineConfig, *, source: Path | None = None) -> dict[str, float]:
    """Find the base model, check that it is whole, and record the digests of its files. See
    `checkpoint_source.fetch_base`."""
    from gemma_ops.modeling.checkpoint_source import fetch_base as run

    return run(out, settings, machine, source=source)
