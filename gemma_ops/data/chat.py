"""Conversations as tokens, exactly as Gemma 4 is prompted, with a loss flag for each.

The prompt for an answer is what the checkpoint's own published template renders for the turns before it, wherever it is
asked: in training, in evaluation, in serving. An example for training is that prompt and the answer after it. Templates
show earlier turns differently from how they were written (thoughts go, empty thoughts go), so a conversation becomes
one example where each answer's prompt holds the answers before it as they were said, and one example an answer where
not.

Neither transformers nor torch is needed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gemma_ops.data.control import CHANNEL, CHANNEL_END, STRUCTURE, Policy, marked_text, stripped, tokenize
from gemma_ops.data.encoded import Encoded, expand
from gemma_ops.data.template import (
    BOS,
    Message,
    Rendered,
    Tool,
    inference_template,
    render_template,
    training_template,
)
from gemma_ops.errors import DataError, ModelError
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

_OPENED = CHANNEL + "thought\n"
"""End of a prompt that opens the thought itself: after a tool's result, with thinking on."""


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
    asked = _Asked(tokenizer, source, thinking, control)
    return expand(asked.prompt(messages, tools), tokenizer, messages, senses)


def chat_prompt_ids(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **manner: Any
) -> list[int]:
    """Return the token ids of the prompt that asks for the next answer; `manner` as in `prompt`. Raises like
    `prompt`."""
    return prompt(tokenizer, messages, tools, **manner).ids


def examples(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None = None,
    *,
    template: str | None = None,
    thinking: bool = False,
    empty_thought: bool = False,
    last_only: bool = False,
    senses: Senses | None = None,
    after: int = 0,
) -> list[Encoded]:
    """Return a conversation as training reads it: token ids with a loss flag each, one example where one can hold all
    answers.

    Before the loss of each answer stand exactly the tokens that `prompt` gives for it. An answer joins the latest
    example whose tokens are the beginning of its prompt; otherwise it begins one. With `last_only`, answers after the
    last question are scored; those of the first `after` messages never are. A conversation without an answer to score
    is one example without loss, and a message with `"weight": 0` is not scored. Raises like `prompt`.
    """
    source = inference_template(empty_thought=empty_thought) if template is None else template
    asked = _Asked(tokenizer, source, thinking, "refuse")
    if last_only:
        users = [index for index, message in enumerate(messages) if message["role"] == "user"]
        after = max(after, *(index + 1 for index in users), 0)
    made: list[Encoded] = []
    shown: list[Sequence[Message]] = []
    for before, said in _answers(messages, after):
        whole = asked.answered(before, said, tools)
        start = whole.loss.index(True) if True in whole.loss else len(whole.ids)
        joined = next((i for i in reversed(range(len(made))) if _begins(made[i].ids, whole.ids[:start])), None)
        if joined is None:
            made.append(whole)
            shown.append(before)
        else:
            made[joined] = whole.scored_like(made[joined])
            shown[joined] = before
    if not made:
        made, shown = [asked.history(messages, tools)], [messages]
    return [expand(one, tokenizer, turns, senses) for one, turns in zip(made, shown, strict=True)]


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


def _begins(first: list[int], whole: list[int]) -> bool:
    return len(first) <= len(whole) and whole[: len(first)] == first


def _answers(messages: Sequence[Message], after: int) -> Iterator[tuple[list[Message], Message]]:
    """Yield each point where the model speaks: the turns it is asked with, and what it says then.

    A message with calls and their responses (Gemma's own form) is spoken twice: the calls, and what follows the
    responses. Text beside calls is not spoken there: templates show it after the responses, where no prompt ends.
    """
    for index, message in enumerate(messages):
        if index < after or message["role"] not in ("assistant", "model") or message.get("weight") == 0:
            continue
        before = list(messages[:index])
        calls, responses = message.get("tool_calls"), message.get("tool_responses")
        if calls:
            yield before, {key: value for key, value in message.items() if key != "tool_responses"} | {"content": ""}
        if (responses and not calls) or (responses and _says(message)):
            yield [*before, {**message, "content": ""}], {"role": message["role"], "content": message["content"]}
        elif not calls:
            yield before, message


def _says(message: Message) -> bool:
    content = message.get("content")
    return bool(stripped(content).strip() if isinstance(content, str) else content)


@dataclass(frozen=True)
class _Asked:
    """How a model is prompted: its tokenizer, its chat template, whether it is to think."""

    tokenizer: Tokenizer
    template: str
    thinking: bool
    control: Policy

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> Encoded:
        """Return the prompt for the next answer."""
        turns, declared, mark = marked_text(messages, tools, self.tokenizer)
        text = self._render(turns, declared, prompt=True)
        return self._tokens(text, mark)

    def history(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> Encoded:
        """Return a conversation that nobody is asked to continue."""
        turns, declared, mark = marked_text(messages, tools, self.tokenizer)
        return self._tokens(self._render(turns, declared, prompt=False), mark)

    def answered(self, before: Sequence[Message], said: Message, tools: Sequence[Tool] | None) -> Encoded:
        """Return the prompt with what the model says after it, which carries loss."""
        asked = self.prompt(before, tools)
        turns, _, mark = marked_text([said], None, self.tokenizer)
        whole = asked
        for place, text in enumerate(_said(turns[0], asked.text)):
            scored = place == 0
            clean, ids, offsets = tokenize(self.tokenizer, text, mark, self.control)
            start = len(whole.text)
            whole = Encoded(
                [*whole.ids, *ids],
                [*whole.loss, *[scored] * len(ids)],
                False,
                whole.text + clean,
                [*whole.offsets, *((start + first, start + last) for first, last in offsets)],
            )
        return whole

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool] | None, *, prompt: bool) -> str:
        return render_template(
            self.template, messages, tools, add_generation_prompt=prompt, enable_thinking=self.thinking
        ).text

    def _tokens(self, text: str, mark: str) -> Encoded:
        clean, ids, offsets = tokenize(self.tokenizer, text, mark, self.control)
        _one_bos(self.tokenizer, ids)
        return Encoded(ids, [False] * len(ids), False, clean, offsets)


def _said(message: Message, asked: str) -> list[str]:
    """Return what the model says in a message, after the prompt `asked`: its thought, its calls, its text, the closing
    token; and, no longer its own, the line break after a turn that it closed.

    Where the prompt has opened the thought, it is written on, or closed at once; where the prompt has closed an empty
    one, there is none.
    """
    closed = asked.endswith(_OPENED + CHANNEL_END)
    if closed:
        message = {key: value for key, value in message.items() if key not in ("reasoning", "reasoning_content")}
    rendered = render_chat([{"role": "user", "content": "?"}, message])
    text = "".join(rendered.text[start:end] for start, end in rendered.spans)
    if not closed and asked.endswith(_OPENED):
        text = text.removeprefix(_OPENED) if text.startswith(_OPENED) else CHANNEL_END + text
    return [text, "\n"] if text.endswith("<turn|>") else [text]


def _one_bos(tokenizer: Tokenizer, ids: list[int]) -> None:
    bos = tokenizer.token_to_id(BOS)
    if bos is None:
        raise ModelError(f"the tokenizer has no {BOS} token", "use the tokenizer of a Gemma 4 checkpoint")
    if ids[:1] != [bos] or ids.count(bos) != 1:
        raise DataError(
            f"the conversation holds {ids.count(bos)} {BOS} tokens instead of one",
            f"remove the literal {BOS} from the messages: the template adds it",
        )


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
