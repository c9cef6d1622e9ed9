"""A conversation as the examples that training reads, in two steps: its texts, and, once they are tokens, the examples.

Between the two stands the tokenizer, so that the texts of many conversations can be tokenized at once. What an example
is, `chat` says.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from gemma_ops.data.control import CHANNEL, CHANNEL_END, TextTokens, clean_text, marked_text, stripped, tokenize_texts
from gemma_ops.data.encoded import Encoded, expand
from gemma_ops.data.template import (
    BOS,
    Message,
    Tool,
    inference_template,
    render_template,
    training_template,
)
from gemma_ops.errors import DataError, ModelError
from gemma_ops.family.media import Senses

_OPENED = CHANNEL + "thought\n"
"""End of a prompt that opens the thought itself: after a tool's result, with thinking on."""

Steps = Generator[list[str], list[TextTokens], list[Encoded]]
"""What gives texts, is sent their tokens, and returns examples."""


def examples(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None, **manner: Any
) -> list[Encoded]:
    """Return a conversation as training reads it: token ids with a loss flag each, one example where one can hold all
    answers. `manner` and what is raised are those of `example_steps`."""
    (found,) = examples_of([example_steps(tokenizer, messages, tools, **manner)], tokenizer, offsets=True)
    if isinstance(found, DataError):
        raise found
    return found


def examples_of(
    steps: Sequence[Steps], tokenizer: Tokenizer, *, offsets: bool = False
) -> list[list[Encoded] | DataError]:
    """Return the examples of many conversations, or each one's error, tokenized at once; without `offsets` none of the
    examples has them."""
    asked = [_next(step) for step in steps]
    texts = [text for one in asked if not isinstance(one, DataError) for text in one]
    tokens = iter(tokenize_texts(tokenizer, texts, offsets=offsets))
    return [
        one if isinstance(one, DataError) else _last(step, [next(tokens) for _ in one])
        for step, one in zip(steps, asked, strict=True)
    ]


def _next(step: Steps) -> list[str] | DataError:
    try:
        return next(step)
    except DataError as error:
        return error


def _last(step: Steps, tokens: list[TextTokens]) -> list[Encoded] | DataError:
    try:
        step.send(tokens)
    except StopIteration as end:
        made: list[Encoded] = end.value
        return made
    except DataError as error:
        return error
    raise AssertionError("a conversation gives its texts once")


def example_steps(
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
) -> Steps:
    """Give the texts of a conversation, take their tokens, and return it as training reads it.

    Before the loss of each answer stand exactly the tokens that `chat.prompt` gives for it. An answer joins the latest
    example whose tokens are the beginning of its prompt; otherwise it begins one. With `last_only`, answers after the
    last question are scored; those of the first `after` messages never are. A conversation without an answer to score
    is one example without loss, and a message with `"weight": 0` is not scored. Raises like `chat.prompt`.
    """
    source = inference_template(empty_thought=empty_thought) if template is None else template
    asked = PromptManner(tokenizer, source, thinking)
    if last_only:
        users = [index for index, message in enumerate(messages) if message["role"] == "user"]
        after = max(after, *(index + 1 for index in users), 0)
    answers = list(_answers(messages, after))
    texts = [asked.answered(before, said, tools) for before, said in answers]
    if not texts:
        tokens = yield [clean_text(tokenizer, *asked.history(messages, tools))]
        return [expand(_whole(tokenizer, tokens), tokenizer, messages, senses)]
    tokens = yield [text for one in texts for text in one]
    made: list[Encoded] = []
    shown: list[Sequence[Message]] = []
    place = 0
    for (before, _), one in zip(answers, texts, strict=True):
        whole = _whole(tokenizer, tokens[place : place + len(one)])
        place += len(one)
        start = whole.loss.index(True) if True in whole.loss else len(whole.ids)
        joined = next((i for i in reversed(range(len(made))) if _begins(made[i].ids, whole.ids[:start])), None)
        if joined is None:
            made.append(whole)
            shown.append(before)
        else:
            made[joined] = whole.scored_like(made[joined])
            shown[joined] = before
    return [expand(one, tokenizer, turns, senses) for one, turns in zip(made, shown, strict=True)]


def _whole(tokenizer: Tokenizer, tokens: Sequence[TextTokens]) -> Encoded:
    """Return a prompt, and what is said after it, as one: the second text carries loss."""
    prompt = tokens[0]
    one_bos(tokenizer, prompt.ids)
    text, ids, offsets = prompt.text, list(prompt.ids), list(prompt.offsets)
    loss = [False] * len(ids)
    for number, more in enumerate(tokens[1:]):
        start = len(text)
        text += more.text
        ids += more.ids
        loss += [number == 0] * len(more.ids)
        offsets += [(start + first, start + last) for first, last in more.offsets]
    return Encoded(ids, loss, False, text, offsets)


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
class PromptManner:
    """How a model is prompted: its tokenizer, its chat template, whether it is to think."""

    tokenizer: Tokenizer
    template: str
    thinking: bool

    def marked_prompt(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> tuple[str, str]:
        """Return the prompt for the next answer, and the mark in it (`control.marked_text`)."""
        return self._render(messages, tools, prompt=True)

    def history(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> tuple[str, str]:
        """Return a conversation that nobody is asked to continue, and the mark in it."""
        return self._render(messages, tools, prompt=False)

    def answered(self, before: Sequence[Message], said: Message, tools: Sequence[Tool] | None) -> list[str]:
        """Return the prompt, what the model says after it, which carries loss, and the line break behind that."""
        asked = clean_text(self.tokenizer, *self.marked_prompt(before, tools))
        turns, _, mark = marked_text([said], None, self.tokenizer)
        return [asked, *(clean_text(self.tokenizer, text, mark) for text in _said(turns[0], asked))]

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool] | None, *, prompt: bool) -> tuple[str, str]:
        turns, declared, mark = marked_text(messages, tools, self.tokenizer)
        rendered = render_template(
            self.template, turns, declared, add_generation_prompt=prompt, enable_thinking=self.thinking
        )
        return rendered.text, mark


def _said(message: Message, asked: str) -> list[str]:
    """Return what the model says in a message, after the prompt `asked`: its thought, its calls, its text, the closing
    token; and, no longer its own, the line break after a turn that it closed.

    Where the prompt has opened the thought, it is written on, or closed at once; where the prompt has closed an empty
    one, there is none.
    """
    closed = asked.endswith(_OPENED + CHANNEL_END)
    if closed:
        message = {key: value for key, value in message.items() if key not in ("reasoning", "reasoning_content")}
    rendered = render_template(
        training_template(),
        [{"role": "user", "content": "?"}, message],
        add_generation_prompt=False,
        enable_thinking=False,
        empty_thought=False,
    )
    text = "".join(rendered.text[start:end] for start, end in rendered.spans)
    if not closed and asked.endswith(_OPENED):
        text = text.removeprefix(_OPENED) if text.startswith(_OPENED) else CHANNEL_END + text
    return [text, "\n"] if text.endswith("<turn|>") else [text]


def one_bos(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Raise DataError where a prompt holds more or less than the `<bos>` that it begins with, ModelError where the
    tokenizer has none."""
    bos = tokenizer.token_to_id(BOS)
    if bos is None:
        raise ModelError(f"the tokenizer has no {BOS} token", "use the tokenizer of a Gemma 4 checkpoint")
    if ids[:1] != [bos] or ids.count(bos) != 1:
        raise DataError(
            f"the conversation holds {ids.count(bos)} {BOS} tokens instead of one",
            f"remove the literal {BOS} from the messages: the template adds it",
        )
