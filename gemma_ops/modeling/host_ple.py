"""The per-layer embedding table (PLE) of E2B and E4B kept in main memory, its rows fetched for the tokens at hand.

Half of E2B (2.35 of 4.63 billion parameters) is a table that is only looked up: 4.4 GiB of a GPU for 17.5 KiB a token.
Here the table stays on the host, mapped from the checkpoint file where its bytes allow, so it costs page cache and no
load time; a batch's rows are gathered on the CPU into pinned memory and copied over. Loss, gradients and state-dict
keys are those of the original module, bit for bit.

The table is not a parameter: `model.to`, `half`, PEFT, optimizers, DDP and FSDP don't see it. It doesn't learn.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from gemma_ops.errors import ModelError

_BUFFERS = 3
"""Number of pinned buffers in turn: one being read by the device, one filled for the next batch, one for a validation
between."""


class HostEmbedding(torch.nn.Module):  # type: ignore[misc]
    """Drop-in for `Gemma4TextScaledWordEmbedding` with a frozen table (rows, width) in main memory.

    `dtype` is what comes out, `scale` the factor the original multiplies with, `placeholders` the ids that the model
    replaces by `padding` before it looks rows up (those of images, videos and sounds).
    """

    def __init__(
        self,
        table: torch.Tensor,
        *,
        scale: float,
        dtype: torch.dtype,
        padding: int,
        placeholders: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.table = table
        self.dtype = dtype
        self.scalar_embed_scale = scale
        self.num_embeddings, self.embedding_dim = table.shape
        self.padding_idx = padding
        self.placeholders = placeholders
        self._pinned: deque[tuple[torch.Tensor, Any]] = deque()
        self._fetched: deque[_Fetched] = deque()
        self._stream: Any = None

    @property
    def weight(self) -> torch.Tensor:
        """Return the table, on the host."""
        return self.table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the scaled rows of ids (batch, tokens) on any device as (batch, tokens, width) there, in `dtype`."""
        rows = self._take(ids) if self._fetched and self.training else None
        if rows is None:
            rows = self._gather(ids.cpu(), ids.device)
        rows = rows.view(*ids.shape, self.embedding_dim).to(self.dtype)
        return rows * torch.tensor(self.scalar_embed_scale, dtype=self.dtype, device=rows.device)

    def prefetch(self, ids: torch.Tensor, device: torch.device | str) -> None:
        """Begin to fetch the rows of the next training batch: `ids` (batch, tokens) as the collator made them, on the
        host. Does nothing on a CPU. The next forward pass in training with ids of that shape takes them; that they were
        the same ids is checked on the device, and a later call raises ModelError if they were not.
        """
        device = torch.device(device)
        if device.type != "cuda":
            return
        self.check()
        for placeholder in self.placeholders:
            ids = ids.masked_fill(ids == placeholder, self.padding_idx)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            rows = self._gather(ids, device)
            known = ids.pin_memory().to(device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._stream)
        self._fetched.append(_Fetched(rows, known, done))

    def forget(self) -> None:
        """Free rows that were fetched and will not be asked for."""
        self._fetched = deque(fetched for fetched in self._fetched if fetched.wrong is not None)

    def check(self) -> None:
        """Raise ModelError when prefetched rows were used for other ids than they belong to."""
        used = [fetched for fetched in self._fetched if fetched.wrong is not None]
        for fetched in used:
            if fetched.checked is None or fetched.checked.query():
                self._fetched.remove(fetched)
                if bool(fetched.wrong):
                    raise ModelError(
                        "per-layer embedding rows were prefetched for other tokens than the model then saw",
                        "this is a defect: set machine.ple=device and report it",
                    )

    def _take(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Return the oldest prefetched rows for ids of this shape; older ones of another shape were never asked for and
        are dropped."""
        for fetched in [fetched for fetched in self._fetched if fetched.wrong is None]:
            if fetched.ids.shape == ids.shape and fetched.ids.device == ids.device:
                return fetched.take(ids)
            self._fetched.remove(fetched)
        return None

    def _gather(self, ids: torch.Tensor, device: torch.device) -> torch.Tensor:
        flat = ids.reshape(-1)
        if device.type != "cuda":
            return self.table.index_select(0, flat).to(device)
        buffer = self._buffer(flat.shape[0])
        torch.index_select(self.table, 0, flat, out=buffer)
        rows = buffer.to(device, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(device))
        self._pinned.append((buffer, done))
        return rows

    def _buffer(self, rows: int) -> torch.Tensor:
        """Return a pinned buffer for so many rows that the device has finished reading."""
        if len(self._pinned) < _BUFFERS:
            return self._new(rows)
        buffer, done = self._pinned.popleft()
        done.synchronize()
        whole = buffer.untyped_storage().nbytes() // (self.embedding_dim * buffer.element_size())
        if whole < rows:
            return self._new(rows)
        return torch.as_strided(buffer, (rows, self.embedding_dim), (self.embedding_dim, 1))

    def _new(self, rows: int) -> torch.Tensor:
        with torch.inference_mode(mode=False):  # one made while answering would refuse a training pass's rows
            return torch.empty(rows, self.embedding_dim, dtype=self.table.dtype, pin_memory=True)

    def _apply(self, fn: Any, recurse: bool = True) -> HostEmbedding:
        """Apply `to`, `half` or `cuda` to everything but the table, which stays where and what it is."""
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.table

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: Any,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        if key not in state_dict:
            missing_keys.append(key)
        elif state_dict[key].shape != self.table.shape:
            error_msgs.append(f"size mismatch for {key}: {state_dict[key].shape} instead of {self.table.shape}")
        else:
            self.table = state_dict[key].detach().to("cpu")

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.table.dtype}, on the host"


class _Fetched:
    """Rows on their way to the device, and what is known of their use."""

    def __init__(self, rows: torch.Tensor, ids: torch.Tensor, arrived: Any) -> None:
        self.rows: torch.Tensor | None = rows
        self.ids, self._arrived = ids, arrived
        self.wrong: torch.Tensor | None = None
        self.checked: Any = None

    def take(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows, once the current stream has waited for them; ids are compared without waiting for the
        result."""
        rows, self.rows = self.rows, None
        assert rows is not None
        if ids.device.type == "cuda":
            stream = torch.cuda.current_stream(ids.device)
            stream.wait_event(self._arrived)
            rows.record_stream(stream)
            self.ids.record_stream(stream)
        self.wrong = (self.ids != ids).any()
        if ids.device.type == "cuda":
            self.checked = torch.cuda.Event()
            self.checked.record(torch.cuda.current_stream(ids.device))
        return rows


def find_ple(model: Any) -> HostEmbedding | None:
    """Return the model's host table, wrapped in PEFT or not; None where it has none."""
    return next((module for module in model.modules() if isinstance(module, HostEmbedding)), None)
