"""Training of what scales the codes, end to end, so that the quantized model says what the bf16 model says.

The loss is the divergence of the next-token probabilities, KL(bf16 || quantized), over every token of the rows. What
the bf16 model said is kept as its last hidden states, a few kilobytes a token, and becomes probabilities again in the
loss (`kernels.linear_distillation`): logits of a whole row never exist.

Trained are the float16 values of the blocks and, since the file holds them in 32 bits anyway, the layers' norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gemma_ops.fitting.fit_rows import FitRow
from gemma_ops.fitting.fitted_store import FittedStore
from gemma_ops.fitting.packed_rows import packed_passes, packed_states
from gemma_ops.kernels import linear_distillation

_WARMUP = 0.05
"""Share of the steps over which the learning rate rises."""
_ANSWER_WEIGHT = 8.0
"""Weight of the divergence before a token of an answer, of which others have 1."""
SAVE_EVERY = 20
"""Steps between two states on disk."""


@dataclass(frozen=True)
class ScaleTraining:
    """Settings of a training of scales."""

    steps: int
    batch: int
    """Rows of a step."""
    rate: float
    """Peak learning rate of the logarithms of scales and norms."""
    seed: int


def last_states(model: Any, rows: Sequence[FitRow]) -> list[torch.Tensor]:
    """Return the states that the head reads, (tokens, hidden) for each row of token ids, in main memory."""
    found: list[torch.Tensor] = []
    with torch.no_grad():
        for group in packed_passes(rows, range(len(rows))):
            states = packed_states(model, [rows[row] for row in group])
            found += states.cpu().split([len(rows[row]) for row in group])
    return found


def train_scales(
    model: Any,
    parameters: list[torch.nn.Parameter],
    rows: Sequence[FitRow],
    teacher: Sequence[torch.Tensor],
    settings: ScaleTraining,
    store: FittedStore,
) -> Iterator[tuple[int, float]]:
    """Train parameters against the states `teacher` of the rows; yield the number of each step, from 1, and its
    divergence per token, in nats. Goes on from the state in `store`. The head stays what it was for the teacher.
    """
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    head = model.lm_head.weight.detach()
    optimizer = torch.optim.Adam(parameters, lr=settings.rate, betas=(0.9, 0.95))
    begun = 0
    if (state := store.load_state()) is not None:
        begun = int(state["step"])
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for parameter, value in zip(parameters, state["parameters"], strict=True):
                parameter.copy_(value)
    for step, picked in enumerate(row_batches(len(rows), settings.batch, settings.steps, settings.seed)):
        if step < begun:
            continue
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * rate_share(step, settings.steps)
        optimizer.zero_grad(set_to_none=True)
        total_weight = float(sum(_weights(rows[row]).sum() for row in picked))
        total = 0.0
        for group in packed_passes(rows, picked):
            states = packed_states(model, [rows[row] for row in group])
            shown = torch.cat([teacher[row] for row in group]).to(model.device)
            ids = torch.tensor([token for row in group for token in rows[row].ids], device=model.device)
            weights = torch.cat([_weights(rows[row]) for row in group]).to(model.device)
            loss = linear_distillation(
                states, head, shown, head, ids,
                softcap=softcap, teacher_softcap=softcap, temperature=1.0, mix=1.0, divisor=total_weight,
                weights=weights,
            )  # fmt: skip
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps:
            values = [parameter.detach() for parameter in parameters]
            store.save_state({"step": step + 1, "parameters": values, "optimizer": optimizer.state_dict()})
        yield step + 1, total


def _weights(row: FitRow) -> torch.Tensor:
    """Return the weight of the divergence after each token of a row: that of a token of an answer counts more."""
    after = [*row.answer[1:], False]
    return torch.tensor([_ANSWER_WEIGHT if flag else 1.0 for flag in after])


def rate_share(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step: a short rise, then half a cosine down to zero."""
    rise = max(1, round(_WARMUP * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def row_batches(count: int, batch: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield the rows of each step, `batch` of them: all in a new order each time they have been through."""
    random = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    for _ in range(steps):
        while len(waiting) < batch:
            waiting += torch.randperm(count, generator=random).tolist()
        yield waiting[:batch]
        del waiting[:batch]
