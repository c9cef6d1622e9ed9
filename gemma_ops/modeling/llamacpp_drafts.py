"""Answers of a GGUF file, one at a time, with the time that they took and what a drafter had to do with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gemma_ops.errors import ModelError
from gemma_ops.modeling.llamacpp import GGUF


@dataclass(frozen=True)
class TimedReply:
    """One greedy answer. Every verification step reads a draft and ends in a token of the model's own; the first token
    of an answer comes with the reading of the prompt."""

    tokens: list[int]
    ended: bool
    """Whether the model ended it; False for one that was cut."""
    seconds: float
    """Time from the first token to the last."""
    steps: int
    """Steps in which the model checked a draft, or said a token alone."""
    drafted: int
    """Tokens that were drafted."""
    kept: int
    """Drafted tokens that stand in the answer."""


class TimedGguf(GGUF):
    """A GGUF file with one slot, with or without a drafter, asked for times."""

    def __init__(
        self, path: Path, *, context: int, threads: int | None = None, drafter: Path | None = None, drafted: int = 0
    ) -> None:
        super().__init__(path, threads=threads, context=context, drafter=drafter, drafted=drafted)

    def timed_reply(self, prompt: list[int], count: int) -> TimedReply:
        """Return the greedy answer to a prompt of token ids, at most `count` tokens long. Raises ModelError when
        llama.cpp refuses the prompt."""
        found = self._replies([prompt], len(prompt) + count, count, slots=1)[0]
        if found is None:
            raise ModelError(f"{self.path} refuses a prompt of {len(prompt)} tokens", "give a larger context")
        told = found["timings"]
        drafted, tokens = int(told.get("draft_n", 0)), list(found["tokens"])
        # Each step drafts as many tokens as it may; only a reply that is cut ends with shorter drafts.
        steps = -(-drafted // self._drafted) if self._drafted else len(tokens) - 1
        # What is accepted beyond the token that ends a reply counts for llama.cpp, and not here.
        kept = min(int(told.get("draft_n_accepted", 0)), len(tokens) - 1)
        return TimedReply(tokens, found["stop_type"] == "eos", told["predicted_ms"] / 1000, steps, drafted, kept)
