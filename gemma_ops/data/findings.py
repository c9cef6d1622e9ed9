"""What is wrong, or silently changed, in one row on its way to tokens. Each finding has a code, and says what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from tokenizers import Tokenizer

from gemma_ops.data import chat, documents
from gemma_ops.data.encoded import Encoded
from gemma_ops.data.example import SIDES
from gemma_ops.errors import DataError
from gemma_ops.family.media import Senses

Level = Literal["error", "warning", "note"]

# code: (level, what happens, what to do). An error keeps the row out, a warning changes what is learned, a note is a repair.
CODES: dict[str, tuple[Level, str, str]] = {
    "dropped_reasoning": ("warning", "reasoning before the last user turn is dropped by the template", "split the conversation so that each thought is in a last answer, or remove it"),
    "reasoning_without_thinking": ("warning", "the row teaches to think although thinking is off in its system turn", "start the system turn with <|think|>, or remove the reasoning"),
    "stripped_channel": ("warning", "a channel inside an answer is stripped by the template", "put the thought into `reasoning`, or remove it"),
    "think_tags": ("warning", "<think> stays in the answer as literal text: Gemma 4 thinks in a channel", "move that text into `reasoning`"),
    "content_beside_calls": ("warning", "text beside tool calls is rendered after the results, not before the calls", "put it into `reasoning`, or into an assistant message after the results"),
    "white_space": ("note", "white space at the ends of an answer is stripped", "keep the part that matters away from the ends, if they need it"),
    "no_stop_token": ("warning", "the loss does not end in <turn|> or <|tool_response>: the model does not learn to stop", "raise train.max_length, or end the row with an answer"),
    "no_loss": ("error", "no token of the row carries loss", "raise train.max_length, or shorten the prompt"),
    "truncated": ("warning", "the row is longer than train.max_length and is cut at its end", "raise train.max_length, or shorten the row"),
    "prefix_mismatch": ("warning", "the prompt at inference is not the beginning of the row as trained", "see the finding beside it; a tokenizer that merges over a line break does this too"),
    "boundary_in_token": ("warning", "a token spans the boundary of the loss and carries none", "use a tokenizer that never merges over a line break"),
    "unknown_token": ("warning", "an answer holds characters the tokenizer doesn't know", "replace those characters"),
    "consecutive_users": ("warning", "two user turns follow each other", "join them, or add the answer between them"),
    "assistant_first": ("warning", "the conversation starts with the assistant", "start with the user's turn"),
    "system_later": ("warning", "a system turn stands after the first message", "put the instructions first"),
    "template_differs": ("warning", "the checkpoint's own template renders this row differently", "serve with the template that gemma-ops writes beside the model, or train on what both render alike"),
    "not_rendered": ("error", "the row can't be rendered", "correct the row"),
    "arguments_parsed": ("note", "tool arguments were a JSON string and were parsed", ""),
    "tools_parsed": ("note", "the tool list was a JSON string and was parsed", ""),
    "reasoning_renamed": ("note", "the thought stood in another field and was renamed to reasoning", ""),
    "channel_moved": ("note", "a thought channel inside the answer was moved to reasoning", ""),
    "parts_joined": ("note", "content in several text parts was joined without a separator", "check that words don't run together"),
    "call_ids_made": ("note", "tool calls without ids were numbered, results matched by name or order", "give ids if the results are not in the order of the calls"),
    "field_dropped": ("note", "a message has fields that no chat template reads", "move the text into content if it matters"),
    "doubled_bos": ("error", "the content holds a literal <bos>, which the template adds itself", "give the messages, not rendered text"),
    "pii": ("note", "personal data was found", "set data.pii to mask or refuse, or take it out"),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing to know about one row. `where` is `file:line`."""

    code: str
    level: Level
    row: str
    where: str
    what: str
    fix: str


def finding(code: str, row: str, where: str, detail: str = "") -> Finding:
    """A finding by its code; an unknown code is a reason for rejection."""
    level, what, fix = CODES.get(code, ("error", "the row can't be used", "correct the row; `prepare` leaves it out"))
    return Finding(code, level, row, where, f"{what}: {detail}" if detail else what, fix)


@dataclass(frozen=True)
class Context:
    """What rows are checked against."""

    tokenizer: Tokenizer
    max_length: int | None
    empty_thought: bool
    template: str | None
    """The checkpoint's own template."""
    senses: Senses | None = None
    """What it takes besides text."""


