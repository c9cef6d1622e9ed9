"""Protection against control tokens in content: what a conversation says never becomes what structures it.

A tokenizer reads `<|turn>` in a user's text as the token that opens a turn. So every `<` of content gets a mark before
it is rendered; in the rendering, a control token whose first character is marked came from content, also where two
pieces of content make one between them. It is then refused, or spelled out: tokenized in two halves, as the characters
that a person reads. The template's own tokens are never marked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from tokenizers import Tokenizer

from gemma_ops.data.template import BOS, Message, Tool
from gemma_ops.errors import DataError
from gemma_ops.family.media import OTHER, TOKENS

THINK = "<|think|>"
CHANNEL, CHANNEL_END = "<|channel>", "<channel|>"
# TextTokens that carry the structure of a conversation; a tokenizer without one of them isn't Gemma 4's.
STRUCTURE = (
    BOS, "<eos>", "<|turn>", "<turn|>", CHANNEL, CHANNEL_END, THINK, "<|tool>", "<tool|>",
    "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>',
)  # fmt: skip
CONTROL = (*STRUCTURE, *(token for kind in TOKENS.values() for token in kind), *OTHER, "<pad>", "<mask>", "<unk>")
"""Control tokens that no content may become, whatever a tokenizer calls special. All of them open with `<`."""

Policy = Literal["refuse", "spell"]
"""Treatment of content that reads like a control token: refuse it, or tokenize it as its characters."""

_ROW_KEYS = frozenset(("role", "content", "type", "text", "function", "name", "arguments", "id"))  # open no token
_MARKS = "\ue0f0\ue0f1\ue0f2"  # private use: one of them is not in the conversation
_IN_TEXT = re.compile("|".join(map(re.escape, sorted(CONTROL, key=len, reverse=True))))


def control_in_text(text: str) -> str | None:
    """Return the first control token that a text spells, or None."""
    found = _IN_TEXT.search(text) if "<" in text else None
    return found[0] if found else None


def control_in(messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> str | None:
    """Return the first control token that a conversation's content spells, or None; channels in the model's own turns,
    which templates strip, don't count."""
    turns = [_without_channels(message) for message in messages]
    return next((token for text in texts_in([turns, list(tools or [])]) if (token := control_in_text(text))), None)


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, the keys of its objects included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def marked_text(
    messages: Sequence[Message], tools: Sequence[Tool] | None, tokenizer: Tokenizer
) -> tuple[list[Message], list[Tool] | None, str]:
    """Return the conversation with a mark after every character of its content that opens a control token, and the
    mark; as it is, and "", where there is no such character.

    The model's own text first loses its channels, as every published template strips them: it would no longer see them.
    Raises DataError for content that holds every character that could serve as the mark.
    """
    openers = _openers(control_tokens(tokenizer))
    if not (_holds(messages, openers) or _holds(tools or (), openers)):
        return list(messages), list(tools) if tools else None, ""
    said = list(texts_in([list(messages), list(tools or [])]))
    mark = next((mark for mark in _MARKS if not any(mark in text for text in said)), None)
    if mark is None:
        raise DataError(
            f"the conversation holds the private-use characters {', '.join(f'U+{ord(one):04X}' for one in _MARKS)}",
            "remove one of them",
        )
    turns = [_without_channels(message) for message in messages]
    return _put(turns, openers, mark), _put(list(tools), openers, mark) if tools else None, mark


def _holds(value: Any, openers: re.Pattern[str]) -> bool:
    """True if a text in a JSON value, a key included, holds one of the characters."""
    if isinstance(value, str):
        return openers.search(value) is not None
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _ROW_KEYS and openers.search(str(key)):
                return True
            if _holds(item, openers):
                return True
    elif isinstance(value, list | tuple):
        for item in value:
            if _holds(item, openers):
                return True
    return False


def _without_channels(message: Message) -> Message:
    if message.get("role") not in ("assistant", "model"):
        return message
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": stripped(content)}
    if isinstance(content, list):
        parts = [
            {**part, "text": stripped(part["text"])} if isinstance(part.get("text"), str) else part for part in content
        ]
        return {**message, "content": parts}
    return message


