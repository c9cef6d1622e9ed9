"""An adapter's GGUF file beside the adapter in PEFT: the same distributions on the same tokens, and others than the
base's, for an adapter that loads and does nothing is the failure that nobody sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gemma_ops.config import MachineConfig
from gemma_ops.errors import GateError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.fidelity import Divergence, logits_divergence
from gemma_ops.export.file_fidelity import PARITY, logits_at, parity_weights
from gemma_ops.export.folder import check_room
from gemma_ops.export.gguf_tensors import plan_tensors
from gemma_ops.export.gguf_writer import write_gguf
from gemma_ops.family.formats import GGUF, REFERENCE
from gemma_ops.modeling.llamacpp import threads_for
from gemma_ops.modeling.llamacpp_library import GgufLogits
from gemma_ops.modeling.load import load_model, pick_device, put_on
from gemma_ops.runs import journal

_POSITIONS = 64
"""Positions at the end of each prompt that are compared."""


@dataclass(frozen=True)
class AdapterParity:
    """Divergence of llama.cpp with the adapter's file, and without it, from PEFT."""

    adapter: Divergence
    base: Divergence

    def report(self) -> dict[str, Any]:
        """Return the numbers for `report.json`."""
        return {"peft": self.adapter.report(), "without_it": self.base.report()}

    def metrics(self) -> dict[str, float]:
        """Return the step's metrics."""
        return {"adapter/kl": self.adapter.kl, "adapter/top1": self.adapter.top1, "adapter/base_kl": self.base.kl}


def check_adapter(
    file: Path,
    adapter: Path,
    base: MergedCheckpoint,
    prompts: Sequence[list[int]],
    machine: MachineConfig,
    *,
    scratch: Path,
) -> AdapterParity:
    """Compare the file with the adapter on prompts of token ids. The base's own GGUF file is made as `scratch` for
    that, and removed.

    Raises GateError where llama.cpp disagrees with PEFT, or is no nearer to it with the file than without.
    """
    expected = _expected(adapter, base, prompts, machine)
    size = sum(entry.parameters for entry in base.entries.values())
    check_room(scratch.parent, int(size * GGUF[REFERENCE].most_bits / 8))
    try:
        write_gguf(base, plan_tensors(base, REFERENCE), scratch, threads=machine.workers or 1)
        longest = max(map(len, prompts))
        with GgufLogits(scratch, context=longest, threads=threads_for(scratch, machine.workers)) as gguf:
            without = _divergence(gguf, prompts, expected)
            gguf.put_on(file)
            found = AdapterParity(_divergence(gguf, prompts, expected), without)
    finally:
        scratch.unlink(missing_ok=True)
    journal.record(event="adapter", **found.metrics())
    worst_kl, worst_top1 = PARITY[parity_weights(base)]
    same = found.adapter.kl <= worst_kl and found.adapter.top1 >= worst_top1
    if not same or found.adapter.kl >= found.base.kl:
        raise GateError(
            f"llama.cpp with the adapter's file disagrees with the adapter: kl {found.adapter.kl:.4f} (at most "
            f"{worst_kl}, and {found.base.kl:.4f} without it), top-1 {found.adapter.top1:.3f} (at least {worst_top1})",
            "leave the file out (merge.gguf_adapter=false), and quantize the merged checkpoint",
        )
    return found


def _places(ids: list[int]) -> list[int]:
    return list(range(max(0, len(ids) - _POSITIONS), len(ids)))


def _expected(
    adapter: Path, base: MergedCheckpoint, prompts: Sequence[list[int]], machine: MachineConfig
) -> list[np.ndarray]:
    """Return the logits of base and adapter at the last positions of each prompt, (positions, vocabulary)."""
    device = pick_device(machine.device, base.folder)
    model = put_on(load_model(base.folder, weights=parity_weights(base), device=device), adapter, base.folder)
    found = []
    with torch.inference_mode():
        for ids in prompts:
            given = torch.tensor([ids], device=model.device)
            logits = model(input_ids=given, logits_to_keep=len(_places(ids)), use_cache=False).logits[0]
            found.append(np.asarray(logits.float().cpu()))
    return found


def _divergence(gguf: GgufLogits, prompts: Sequence[list[int]], expected: Sequence[np.ndarray]) -> Divergence:
    found = (logits_at(gguf, ids, _places(ids)) for ids in prompts)
    return logits_divergence(zip(expected, found, strict=True))