def look(example: dict[str, Any], context: Context) -> tuple[dict[str, Encoded], list[Finding]]:
    """The whole row as tokens (none when it can't be rendered) and its findings, in the order of `CODES`.

    A conversation is called `messages`; of compared answers each is there with its prompt, under the name of its side,
    and what is found on the unwanted side says so.
    """
    row, where = example["id"], example["source"]
    if example.get("text") is not None:
        whole = documents.encode(context.tokenizer, example["text"])
        unknown = context.tokenizer.token_to_id("<unk>") in whole.ids
        return {"text": whole}, [finding("unknown_token", row, where)] if unknown else []
    prompt = example["messages"]
    sides = {side: prompt + example[side] for side in SIDES if example.get(side) is not None} or {"messages": prompt}
    encoded: dict[str, Encoded] = {}
    found: dict[str, str] = {}
    for side, messages in sides.items():
        try:
            encoded[side], here = _look(messages, example.get("tools"), context, prompt if side in SIDES else None)
        except DataError as error:
            return {}, [finding("not_rendered", row, where, error.what)]
        for code, detail in here.items():
            found.setdefault(code, f"rejected: {detail}".rstrip(": ") if side == "rejected" else detail)
    order = list(CODES)
    return encoded, [finding(code, row, where, found[code]) for code in sorted(found, key=order.index)]


def _look(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    context: Context,
    prompt: list[dict[str, Any]] | None,
) -> tuple[Encoded, dict[str, str]]:
    """One conversation as tokens, and what is found, each code with its detail; loss before the end of `prompt` is none."""
    found = dict.fromkeys(_in_messages(messages), "")
    rendered = chat.render(messages, tools, empty_thought=context.empty_thought)
    manner: dict[str, Any] = {"empty_thought": context.empty_thought, "senses": context.senses}
    whole = chat.encode(context.tokenizer, messages, tools, **manner)
    if prompt is not None:
        start = len(chat.prompt_ids(context.tokenizer, prompt, tools, **manner))
        whole = replace(whole, loss=[loss and index >= start for index, loss in enumerate(whole.loss)])
    found |= dict.fromkeys(_in_tokens(whole.cut(context.max_length), context.tokenizer), "")
    if chat.straddling(whole.offsets, rendered.spans):
        found["boundary_in_token"] = ""
    if mismatch := _prefix_mismatch(messages, tools, whole, context):
        found["prefix_mismatch"] = mismatch
    if context.template is not None and (difference := _template_difference(messages, tools, context.template)):
        found["template_differs"] = difference
    return whole, found


def _in_messages(messages: list[dict[str, Any]]) -> Iterator[str]:
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    last_user = users[-1] if users else -1
    talk = [message["role"] for message in messages if message["role"] != "system"]
    thinks = messages[0]["role"] == "system" and "<|think|>" in messages[0]["content"]
    if talk and talk[0] == "assistant":
        yield "assistant_first"
    if any(first == second == "user" for first, second in pairwise(talk)):
        yield "consecutive_users"
    if any(message["role"] == "system" for message in messages[1:]):
        yield "system_later"
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if message.get("reasoning"):
            if index < last_user:
                yield "dropped_reasoning"
            elif not thinks:
                yield "reasoning_without_thinking"
        if "<|channel>" in message["content"] or "<channel|>" in message["content"]:
            yield "stripped_channel"
        if re.search(r"</?think(?:ing)?>", message["content"]):
            yield "think_tags"
        if message.get("tool_calls") and message["content"].strip():
            yield "content_beside_calls"
        if message["content"] != message["content"].strip():
            yield "white_space"


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


def _prefix_mismatch(
    messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, encoded: Encoded, context: Context
) -> str:
    """Where the prompt for the last answer leaves the row as trained; empty when it is its beginning."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    if last == 0:
        return ""
    prompt = chat.prompt_ids(
        context.tokenizer, messages[:last], tools, empty_thought=context.empty_thought, senses=context.senses
    )
    if messages[last - 1]["role"] == "assistant" or encoded.ids[: len(prompt)] == prompt:
        return ""  # a second message of one turn has no prompt of its own
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, encoded.ids, strict=False)) if a != b),
        min(len(prompt), len(encoded.ids)),
    )
    show = context.tokenizer.decode
    return (
        f"asked for {show(prompt[same : same + 4], skip_special_tokens=False)!r} where the row has "
        f"{show(encoded.ids[same : same + 4], skip_special_tokens=False)!r}"
    )


def _template_difference(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, template: str) -> str:
    """How the checkpoint's template differs from ours on this row; empty when it doesn't."""
    ours = chat.render(messages, tools).text
    try:
        theirs = chat.render_template(template, messages, tools, add_generation_prompt=False).text
    except DataError as error:
        return error.what
    if ours == theirs:
        return ""
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return f"{theirs[same : same + 40]!r} where training has {ours[same : same + 40]!r}"
