"""Findings in one row: what is wrong, or silently changed, on its way to tokens. Each finding has a code, and says what
to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat, takewhile
from typing import Any, Literal

from tokenizers import Tokenizer

from gemma_ops.config.training import Thinking
from gemma_ops.data import chat, documents
from gemma_ops.data.control import texts_in
from gemma_ops.data.encoded import Encoded
from gemma_ops.data.example import SIDES
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError
from gemma_ops.family.media import Senses
from gemma_ops.prepare.foreign_marks import foreign_token, key_of_two_orders, schema_losses

Level = Literal["error", "warning", "note"]

# code: (level, what happens, what to do). An error keeps the row out, a warning changes what is learned, a note is a
# repair.
CODES: dict[str, tuple[Level, str, str]] = {
    "thought_left_out": ("warning",
        ("the prompt of this size closes the thought before the answer while thinking is off, so the reasoning is not "
         "learned"),
        "set train.thinking to on or mixed, or remove the reasoning"),
    "answers_apart": ("note",
        ("the prompts of the row's answers show earlier turns differently from how they were said, so each answer is "
         "an example of its own"),
        ""),
    "thinking_switch": ("warning", "<|think|> in the system turn is a setting, not text, and was left out",
        "set train.thinking to on, or to mixed"),
    "reasoning_without_thinking": ("warning", "the row teaches to think although thinking is off",
        "set train.thinking to on or mixed, or remove the reasoning"),
    "stripped_channel": ("warning", "a channel inside an answer is stripped by the template",
        "put the thought into `reasoning`, or remove it"),
    "think_tags": ("warning", "<think> stays in the answer as literal text: Gemma 4 thinks in a channel",
        "move that text into `reasoning`"),
    "content_beside_calls": ("warning",
        "text beside tool calls is shown after the results, where no prompt ends, and is not learned",
        "put it into `reasoning`, or into an assistant message after the results"),
    "white_space": ("note", "white space at the ends of an answer is stripped",
        "keep the part that matters away from the ends, if they need it"),
    "no_stop_token": ("warning",
        "the loss does not end in <turn|> or <|tool_response>: the model does not learn to stop",
        "raise train.max_length, or end the row with an answer"),
    "no_loss": ("error", "no token of the row carries loss", "raise train.max_length, or shorten the prompt"),
    "truncated": ("warning", "the row is longer than train.max_length and is cut at its end",
        "raise train.max_length, or shorten the row"),
    "unknown_token": ("warning", "an answer holds characters the tokenizer doesn't know", "replace those characters"),
    "consecutive_users": ("warning", "two user turns follow each other", "join them, or add the answer between them"),
    "assistant_first": ("warning", "the conversation starts with the assistant", "start with the user's turn"),
    "system_later": ("warning", "a system turn stands after the first message", "put the instructions first"),
    "not_rendered": ("error", "the row can't be rendered", "correct the row"),
    "arguments_parsed": ("note", "tool arguments were a JSON string and were parsed", ""),
    "tools_parsed": ("note", "the tool list was a JSON string and was parsed", ""),
    "reasoning_renamed": ("note", "the thought stood in another field and was renamed to reasoning", ""),
    "channel_moved": ("note", "a thought channel inside the answer was moved to reasoning", ""),
    "two_answers": ("warning",
        ("two answers stand in a row: each is learned as a turn of its own, and later prompts show them joined "
         "without a space"),
        "join them, or put the user's turn between them"),
    "unanswered_call": ("warning", "a call is never answered, and the conversation goes on",
        "add the tool's result after its call, or leave the call out"),
    "other_template": ("warning",
        "the text holds a token of another model's chat template, which Gemma 4 reads as plain text",
        "take it out, or give the messages themselves instead of rendered text"),
    "tool_schema_lost": ("warning", "Gemma's template leaves out, or distorts, a part of the tools' declarations",
        ("say it in the description, or use what the template reads: type, description, enum of strings, items, "
         "properties, required, nullable")),
    "keys_of_two_orders": ("warning",
        ("the keys of a call or tool have capitals and small letters, which llama.cpp sorts otherwise than the "
         "template does elsewhere"),
        "give such keys one case, or serve with another engine"),
    "turn_not_learned": ("note", "an answer is marked not to be learned: it carries no loss", ""),
    "arrow_nulls": ("note", "keys that a table had filled with null were left out", ""),
    "labels_named": ("note", "class labels were numbers and are given by name", ""),
    "system_column": ("note", "the system turn stood in a column beside the turns", ""),
    "parts_joined": ("note", "content in several text parts was joined without a separator",
        "check that words don't run together"),
    "call_ids_made": ("note", "tool calls without ids were numbered, results matched by name or order",
        "give ids if the results are not in the order of the calls"),
    "field_dropped": ("note", "a message has fields that no chat template reads",
        "move the text into content if it matters"),
    "doubled_bos": ("error", "the content holds a literal <bos>, which the template adds itself",
        "give the messages, not rendered text"),
    "pii": ("note", "personal data was found", "set data.pii to mask or refuse, or take it out"),
}  # fmt: skip


@dataclass(frozen=True)
class RowFinding:
    """One thing to know about one row. `where` is `file:line`."""

    code: str
    level: Level
    row: str
    where: str
    what: str
    fix: str


def finding(code: str, row: str, where: str, detail: str = "") -> RowFinding:
    """Return a finding by its code; an unknown code is a reason for rejection."""
    level, what, fix = CODES.get(code, ("error", "the row can't be used", "correct the row; `prepare` leaves it out"))
    return RowFinding(code, level, row, where, f"{what}: {detail}" if detail else what, fix)


@dataclass(frozen=True)
class Context:
    """The model that rows are checked against."""

    tokenizer: Tokenizer
    max_length: int | None
    empty_thought: bool = False
    """Whether, without a `template`, prompts end in an empty thought while thinking is off."""
    template: str | None = None
    """The checkpoint's own template."""
    senses: Senses | None = None
    """Media that it takes besides text."""
    thinking: Thinking = "off"
    loss_on: Literal["all", "last"] = "all"

    @property
    def manner(self) -> Manner:
        """Return how rows become tokens."""
        return Manner(
            template=self.template, empty_thought=self.empty_thought, senses=self.senses,
            thinking=self.thinking, loss_on=self.loss_on,
        )  # fmt: skip


