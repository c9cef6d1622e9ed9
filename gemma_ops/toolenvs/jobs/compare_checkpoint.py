"""The job that reads a quantized checkpoint back and compares what it says with the bf16 checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gemma_ops.toolenvs.jobs.compress import load_checkpoint


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write `measured.npz` with `kl<n>` and `hit<n>`, (tokens,), of each of `conversations`, lists of token ids: the
    divergence of `model` from `reference` in nats at each position, and whether the likeliest token is the same.

    Raises ModelError for a checkpoint in which a parameter has no value.
    """
    import numpy as np
    import torch

    from gemma_ops.stats.divergence import position_divergences

    began = time.monotonic()
    model = load_checkpoint(request["model"], request["mixture"], request["dtype"])
    seconds = time.monotonic() - began
    reference = load_checkpoint(request["reference"], request["mixture"], request["dtype"])
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for number, ids in enumerate(request["conversations"]):
            given = torch.tensor([ids])
            pair = [each(input_ids=given, use_cache=False).logits[0].float().numpy() for each in (reference, model)]
            found[f"kl{number}"], found[f"hit{number}"] = position_divergences(*pair)
    np.savez(folder / "measured.npz", **found)
    return {"load_seconds": seconds, "conversations": len(request["conversations"])}
