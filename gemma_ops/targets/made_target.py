"""The opening of what the step `quantize` made, by its format: each is answered where it can be run here."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from gemma_ops.config import MachineConfig
from gemma_ops.family.formats import GGUF, PACKED, QUANTIZED
from gemma_ops.targets.checkpoint_target import CheckpointTarget
from gemma_ops.targets.quantized_target import Quantized
from gemma_ops.targets.target import AskingMode
from gemma_ops.targets.tool_target import ToolTarget

LocalTarget: TypeAlias = CheckpointTarget | Quantized | ToolTarget
"""Whatever answers on this machine."""


def open_made(
    name: str,
    form: str,
    file: Path,
    tokenizer: Path,
    machine: MachineConfig,
    *,
    made_by: Path | None = None,
    asked: AskingMode,
) -> LocalTarget:
    """Open the file of a format: GGUF by llama.cpp, a checkpoint whose weights alone are rounded by transformers here,
    everything else in its tool. `made_by` is the artifact that the file belongs to."""
    if form in GGUF:
        return Quantized(name, file, tokenizer, machine, made_by=made_by, asked=asked)
    if form in PACKED and PACKED[form].reads_as == "weights":
        return CheckpointTarget(name, file.parent, machine, asked=asked, made_by=made_by)
    return ToolTarget(name, QUANTIZED[form], file, tokenizer, machine, made_by=made_by, asked=asked)
