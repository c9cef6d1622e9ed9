"""Export of what training made: the steps `merge` (adapter into the bf16 base) and `quantize` (GGUF files, audited and
compared).

The functions here only hand over, so that importing the room (a kept step does) costs nothing.
"""

from __future__ import annotations

from pathlib import Path

from gemma_ops.config import MachineConfig, MergeConfig, QuantizeConfig


def merge(
    out: Path, settings: MergeConfig, machine: MachineConfig, *, base: Path, adapter: Path, data: Path | None = None
) -> dict[str, float]:
    """Fold the LoRA adapter into its base: `model/` and `report.json` below `out`. See `merging.py`."""
    from gemma_ops.export.merging import merge_step as run

    return run(out, settings, machine, base=base, adapter=adapter, data=data)


def quantize(
    out: Path, settings: QuantizeConfig, machine: MachineConfig, *, model: Path, data: Path | None = None
) -> dict[str, float]:
    """Write `<format>/model.gguf` and `report.json` below `out`. See `quantizing.py`."""
    from gemma_ops.export.quantizing import quantize_step as run

    return run(out, settings, machine, model=model, data=data)
