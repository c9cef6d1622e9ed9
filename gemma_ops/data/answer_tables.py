"""Rows for preference and reinforcement methods as Arrow tables on disk, by the kind of rows a method learns from.

Pairs:    prompt_ids, chosen_ids, chosen_loss, rejected_ids, rejected_loss
judged:   prompt_ids, completion_ids, completion_loss, label
prompts:  prompt (token ids), reference (text of the row's last answer), row (its id)

`…_loss` says of each token whether the model itself says it; what a tool says inside an answer it doesn't.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config.methods import Kind
from gemma_ops.data import chat, example
from gemma_ops.data.answers import encode_answers
from gemma_ops.errors import DataError

Columns = dict[str, Any]
_WORDS: dict[Kind, str] = {"conversation": "conversations", "pair": "pairs of answers", "judged": "judged answers"}
_FIX = {
    "pair": "give pairs (`prompt`, `chosen`, `rejected`), or train with sft (conversations) or kto (judged answers)",
    "judged": "give judged answers (`prompt`, `completion`, `label`) or pairs, or train with sft",
    "conversation": "give conversations, or train with dpo, orpo or reward (pairs) or kto (judged answers)",
}


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens."""

    tokenizer: Any
    max_length: int
    """Tokens of prompt and answer together."""
    empty_thought: bool = False
    thinking: bool = False


@dataclass(frozen=True)
class Table:
    """A `datasets.Dataset`, how many rows were cut (those left without an answer are not in it), and its longest row."""

    rows: Any
    cut: int


def check_kind(found: Kind, wanted: tuple[Kind, ...], method: str, where: str) -> None:
    """Raises DataError when a method can't learn from a kind of rows."""
    if found not in wanted:
        raise DataError(
            f"{where} holds {_WORDS[found]}, and train.method {method} learns from "
            + " or ".join(_WORDS[name] for name in wanted),
            _FIX[wanted[0]],
        )


def pairs(path: Path, encoding: Encoding, method: str) -> Table:
    """Pairs of answers. Raises DataError naming file and line of a row of another kind."""
    return _table(path, encoding, method, ("pair",), _pair, _PAIR)


def judged(path: Path, encoding: Encoding, method: str) -> Table:
    """Judged answers; each side of a pair is one. Raises DataError naming file and line of a row of another kind."""
    return _table(path, encoding, method, ("judged", "pair"), _judged, _JUDGED)


def prompts(path: Path, encoding: Encoding, method: str) -> Table:
    """Prompts with the last answer of their conversation as reference. Raises DataError as `pairs` does."""
    return _table(path, encoding, method, ("conversation",), _prompt, _PROMPT)


def _pair(row: dict[str, Any], encoding: Encoding) -> tuple[list[Columns], bool]:
    found = _encoded(row, encoding)
    chosen, rejected = found.answers["chosen"], found.answers["rejected"]
    if not (any(chosen.loss) and any(rejected.loss)):
        return [], True
    columns = {
        "prompt_ids": found.prompt,
        "chosen_ids": chosen.ids,
        "chosen_loss": chosen.loss,
        "rejected_ids": rejected.ids,
        "rejected_loss": rejected.loss,
    }
    return [columns], found.truncated


def _judged(row: dict[str, Any], encoding: Encoding) -> tuple[list[Columns], bool]:
    found = _encoded(row, encoding)
    columns = [
        {
            "prompt_ids": found.prompt,
            "completion_ids": answer.ids,
            "completion_loss": answer.loss,
            "label": side == "chosen",
        }
        for side, answer in found.answers.items()
        if any(answer.loss)
    ]
    return columns, found.truncated


def _prompt(row: dict[str, Any], encoding: Encoding) -> tuple[list[Columns], bool]:
    messages, reference = example.asked(row)
    ids = chat.prompt_ids(
        encoding.tokenizer,
        messages,
        row.get("tools"),
        empty_thought=encoding.empty_thought,
        thinking=encoding.thinking,
    )
    if len(ids) >= encoding.max_length:  # a prompt without its end asks something else
        return [], True
    return [{"prompt": ids, "reference": reference, "row": row["id"]}], False


def _encoded(row: dict[str, Any], encoding: Encoding) -> Any:
    return encode_answers(
        encoding.tokenizer,
        row,
        max_length=encoding.max_length,
        empty_thought=encoding.empty_thought,
        thinking=encoding.thinking,
    )


_PAIR = {
    "prompt_ids": "ids",
    "chosen_ids": "ids",
    "chosen_loss": "flags",
    "rejected_ids": "ids",
    "rejected_loss": "flags",
}
_JUDGED = {"prompt_ids": "ids", "completion_ids": "ids", "completion_loss": "flags", "label": "flag"}
_PROMPT = {"prompt": "ids", "reference": "text", "row": "text"}


def _table(
    path: Path,
    encoding: Encoding,
    method: str,
    wanted: tuple[Kind, ...],
    columns: Callable[[dict[str, Any], Encoding], tuple[list[Columns], bool]],
    types: dict[str, str],
) -> Table:
    cut = 0

    def rows() -> Iterator[Columns]:
        nonlocal cut
        for number, row in enumerate(example.read_rows(path), 1):
            check_kind(example.kind(row), wanted, method, f"{path}:{number}")
            try:
                found, truncated = columns(row, encoding)
            except DataError as error:
                raise DataError(f"{path}:{number}: {error.what}", error.fix) from error
            cut += truncated
            yield from found

    return Table(_stored(rows(), types), cut)


def _stored(rows: Iterator[Columns], types: dict[str, str]) -> Any:
    """Rows as a memory-mapped table in a temporary folder that goes with it."""
    import datasets

    known = {
        "ids": datasets.List(datasets.Value("int32")),
        "flags": datasets.List(datasets.Value("bool")),
        "flag": datasets.Value("bool"),
        "text": datasets.Value("string"),
    }
    features = datasets.Features({name: known[kind] for name, kind in types.items()})
    scratch = tempfile.TemporaryDirectory(prefix="gemma-ops-rows-")
    writer = datasets.arrow_writer.ArrowWriter(path=f"{scratch.name}/rows.arrow", features=features)
    count = 0
    for row in rows:
        writer.write(row)
        count += 1
    writer.finalize()
    if count == 0:
        return datasets.Dataset.from_dict({name: [] for name in types}, features=features)
    table = datasets.Dataset.from_file(f"{scratch.name}/rows.arrow")
    table.scratch = scratch  # the folder lives as long as the table
    return table
