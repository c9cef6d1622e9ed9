"""The conversations on which exported models are compared: validation rows, or a few fixed ones when there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.data import chat, published
from gemma_ops.data.parts import media_of
from gemma_ops.data.prompt_record import Prompting
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError

Row = dict[str, Any]

# Used when a model is exported without data. Plain questions: what matters is that two models see the same tokens.
_FIXED = (
    "Name three things a support agent should ask before closing a ticket.",
    'Return {"status": "ok"} and nothing else.',
    "Translate into French: The order arrives on Monday.",
    "What is 17 + 25?",
    "Summarise in one sentence: The meeting moved from 3 pm to 4 pm because the room was taken.",
    "List the days of the week, separated by commas.",
    "Write a polite reply to a customer whose parcel is late.",
    "Is the following sentence about billing or shipping? I was charged twice.",
)


def fidelity_prompts(data: Path | None, count: int, *, text_only: bool = False) -> list[Row]:
    """Return the first `count` validation rows of a `prepare` folder, or fixed prompts (without an answer) if there are
    none.

    With `text_only`, rows that show images or audio are left out: engines for text can't be asked about them.
    """
    file = data / "valid.jsonl" if data else None
    found: list[Row] = []
    if file is not None and file.exists():
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if len(found) == count:
                    break
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{file}:{number} is not valid JSON: {error}", "prepare the data again") from error
                # A raw text asks nothing.
                if row["messages"] and not (text_only and media_of(row["messages"])):
                    found.append(row)
    return found or [{"messages": [{"role": "user", "content": text}]} for text in _FIXED[:count]]


def before_answer(row: Row) -> list[dict[str, Any]]:
    """Return a row's conversation up to its last answer."""
    messages: list[dict[str, Any]] = row["messages"]
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return messages


def manner_of(folder: Path, prompting: Prompting | None) -> Manner:
    """Return how rows become tokens for a model whose tokenizer and template lie in `folder`, in the mode it was
    trained in."""
    return Manner(template=published.template_of(folder), thinking=prompting.thinking if prompting else "off")


def export_prompt_ids(tokenizer: Any, row: Row, manner: Manner) -> list[int]:
    """Return the token ids of a row's conversation up to its last answer, ending in the generation prompt."""
    return chat.chat_prompt_ids(tokenizer, before_answer(row), row.get("tools"), **manner.of(row["messages"]))
