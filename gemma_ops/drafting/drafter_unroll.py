"""A drafter run over recorded rows as an engine runs it: from every position of an answer, several tokens ahead.

At a position the engine knows a token but not the target's state for it. The drafter is fed that token's embedding (the
target's) and the state before it, and reads the target's keys and values of everything before. What it says next is fed
back with its own state; position, keys and values stay (transformers, `SinglePositionMultiTokenCandidateGenerator`;
llama.cpp, `common_speculative_impl_draft_mtp`). A token further ahead only counts where those before it were right, so
the tokens fed back here are the target's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gemma_ops.drafting.recorded_states import KINDS, RecordedRow

_ALL = torch.empty(0)
"""Positions that are kept: given as a number, transformers 5.24 cuts per-layer embeddings, which no drafter has."""


@dataclass(frozen=True)
class DraftBatch:
    """Rows of a batch, padded behind: B rows, T tokens, Q places to draft from."""

    ids: torch.Tensor
    """Tokens, (B, T)."""
    hidden: torch.Tensor
    """States of the target, (B, T, width)."""
    shared: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Keys and values by kind of layer, (B, heads, T, width of a head)."""
    places: torch.Tensor
    """Positions of the last token that is known, (B, Q)."""
    ends: torch.Tensor
    """Tokens of each row, (B, 1)."""

    @staticmethod
    def of(rows: Sequence[RecordedRow], device: Any, dtype: torch.dtype) -> DraftBatch:
        """Pad rows and put them on a device, states in the number type."""

        def padded(values: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
            longest = max(value.shape[dim] for value in values)
            whole = []
            for value in values:
                shape = list(value.shape)
                shape[dim] = longest - shape[dim]
                whole.append(torch.cat([value, value.new_zeros(shape)], dim))
            return torch.stack(whole).to(device)

        asked = torch.tensor([[row.asked] for row in rows])
        ends = torch.tensor([[len(row)] for row in rows])
        most = int((ends - asked).max()) - 1
        return DraftBatch(
            padded([row.ids for row in rows], 0),
            padded([row.hidden for row in rows], 0).to(dtype),
            {
                kind: (
                    padded([row.shared[kind][0] for row in rows], 1).to(dtype),
                    padded([row.shared[kind][1] for row in rows], 1).to(dtype),
                )
                for kind in KINDS
            },
            (asked + torch.arange(most)).to(device),
            ends.to(device),
        )

    def valid(self, ahead: int) -> torch.Tensor:
        """Return which places have a token `ahead` tokens on, (B, Q)."""
        return self.places + ahead < self.ends

    def at(self, values: torch.Tensor, ahead: int) -> torch.Tensor:
        """Return the values, (B, T) or (B, T, width), `ahead` tokens after each place; past the end, the last."""
        index = (self.places + ahead).clamp(0, values.shape[1] - 1)
        if values.ndim == 3:
            return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
        return values.gather(1, index)

    def masks(self, window: int) -> dict[str, torch.Tensor]:
        """Return what each place may read, (B, 1, Q, T) by kind of layer: all before it, or the last of a window."""
        keys, places = torch.arange(self.ids.shape[1], device=self.ids.device), self.places[:, None, :, None]
        before = keys < places
        return {"full_attention": before, "sliding_attention": before & (keys > places - window)}


class TargetTable:
    """The embeddings of a target, which are its head too: (vocabulary, width)."""

    def __init__(self, weight: torch.Tensor, softcap: float | None) -> None:
        self.weight, self.softcap = weight, softcap
        self._scale = torch.tensor(weight.shape[1] ** 0.5).to(weight.dtype).item()

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """Return what the target feeds its layers for tokens, (…, width)."""
        return self.weight[ids] * self._scale


def unroll_drafter(drafter: Any, table: TargetTable, batch: DraftBatch, depth: int) -> Iterator[torch.Tensor]:
    """Yield the drafter's states for the tokens 1, 2, … `depth` after each place, (B, Q, width of the drafter): what
    its head and its clusters read."""
    masks = batch.masks(int(drafter.config.get_text_config().sliding_window))
    state = batch.at(batch.hidden, -1)
    for ahead in range(depth):
        fed = torch.cat([table.embedded(batch.at(batch.ids, ahead)).to(state.dtype), state], -1)
        read = drafter.model(
            inputs_embeds=drafter.pre_projection(fed), attention_mask=masks, position_ids=batch.places,
            shared_kv_states=dict(batch.shared), use_cache=False, logits_to_keep=_ALL,
        ).last_hidden_state  # fmt: skip
        yield read
        state = drafter.post_projection(read)


def drafts_right(drafter: Any, table: TargetTable, batch: DraftBatch, depth: int, *, clusters: bool) -> torch.Tensor:
    """Return how many tokens from each place on are drafted as the target says them, (B, Q), at most `depth`. With
    `clusters` only tokens of the likeliest clusters are drafted, as transformers and vLLM do."""
    going = batch.valid(1)
    found = torch.zeros_like(batch.places)
    with torch.no_grad():
        for ahead, states in enumerate(unroll_drafter(drafter, table, batch, depth), 1):
            if clusters and drafter.masked_embedding is not None:
                logits = drafter.masked_embedding(states, drafter.lm_head.weight)
            else:
                logits = drafter.lm_head(states)
            going = going & batch.valid(ahead) & (logits.argmax(-1) == batch.at(batch.ids, ahead))
            found += going
    return found


def engine_steps(right: Sequence[int]) -> tuple[int, int]:
    """Return the verification steps that an answer takes and the drafted tokens that they accept, from how many are
    right at each of its places in turn."""
    steps = accepted = place = 0
    while place < len(right):
        steps += 1
        accepted += right[place]
        place += right[place] + 1
    return steps, accepted
