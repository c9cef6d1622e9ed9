"""Splitting of a model's reply into its thought and its answer.

Gemma 4 thinks in a channel before it answers: `<|channel>thought`, a line break, the thought, `<channel|>`. Only what
stands outside is the answer. A prompt may have opened the channel itself (after a tool's result, with thinking on).
"""

from __future__ import annotations

from typing import Any

from gemma_ops.data.control import CHANNEL, CHANNEL_END

_NAME = "thought\n"


def left_open(tokenizer: Any, prompt: list[int]) -> bool:
    """True if a prompt, given as token ids, ends inside a thought."""
    opening, closing = tokenizer.token_to_id(CHANNEL), tokenizer.token_to_id(CHANNEL_END)
    last = next((token for token in reversed(prompt) if token in (opening, closing)), None)
    return last is not None and last == opening


def split_ids(tokenizer: Any, ids: list[int], *, opened: bool) -> tuple[list[int], list[int]]:
    """Return the token ids of the thoughts and of the answer, without the channel's own tokens; `opened` says that the
    prompt opened the thought.

    A thought that is not closed takes the rest. What closes without having been opened was opened by the prompt.
    """
    opening, closing = tokenizer.token_to_id(CHANNEL), tokenizer.token_to_id(CHANNEL_END)
    first = next((token for token in ids if token in (opening, closing)), None)
    inside = opened or (first is not None and first == closing)
    thoughts: list[int] = []
    answer: list[int] = []
    for token in ids:
        if token in (opening, closing):
            inside = token == opening
        else:
            (thoughts if inside else answer).append(token)
    return thoughts, answer


def thought_text(text: str) -> str:
    """Return a thought without the name of its channel and the white space around it."""
    return text.strip().removeprefix(_NAME.strip()).strip()
