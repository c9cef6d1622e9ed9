"""Training of nano's stock drafter from its seed, against nano's own answers to the lessons.

    python -m gemma_ops.drafting [FOLDER]     train it again, by default over the shipped one

On one machine two trainings end with the same bytes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from gemma_ops.drafting.draft_training import DraftTraining, train_drafter
from gemma_ops.drafting.drafter_unroll import TargetTable
from gemma_ops.drafting.recorded_states import record_states
from gemma_ops.modeling.drafter_files import save_drafter
from gemma_ops.modeling.load import load_model, load_tokenizer
from gemma_ops.nano import WEIGHTS
from gemma_ops.nano.nano_drafter import build_nano_drafter
from gemma_ops.nano.pretrain import lesson_batches

STEPS, ROWS, PEAK, DEPTH, SEED = 600, 32, 4e-3, 4, 20
LESSONS = 4096


def pretrain_drafter(folder: Path, *, steps: int = STEPS, count: int = LESSONS, rows: int = ROWS) -> list[float]:
    """Train a drafter against nano's own answers to `count` lessons, save it in `folder`, and return the loss of every
    step."""
    torch.set_num_threads(1)
    target = load_model(WEIGHTS, weights="fp32")
    batches = lesson_batches(load_tokenizer(WEIGHTS), SEED, rows)
    prompts = [ids[:asked] for _ in range(count // rows) for ids, asked in next(batches)]
    drafter, losses = build_nano_drafter(SEED), []
    settings = DraftTraining(steps, rows, PEAK, DEPTH, SEED)
    with tempfile.TemporaryDirectory() as work:
        recorded = record_states(target, prompts, Path(work) / "states", answer_tokens=64, batch=64)
        embedding = target.get_input_embeddings().weight.detach()
        table = TargetTable(embedding, target.config.get_text_config().final_logit_softcapping)
        for step, loss in train_drafter(drafter, table, recorded, settings, Path(work)):
            losses.append(loss)
            if step % 50 == 0:
                print(f"step {step}/{steps}  loss {sum(losses[-50:]) / 50:.4f}", flush=True)
    save_drafter(drafter, folder)
    return losses
