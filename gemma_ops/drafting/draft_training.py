"""Training of a drafter against what the target said, with the target frozen and gone from memory.

The loss of each token ahead is the divergence KL(target || drafter) of the next-token probabilities. The target's are
made again from its recorded states and its table of embeddings, in the loss (`kernels.linear_distillation`): logits of
a whole row never exist. Where the drafter has clusters of tokens, they learn to hold the target's token, by
cross-entropy, from the same states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from gemma_ops.drafting.drafter_unroll import DraftBatch, TargetTable, unroll_drafter
from gemma_ops.drafting.recorded_states import RecordedStates
from gemma_ops.fitting.scale_training import rate_share, row_batches
from gemma_ops.kernels import linear_distillation

_FURTHER = 0.8
"""Weight of each token ahead, as a share of the one before it: a later one counts only where the earlier are right."""
_CLIP = 1.0
SAVE_EVERY = 50
"""Steps between two states on disk."""
_STATE = "training.pt"


@dataclass(frozen=True)
class DraftTraining:
    """Settings of a drafter's training."""

    steps: int
    batch: int
    """Rows of a step."""
    rate: float
    """Peak learning rate."""
    depth: int
    """Tokens drafted from each place."""
    seed: int


def train_drafter(
    drafter: Any, table: TargetTable, rows: RecordedStates, settings: DraftTraining, folder: Path
) -> Iterator[tuple[int, float]]:
    """Train all parameters of a drafter; yield the number of each step, from 1, and its loss in nats a token. Goes on
    from the state in `folder`."""
    parameters = list(drafter.parameters())
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0)
    begun = _restore(drafter, optimizer, folder)
    drafter.train()
    for step, picked in enumerate(row_batches(len(rows), settings.batch, settings.steps, settings.seed)):
        if step < begun:
            continue
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * rate_share(step, settings.steps)
        batch = DraftBatch.of([rows[row] for row in picked], device, parameters[0].dtype)
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
            loss = draft_loss(drafter, table, batch, settings.depth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps:
            _save({"step": step + 1, "drafter": drafter.state_dict(), "optimizer": optimizer.state_dict()}, folder)
        yield step + 1, float(loss.detach())
    drafter.eval()


def draft_loss(drafter: Any, table: TargetTable, batch: DraftBatch, depth: int) -> torch.Tensor:
    """Return the loss of a batch, a scalar: the weighted mean over all tokens ahead of all places."""
    own, shown, labels, weights = [], [], [], []
    for ahead, states in enumerate(unroll_drafter(drafter, table, batch, depth), 1):
        valid = batch.valid(ahead)
        own.append(states[valid])
        shown.append(batch.at(batch.hidden, ahead - 1)[valid])
        labels.append(batch.at(batch.ids, ahead)[valid])
        weights.append(torch.full_like(labels[-1], _FURTHER ** (ahead - 1), dtype=torch.float32))
    said, wanted, factors = torch.cat(own), torch.cat(labels), torch.cat(weights)
    # One call for all tokens ahead: the head's gradient, as large as the head, exists once.
    loss = linear_distillation(
        said, drafter.lm_head.weight, torch.cat(shown), table.weight, wanted, softcap=None,
        teacher_softcap=table.softcap, temperature=1.0, mix=1.0, divisor=factors.sum(), weights=factors,
    )  # fmt: skip
    if drafter.masked_embedding is not None:
        clusters = drafter.masked_embedding.centroids(said.detach())
        missed = cross_entropy(clusters.float(), _cluster_of(drafter)[wanted], reduction="none")
        loss = loss + (missed * factors).sum() / factors.sum()
    return loss


def _cluster_of(drafter: Any) -> torch.Tensor:
    """Return the cluster of each token, (vocabulary,)."""
    order = drafter.masked_embedding.token_ordering.long()
    clusters = torch.empty_like(order)
    clusters[order] = torch.arange(len(order), device=order.device) // (len(order) // drafter.config.num_centroids)
    return clusters


def _save(state: dict[str, Any], folder: Path) -> None:
    temporary = folder / f"{_STATE}.tmp"
    torch.save(state, temporary)
    temporary.replace(folder / _STATE)


def _restore(drafter: Any, optimizer: Any, folder: Path) -> int:
    """Take a state that was kept, and return the steps behind it; 0 before the first."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _STATE).exists():
        return 0
    state = torch.load(folder / _STATE, weights_only=True, map_location="cpu")
    drafter.load_state_dict(state["drafter"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
