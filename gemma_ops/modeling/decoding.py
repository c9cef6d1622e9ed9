"""One reply written token by token by a transformers model in memory, as serving needs it and `generate` doesn't give
it.

Several replies may be written in turns, each with its own cache of keys and values and its own random numbers, and any
of them may be dropped between two tokens. Greedy, the tokens are those of `modeling.generate` for the same prompt
alone.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from gemma_ops.modeling.generate import shown_arguments
from gemma_ops.modeling.media_inputs import Seen

_COLDEST = 1e-5
"""Temperature below which the most likely token is taken, as in vLLM: float32 has no room for what would be drawn."""


@dataclass(frozen=True)
class Drawing:
    """Sampling settings of a reply: temperature, then the `top_k` most likely tokens (0: all), then the most likely
    that together have `top_p`, as transformers and vLLM apply them."""

    temperature: float = 0.0
    """Temperature; 0 takes the most likely token, and so does `top_p` 0."""
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int | None = None
    """Number of top logprobs per token; None for no logprobs."""


@dataclass(frozen=True)
class Drawn:
    """A token with its logprob and those of others."""

    id: int
    logprob: float | None = None
    """Natural logarithm of its probability, over the whole vocabulary before anything was left out; None where nobody
    asked."""
    likeliest: tuple[tuple[int, float], ...] = ()
    end: Literal["stop", "length"] | None = None


class ReplyInMemory:
    """A reply to `prompt` (token ids) of at most `most` tokens, while `model` writes it; `seen` holds the images and
    sounds of the prompt."""

    def __init__(
        self, model: Any, prompt: list[int], most: int, stops: set[int], how: Drawing, seen: Seen | None = None
    ) -> None:
        import torch
        from transformers import DynamicCache

        self._model, self._stops, self._how = model, stops, how
        self._next, self._read, self._left = list(prompt), 0, most
        self._shown = shown_arguments([seen], len(prompt)) if seen else {}
        self._cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._kept_as = _cache_name(model)
        self._random = torch.Generator(model.device).manual_seed(how.seed)

    def step(self) -> Drawn:
        """Write and return the next token; the prompt is read before the first. Its `end` is set on the last."""
        import torch

        with torch.inference_mode():
            self._read += len(self._next)
            scores = self._model(
                input_ids=torch.tensor([self._next], device=self._model.device),
                attention_mask=torch.ones(1, self._read, dtype=torch.long, device=self._model.device),
                use_cache=True,
                logits_to_keep=1,
                **{self._kept_as: self._cache},
                **{name: value.to(self._model.device) for name, value in self._shown.items()},
            ).logits[0, -1].float()  # fmt: skip
            self._shown = {}  # it is in the cache now
            token = self._draw(scores)
            logprob, likeliest = self._chances(scores, token)
        self._next = [token]
        self._left -= 1
        end: Literal["stop", "length"] | None = "stop" if token in self._stops else None if self._left else "length"
        return Drawn(token, logprob, likeliest, end)

    def _draw(self, scores: Any) -> int:
        """Draw a token id by the logits of shape (vocabulary,)."""
        import torch

        how = self._how
        if how.temperature < _COLDEST or how.top_p <= 0:
            return int(scores.argmax())
        ordered, ids = (scores / how.temperature).sort(descending=True)
        kept = ordered[: how.top_k] if how.top_k > 0 else ordered
        chances = kept.softmax(-1)
        if how.top_p < 1:
            chances = chances * (chances.cumsum(-1) - chances < how.top_p)  # the one that reaches it is kept
        return int(ids[torch.multinomial(chances, 1, generator=self._random)])

    def _chances(self, scores: Any, token: int) -> tuple[float | None, tuple[tuple[int, float], ...]]:
        if self._how.logprobs is None:
            return None, ()
        found = scores.log_softmax(-1)
        values, ids = found.topk(min(self._how.logprobs, len(found)))
        return float(found[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True))


def _cache_name(model: Any) -> str:
    """Return the model's name for its KV cache argument: transformers renamed it in 5.24, and warns about the old
    name."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values"
