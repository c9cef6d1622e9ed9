"""Conversations as tokens, exactly as Gemma 4 is prompted, with a loss flag for each.

The prompt for an answer is what the checkpoint's own published template renders for the turns before it, wherever it is
asked: in training, in evaluation, in serving. An example for training is that prompt and the answer after it. Templates
show earlier turns differently from how they were written (thoughts go, empty thoughts go), so a conversation becomes
one example where each answer's prompt holds the answers before it as they were said, and one example an answer where
not.

Neither transformers nor torch is needed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gemma_ops.data.control import STRUCTURE, Policy, tokenize
from gemma_ops.data.encoded import Encoded, expand
from gemma_ops.data.example_steps import PromptManner, examples, one_bos
from gemma_ops.data.template import (
    BOS,
    Message,
    Rendered,
    Tool,
    inference_template,
    render_template,
    training_template,
)
from gemma_ops.errors import ModelError
from gemma_ops.family.media import Senses

__all__ = [
    "BOS",
    "STRUCTURE",
    "Message",
    "Rendered",
    "Tool",
    "chat_prompt_ids",
    "encode_chat",
    "examples",
    "inference_template",
    "load_tokenizer",
    "prompt",
    "render_chat",
    "render_template",
    "tokenizer_file",
    "training_template",
]  # fmt: skip


def render_chat(
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    add_generation_prompt: bool = False,
    thinking: bool = False,
    empty_thought: bool = False,
) -> Rendered:
    """Return a conversation as Gemma 4 text by the chat template that gemma-ops brings, with the character spans that
    carry loss.

    `thinking` puts `<|think|>` into the system turn. `empty_thought` is for the sizes whose prompt ends in an empty
    thought channel while thinking is off (12B, 26B-A4B, 31B). Raises DataError on what the template refuses.
    """
    return render_template(
        training_template(),
        messages,
        tools,
        add_generation_prompt=add_generation_prompt,
        enable_thinking=thinking,
        empty_thought=empty_thought,
    )


def prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    template: str | None = None,
    thinking: bool = False,
    empty_thought: bool = False,
    senses: Senses | None = None,
    control: Policy = "refuse",
) -> Encoded:
    """Return the prompt that asks for the next answer, as tokens without loss.

    `template` is the checkpoint's own (`published.template_of`); without one it is the one that gemma-ops brings, for
    the sizes that `empty_thought` says. `senses` says what images and sounds cost. Raises DataError when the template
    refuses the conversation, its text spells a control token that `control` refuses, or it holds more than the one
    `<bos>` it starts with, and what `expand` raises.
    """
    source = inference_template(empty_thought=empty_thought) if template is None else template
    text, mark = PromptManner(tokenizer, source, thinking).marked_prompt(messages, tools)
    clean, ids, offsets = tokenize(tokenizer, text, mark, control)
    one_bos(tokenizer, ids)
    return expand(Encoded(ids, [False] * len(ids), False, clean, offsets), tokenizer, messages, senses)


def chat_prompt_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **manner: Any
) -> list[int]:
    """Return the token ids of the prompt that asks for the next answer; `manner` as in `prompt`. Raises like
    `prompt`."""
    return prompt(tokenizer, messages, tools, **manner).ids


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    max_length: int | None = None,
    **manner: Any,
) -> Encoded:
    """Return the last of a conversation's `examples`, the one that holds its last answer, cut at `max_length`
    tokens."""
    return examples(tokenizer, messages, tools, **manner)[-1].cut(max_length)


def tokenizer_file(folder: Path) -> Path:
    """Return `tokenizer.json` of a checkpoint folder, or of an artifact that holds one. Raises ModelError when there is
    none."""
    for candidate in (folder / "weights", folder / "model", folder):
        if (candidate / "tokenizer.json").is_file():
            return candidate / "tokenizer.json"
    raise ModelError(f"no tokenizer.json in {folder}", "give a complete checkpoint folder (config, weights, tokenizer)")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer of a checkpoint, without truncation or padding.

    Raises ModelError when the file is missing, broken, or lacks one of Gemma 4's structural tokens.
    """
    file = tokenizer_file(folder)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{file} can't be read: {error}", "fetch the checkpoint again") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    missing = [token for token in STRUCTURE if tokenizer.token_to_id(token) is None]
    if missing:
        raise ModelError(f"{file} is not a Gemma 4 tokenizer: it lacks {' '.join(missing)}", "use a Gemma 4 checkpoint")
    return tokenizer
