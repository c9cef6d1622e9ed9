"""Raw text for continued pre-training: a row's `text` is a document, and every token of it carries loss.

A document is `<bos>`, its text, `<eos>`, as Gemma was trained. One longer than a row may be is split into pieces; each
piece begins with a `<bos>` of its own, because a Gemma without one is far from what it knows, only the last one ends,
and every token of the document is scored exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from gemma_ops.data.chat import BOS
from gemma_ops.data.encoded import Encoded
from gemma_ops.data.example_steps import Steps, examples_of
from gemma_ops.data.normal import refuse_control_tokens
from gemma_ops.data.rowerror import RowError
from gemma_ops.errors import DataError

EOS = "<eos>"
KEYS = frozenset(
    ("text", "id", "url", "title", "source", "meta", "metadata", "privacy", "group", "weight", "date", "timestamp",
        "language")
)  # fmt: skip
"""Keys that may stand next to `text` in a row that is taken for a document; a `label` makes it something else."""


def document_of(row: dict[str, Any]) -> str:
    """Return the text of a raw row. Raises RowError when there is none, or it holds Gemma's control tokens."""
    text = row.get("text")
    if not isinstance(text, str):
        raise RowError("null_column" if text is None else "not_text", "the row's text is missing, or not text")
    if not text.strip():
        raise RowError("empty_turn", "the row's text is empty")
    refuse_control_tokens(text, "the text")
    return text


def encode_document(tokenizer: Tokenizer, text: str) -> Encoded:
    """Return a whole document as tokens; all but `<bos>` carry loss. Raises DataError when the text brings a `<bos>`
    along."""
    (found,) = examples_of([document_steps(tokenizer, text)], tokenizer, offsets=True)
    if isinstance(found, DataError):
        raise found
    return found[0]


def document_steps(tokenizer: Tokenizer, text: str) -> Steps:
    """Give a document's text, take its tokens, and return the whole document as the one example that it is. Raises like
    `encode_document`."""
    ((whole, ids, offsets),) = yield [f"{BOS}{text}{EOS}"]
    begin, end = (tokenizer.token_to_id(token) for token in (BOS, EOS))
    if ids[0] != begin or ids[-1] != end or begin in ids[1:]:
        raise DataError("the text holds a control token", "give plain text")
    return [Encoded([*ids], [False] + [True] * (len(ids) - 1), False, whole, offsets)]


def document_pieces(ids: list[int], max_length: int | None) -> Iterator[list[int]]:
    """Yield a document's tokens as rows of at most `max_length` tokens, each behind a `<bos>`."""
    if max_length is None or len(ids) <= max_length:
        yield ids
        return
    begin, rest = ids[:1], ids[1:]
    for start in range(0, len(rest), max_length - 1):
        yield begin + rest[start : start + max_length - 1]