def look_at_row(example: dict[str, Any], context: Context) -> tuple[dict[str, Encoded], list[RowFinding]]:
    """Return the examples that training makes of a row as tokens (none when it can't be rendered) and its findings, in
    the order of `CODES`.

    The examples of a conversation are called `messages`, `messages 2` and so on; of compared answers each is there with
    its prompt, under the name of its side, and what is found on the unwanted side says so.
    """
    row, where = example["id"], example["source"]
    if example.get("text") is not None:
        whole = documents.encode_document(context.tokenizer, example["text"])
        unknown = ["unknown_token"] if context.tokenizer.token_to_id("<unk>") in whole.ids else []
        token = foreign_token(example["text"])
        return {"text": whole}, [
            *(finding(code, row, where) for code in unknown),
            *([finding("other_template", row, where, token)] if token else []),
        ]
    prompt = example["messages"]
    sides = {side: prompt + example[side] for side in SIDES if example.get(side) is not None} or {"messages": prompt}
    encoded: dict[str, Encoded] = {}
    found: dict[str, str] = {}
    for side, messages in sides.items():
        try:
            made, here = _look(messages, example.get("tools"), context, len(prompt) if side in SIDES else 0)
        except DataError as error:
            return {}, [finding("not_rendered", row, where, error.what)]
        encoded |= {side if number == 1 else f"{side} {number}": one for number, one in enumerate(made, 1)}
        for code, detail in here.items():
            found.setdefault(code, f"rejected: {detail}".rstrip(": ") if side == "rejected" else detail)
    order = list(CODES)
    return encoded, [finding(code, row, where, found[code]) for code in sorted(found, key=order.index)]


