"""What the files of a step say, in llama.cpp: compared with the checkpoint in transformers, and with each other.

Two files are read side by side, some positions at a time, so that of the probabilities of a whole vocabulary only a few
hundred positions' exist at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gemma_ops.config import MachineConfig
from gemma_ops.errors import GateError
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.export.fidelity import (
    Conversation,
    Divergence,
    FileDivergence,
    logits_divergence,
)
from gemma_ops.modeling.llamacpp import threads_for
from gemma_ops.modeling.llamacpp_library import GgufLogits
from gemma_ops.modeling.load import Weights, load_model, pick_device
from gemma_ops.runs import journal
from gemma_ops.stats.divergence import position_divergences

_ROOM = 1 << 28
"""Logits of the checkpoint that are compared, over all conversations: 1 GiB."""
_FP32_BYTES = 8 << 30  # checkpoints up to this size are compared with transformers in fp32, larger ones in bf16
# Mean KL and top-1 that a right conversion stays within. bf16 activations of transformers alone make 0.003 on badly
# conditioned (random) models, so against bf16 the bounds are wider; wrong names or settings are off by far more.
PARITY = {"fp32": (0.01, 0.95), "bf16": (0.05, 0.9)}


def file_divergence(file: Path, reference: Path, chosen: Sequence[Conversation], threads: int | None) -> FileDivergence:
    """Compare a file with the bf16 file on whole conversations."""
    kls, hits = [], []
    with _open(reference, chosen, threads) as first, _open(file, chosen, threads) as second:
        for each in chosen:
            pairs = zip(first.read_logits(each.ids), second.read_logits(each.ids), strict=True)
            found = [position_divergences(*pair) for pair in pairs]
            kls.append(np.concatenate([kl for kl, _ in found]))
            hits.append(np.concatenate([hit for _, hit in found]))
    return FileDivergence(chosen, kls, hits)


def _open(file: Path, chosen: Sequence[Conversation], threads: int | None) -> GgufLogits:
    context = max(len(each.ids) for each in chosen)
    return GgufLogits(file, context=context, threads=threads_for(file, threads))


def parity_weights(source: MergedCheckpoint) -> Weights:
    """Return the number type in which the checkpoint is run beside its files."""
    return "fp32" if sum(entry.stop - entry.start for entry in source.entries.values()) <= _FP32_BYTES else "bf16"


def check_parity(
    source: MergedCheckpoint, chosen: Sequence[Conversation], reference: Path, machine: MachineConfig
) -> Divergence:
    """Compare the checkpoint in transformers with the bf16 file in llama.cpp, on answers; raises GateError when they
    disagree."""
    weights = parity_weights(source)
    model = load_model(source.folder, weights=weights, device=pick_device(machine.device, source.folder))
    most = max(1, _ROOM // (int(source.text["vocab_size"]) * len(chosen)))

    def compared(each: Conversation, gguf: GgufLogits) -> tuple[np.ndarray, np.ndarray]:
        picked = np.unique(np.linspace(0, len(each.answer) - 1, min(most, len(each.answer))).round().astype(int))
        positions = [each.answer[place] for place in picked]
        logits = model(
            input_ids=torch.tensor([each.ids], device=model.device),
            logits_to_keep=torch.tensor(positions, device=model.device),
            use_cache=False,
        ).logits[0]
        return logits.float().cpu().numpy(), logits_at(gguf, each.ids, positions)

    with torch.inference_mode(), _open(reference, chosen, machine.workers) as gguf:
        result = logits_divergence(compared(each, gguf) for each in chosen)
    journal.record(event="parity", transformers=weights, **result.metrics())
    worst_kl, worst_top1 = PARITY[weights]
    if result.kl > worst_kl or result.top1 < worst_top1:
        raise GateError(
            f"llama.cpp and transformers disagree on the same tokens before any quantization: "
            f"kl {result.kl:.4f} (at most {worst_kl}), top-1 agreement {result.top1:.3f} (at least {worst_top1})",
            "this checkpoint does not convert correctly with these versions: see `gemma-ops doctor`",
        )
    return result


def logits_at(gguf: GgufLogits, ids: list[int], positions: list[int]) -> np.ndarray:
    """Return the logits after some positions, (positions, vocabulary)."""
    found, first = [], 0
    for piece in gguf.read_logits(ids[: positions[-1] + 1]):
        found.append(piece[[place - first for place in positions if first <= place < first + len(piece)]])
        first += len(piece)
    return np.concatenate(found)