def stripped(text: str) -> str:
    """Return the model's text without its channels, closed or not, as the published templates show it in later
    turns."""
    return "".join(piece.split(CHANNEL)[0] for piece in text.split(CHANNEL_END))


def _put(value: Any, openers: re.Pattern[str], mark: str) -> Any:
    if isinstance(value, str):
        return openers.sub(rf"\g<0>{mark}", value)
    if isinstance(value, dict):
        return {_put(str(key), openers, mark): _put(item, openers, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_put(item, openers, mark) for item in value]
    return value


@lru_cache(maxsize=16)
def control_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return a tokenizer's control tokens: those it calls special, and those of Gemma 4 that it knows."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return tuple(sorted(special | {token for token in CONTROL if tokenizer.token_to_id(token) is not None}))


@lru_cache(maxsize=16)
def _openers(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of the characters that control tokens begin with."""
    return re.compile(f"[{re.escape(''.join(sorted({token[0] for token in tokens})))}]")


@lru_cache(maxsize=16)
def _pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))


class TextTokens(NamedTuple):
    """A text as tokens: their ids, and the character range of each, none where they weren't asked for."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


def tokenize(tokenizer: Tokenizer, text: str, mark: str = "", policy: Policy = "refuse") -> TextTokens:
    """Return a rendered text without its marks as tokens.

    Content becomes tokens here and in `tokenize_texts`, nowhere else. Raises DataError where content spells a control
    token and the policy is to refuse it.
    """
    if not mark or policy == "refuse":
        (found,) = tokenize_texts(tokenizer, [clean_text(tokenizer, text, mark)])
        return found
    clean, spelled = _spelled(tokenizer, text, mark)
    cuts = [match.start() + 1 for match in spelled]
    pieces = [clean[start:end] for start, end in zip([0, *cuts], [*cuts, len(clean)], strict=True)]
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for start, piece in zip([0, *cuts], tokenize_texts(tokenizer, pieces), strict=True):
        ids += piece.ids
        offsets += [(start + one, start + two) for one, two in piece.offsets]
    return TextTokens(clean, ids, offsets)


def tokenize_texts(tokenizer: Tokenizer, texts: list[str], *, offsets: bool = True) -> list[TextTokens]:
    """Return texts as tokens, in order. Without `offsets` they aren't computed, which takes less time."""
    if offsets:
        each = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        return [TextTokens(text, one.ids, one.offsets) for text, one in zip(texts, each, strict=True)]
    different = list(dict.fromkeys(texts))  # the line break behind an answer stands in every row
    with _one_thread():
        made = tokenizer.encode_batch_fast(different, add_special_tokens=False)
    known = {text: TextTokens(text, one.ids, []) for text, one in zip(different, made, strict=True)}
    return [known[text] for text in texts]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the tokenizers library from starting threads of its own, which would not survive a later fork: who wants
    more cores starts processes."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def clean_text(tokenizer: Tokenizer, text: str, mark: str) -> str:
    """Return a rendered text without its marks. Raises DataError where content spells a control token."""
    if not mark:
        return text
    clean, spelled = _spelled(tokenizer, text, mark)
    if spelled:
        raise spelled_control(spelled[0][0])
    return clean


def _spelled(tokenizer: Tokenizer, text: str, mark: str) -> tuple[str, list[re.Match[str]]]:
    """Return a text without its marks, and the control tokens in it that content spells."""
    pieces = text.split(mark)
    clean = "".join(pieces)
    places, position = set(), 0
    for piece in pieces[:-1]:
        position += len(piece)
        places.add(position - 1)  # where such a character of content stands
    matches = _pattern(control_tokens(tokenizer)).finditer(clean)
    return clean, [match for match in matches if match.start() in places]


def spelled_control(token: str) -> DataError:
    """Return the error for content that spells a control token."""
    return DataError(
        f"the conversation's own text spells the control token {token}, which the model would read as structure",
        "give the messages themselves, not rendered text; a question that is about such tokens can be spelled out: "
        "--set evaluate.control_tokens=spell",
    )
