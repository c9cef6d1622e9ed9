"""Rows written by a teacher from documents or seeds."""

from __future__ import annotations

from typing import Annotated

from gemma_ops.config.section import LOCATION, Section


class SynthConfig(Section):
    """What to write rows from, and who writes them."""

    documents: Annotated[str | None, LOCATION] = None
    """A file or folder: md, txt, html, jsonl (pdf with the extra)."""
    teacher: str = "base"
    """Who writes: `base` (the local Gemma of `model.base`), or `gemini:MODEL`."""
