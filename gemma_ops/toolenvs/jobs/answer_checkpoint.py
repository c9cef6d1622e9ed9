"""The job that answers prompts greedily with a checkpoint of compressed-tensors, run by transformers: activations are
rounded as the checkpoint says, by arithmetic instead of by an engine's kernels."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gemma_ops.toolenvs.jobs.compress import load_checkpoint


def run_job(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return an answer for each of `prompts` (lists of token ids): its token ids without the stop token, whether it
    stopped by itself, and the seconds it took. `stops` are the ids that end an answer, `limit` the most new tokens."""
    import torch

    model = load_checkpoint(request["model"], request["mixture"])
    stops = set(request["stops"])
    answers = []
    for ids in request["prompts"]:
        began = time.monotonic()
        with torch.inference_mode():
            said = model.generate(
                torch.tensor([ids]), max_new_tokens=request["limit"], do_sample=False, eos_token_id=request["stops"]
            )[0].tolist()[len(ids) :]
        stopped = bool(said) and said[-1] in stops
        answers.append({"ids": said[:-1] if stopped else said, "stopped": stopped, "seconds": time.monotonic() - began})
    return {"answers": answers}
