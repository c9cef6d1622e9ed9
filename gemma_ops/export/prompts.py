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
from gemma_ops.export.general_prompts import GENERAL_PROMPTS

Row = dict[str, Any]


def fidelity_prompts(data: Path | None, count: int, *, text_only: bool = False) -> list[Row]:
    """Return the first `count` validation rows of a `prepare` folder, or prompts of no domain (without an answer) where
    there are none.

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
    return found or general_rows()[:count]


def general_rows() -> list[Row]:
    """Return prompts that belong to no domain, without an answer."""
    return [{"messages": [{"role": "user", "content": text}]} for text in GENERAL_PROMPTS]


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
