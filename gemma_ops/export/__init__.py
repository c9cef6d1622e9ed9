"""What leaves training: the steps `merge` (adapter into the bf16 base) and `quantize` (GGUF files, audited and
compared)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemma_ops.runs.lazy import later

if TYPE_CHECKING:
    from gemma_ops.export.merging import merge
    from gemma_ops.export.quantizing import quantize
else:
    merge = later("gemma_ops.export.merging", "merge")
    quantize = later("gemma_ops.export.quantizing", "quantize")

__all__ = ["merge", "quantize"]