def _look(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, context: Context, after: int
) -> tuple[list[Encoded], dict[str, str]]:
    """Return one conversation's examples, and its findings, each code with its detail; the first `after` messages are a
    prompt."""
    manner = context.manner
    asked = manner.of(messages)
    last = context.loss_on == "last"
    made = chat.examples(context.tokenizer, messages, tools, last_only=last, after=after, **asked)
    closes = any("<|channel>thought\n<channel|>" in one.text for one in made)
    found = dict.fromkeys(_in_messages(messages, thinks=asked["thinking"], closes=closes), "")
    for one in made:
        found |= dict.fromkeys(_in_tokens(one.cut(context.max_length), context.tokenizer), "")
    texts = (str(text) for message in messages for text in texts_in([message["content"], message.get("reasoning")]))
    if token := next(filter(None, map(foreign_token, texts)), None):
        found["other_template"] = token
    if lost := schema_losses(tools):
        found["tool_schema_lost"] = ", ".join(lost[:6]) + (f" and {len(lost) - 6} more" if len(lost) > 6 else "")
    given = [[message.get("tool_calls"), message.get("tool_responses")] for message in messages]
    if key := key_of_two_orders([given, [tool["function"].get("parameters") for tool in tools or []]]):
        found["keys_of_two_orders"] = key
    if len(made) > 1:
        found["answers_apart"] = f"{len(made)} examples"
    return made, found


def _in_messages(messages: list[dict[str, Any]], *, thinks: bool, closes: bool) -> Iterator[str]:
    talk = [message["role"] for message in messages if message["role"] != "system"]
    if talk and talk[0] == "assistant":
        yield "assistant_first"
    if any(first == second == "user" for first, second in pairwise(talk)):
        yield "consecutive_users"
    if any(message["role"] == "system" for message in messages[1:]):
        yield "system_later"
    if any(first["role"] == second["role"] == "assistant" for first, second in pairwise(messages) if not _waits(first)):
        yield "two_answers"
    if any(map(_goes_unanswered, range(len(messages)), repeat(messages))):
        yield "unanswered_call"
    for message in messages:
        if message["role"] != "assistant":
            continue
        if message.get("weight") == 0:
            yield "turn_not_learned"
        if message.get("reasoning") and not thinks:
            yield "thought_left_out" if closes else "reasoning_without_thinking"
        if "<|channel>" in message["content"] or "<channel|>" in message["content"]:
            yield "stripped_channel"
        if re.search(r"</?think(?:ing)?>", message["content"]):
            yield "think_tags"
        if message.get("tool_calls") and message["content"].strip():
            yield "content_beside_calls"
        if message["content"] != message["content"].strip():
            yield "white_space"


def _waits(message: dict[str, Any]) -> bool:
    """True if a message of the model hands over, so that what follows is no second answer."""
    return bool(message.get("tool_calls") or message.get("tool_responses"))


def _goes_unanswered(index: int, messages: list[dict[str, Any]]) -> bool:
    """True if a message holds a call without a result although the conversation goes on after it."""
    message, after = messages[index], messages[index + 1 :]
    calls = message.get("tool_calls") or []
    results = list(takewhile(lambda turn: turn["role"] == "tool", after))
    answered = len(message.get("tool_responses") or results)
    goes_on = len(after) > len(results) or bool(message.get("tool_responses") and message["content"])
    return answered < len(calls) and (goes_on or answered > 0)


def _in_tokens(encoded: Encoded, tokenizer: Tokenizer) -> Iterator[str]:
    ids = [token for token, loss in zip(encoded.ids, encoded.loss, strict=True) if loss]
    stops = {tokenizer.token_to_id("<turn|>"), tokenizer.token_to_id("<|tool_response>")}
    if encoded.truncated:
        yield "truncated"
    if not ids:
        yield "no_loss"
    elif ids[-1] not in stops:
        yield "no_stop_token"
    if tokenizer.token_to_id("<unk>") in ids:
        yield "unknown_token"
