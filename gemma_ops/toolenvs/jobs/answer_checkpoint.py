"""The job that answers prompts greedily with a checkpoint of compressed-tensors, run by transformers: activations are
rounded as the checkpoint says, by arithmetic instead of by an engine's kernels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gemma_ops.toolenvs.jobs.compress import load_checkpoint

_BATCH = 16
"""Prompts that are answered together."""


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return an answer for each of `prompts` (lists of token ids): its token ids without the stop token, whether it
    stopped by itself, and its share of the seconds. `stops` end an answer, `limit` is the most new tokens."""
    model = load_checkpoint(request["model"], request["mixture"])
    answers = []
    for first in range(0, len(request["prompts"]), _BATCH):
        batch = request["prompts"][first : first + _BATCH]
        began = time.monotonic()
        said = [ended(ids, request["stops"]) for ids in _generate(model, batch, request)]
        seconds = (time.monotonic() - began) / len(batch)
        answers += [{"ids": ids, "stopped": stopped, "seconds": seconds} for ids, stopped in said]
    return {"answers": answers}


def ended(ids: list[int], stops: list[int]) -> tuple[list[int], bool]:
    """Return what was written before the first stop token, and whether there was one."""
    place = next((number for number, token in enumerate(ids) if token in stops), None)
    return (ids, False) if place is None else (ids[:place], True)


def _generate(model: Any, batch: list[list[int]], request: dict[str, Any]) -> list[list[int]]:
    """Return what follows each prompt; the shorter ones are padded on the left."""
    import torch

    longest = max(map(len, batch))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
    with torch.inference_mode():
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=request["limit"], do_sample=False, pad_token_id=0,
            eos_token_id=request["stops"],
        )  # fmt: skip
    rows: list[list[int]] = found[:, longest:].tolist()
    return rows
