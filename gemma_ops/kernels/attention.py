"""The attention implementation `gemma_ops` of transformers: it computes per document and per window, and is exact for
any mask.

Training passes the bounds of packed documents as `cu_seq_lens_q` (a Python list: reading them from a GPU would stop it
in every layer). A hook before the model's forward turns them, or the padding mask, or restarting positions, into a
`Pattern` of spans; no square mask is made, by us or by transformers. Generation comes in through the mask function:
None means causal with the queries at the end of the keys, and anything else (static caches, images with a cache) is
transformers' own mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

from gemma_ops.kernels import attention_eager, attention_spans
from gemma_ops.kernels.attention_spans import Pattern
from gemma_ops.kernels.ops_runner import EAGER, OpRunner

NAME = "gemma_ops"
"""Name of the implementation in a text config's `_attn_implementation`."""

CACHES = ("cache", "past_key_values")
"""Names of a forward's KV cache argument: since transformers 5.24, and before."""


def register_attention() -> None:
    """Register the implementation with transformers; repeating it is harmless."""
    transformers.AttentionInterface.register(NAME, attention_forward)
    transformers.AttentionMaskInterface.register(NAME, documents_mask)


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Pattern | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Map `query [B, H, Q, D]`, `key` and `value [B, K, S, D]` to `[B, Q, H, D]`, for any mask `mask` or the hook
    makes."""
    if isinstance(attention_mask, Pattern):
        out = attention_eager.attend(query, key, value, attention_mask, sliding_window, scaling, dropout)
    elif attention_mask is not None:
        out = attention_eager.sdpa(query, key, value, attention_mask, scaling, dropout)
    else:
        out = attention_eager.causal(query, key, value, sliding_window, scaling, dropout)
    return out.transpose(1, 2), None


def documents_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: Any = "cpu",
    **_: Any,
) -> Tensor | Pattern | None:
    """Return the mask that `forward` gets: None for causal (windowed) attention, a pattern for padding, or booleans.

    The arguments are those of `transformers.masking_utils.sdpa_mask`. None promises that the last query sees the last
    key, which stays true when transformers drops all but the last queries (`logits_to_keep`).
    """
    causal = allow_is_causal_skip and not use_vmap and (mask_function is causal_mask_function or local_size is not None)
    aligned = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
    if causal and aligned and not torch.compiler.is_compiling():
        if attention_mask is None:
            return None
        real = attention_mask[:, kv_offset : kv_offset + kv_length]
        if bool(real.all()):
            return None
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        use_vmap=use_vmap,
        device=device,
    )


def before_forward(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, run: OpRunner = EAGER
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put patterns where the model would make masks: the hook before its forward pass. Only when nothing is cached
    yet."""
    given = kwargs.get("attention_mask")
    cached = any(kwargs.get(name) is not None for name in CACHES)
    if cached or isinstance(given, dict) or (given is not None and given.ndim != 2):
        return args, kwargs
    text = model.config.get_text_config()
    if text.use_bidirectional_attention == "all":
        return args, kwargs
    shape = _shape(args, kwargs)
    found = _pattern(shape, given, kwargs.get("cu_seq_lens_q"), kwargs.get("position_ids")) if shape else None
    if found is None:
        return args, kwargs
    sliding = full = found = replace(found, run=run)
    types = kwargs.get("mm_token_type_ids")
    if text.use_bidirectional_attention == "vision" and types is not None:
        numbers = attention_spans.image_numbers(types, found.spans)
        if numbers is not None:
            unified = text.model_type.startswith("gemma4_unified")
            sliding = Pattern(found.spans, numbers, windowed_images=not unified, run=run)
            full = sliding if unified else found
    return args, kwargs | {"attention_mask": {"full_attention": full, "sliding_attention": sliding}}


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
    """Return the rows and tokens of the batch, from ids or embeddings."""
    for states in (kwargs.get("input_ids"), args[0] if args else None, kwargs.get("inputs_embeds")):
        if isinstance(states, Tensor):
            return states.shape[0], states.shape[1]
    return None


def _pattern(
    shape: tuple[int, int], given: Tensor | None, bounds: Sequence[int] | Tensor | None, positions: Tensor | None
) -> Pattern | None:
    batch, length = shape
    if bounds is not None:
        cuts = [int(bound) for bound in (bounds.tolist() if isinstance(bounds, Tensor) else bounds)]
        if batch != 1 or given is not None:
            raise ValueError("documents are packed into one row, without an attention mask")
        if cuts[0] != 0 or cuts[-1] != length or any(a >= b for a, b in pairwise(cuts)):
            raise ValueError(f"cu_seq_lens_q must rise from 0 to the {length} tokens of the row, not {cuts}")
        return attention_spans.documents(cuts)
    if given is not None:
        return attention_spans.padded_rows(given) if given.shape == shape else None
    if positions is not None and batch == 1:
        return attention_spans.documents(attention_spans.bounds_of(positions))
    if positions is not None:
        return None if bool((torch.diff(positions, dim=-1) != 1).any()) else attention_spans.whole_rows(batch, length)
    return attention_spans.whole_rows(batch, length)
