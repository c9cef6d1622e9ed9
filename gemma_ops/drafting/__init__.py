"""Drafters for speculative decoding: the step `draft` tunes one on a tuned model's answers, and measures it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.drafting.draft_step import draft
else:
    draft = later("gemma_ops.drafting.draft_step", "draft")

__all__ = ["draft"]
