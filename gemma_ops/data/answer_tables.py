"""Rows for preference and reinforcement methods as Arrow tables on disk, by the kind of rows a method learns from.

Pairs:    prompt_ids, chosen_ids, chosen_loss, rejected_ids, rejected_loss, length
judged:   prompt_ids, completion_ids, completion_loss, label, length
prompts:  prompt (token ids), reference (text of the row's last answer), row (its id), length

`…_loss` says of each token whether the model itself says it; what a tool says inside an answer it doesn't. `length` is
how many tokens a forward pass of the row takes, each answer with a prompt of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_ops.data import chat, example
from gemma_ops.data.answers import encode_answers
from gemma_ops.data.row_tokens import Manner
from gemma_ops.errors import DataError
from gemma_ops.runs.durable import write_json

Columns = dict[str, Any]


@dataclass(frozen=True)
class Encoding:
    """Settings by which rows become tokens."""

    tokenizer: Any
    max_length: int
    """Tokens of prompt and answer together."""
    manner: Manner = field(default_factory=Manner)

    def of(self, row: dict[str, Any]) -> dict[str, bool]:
        """Return the arguments of `chat.encode_chat` for a row: the same for all its answers, so that they share a
        prompt."""
        return self.manner.of([turn for messages in example.conversation_rows(row) for turn in messages])


def pairs(path: Path, folder: Path, encoding: Encoding, method: str) -> tuple[Any, int]:
    """Return pairs of answers as a `datasets.Dataset`, and how many rows were cut; those left without an answer are not
    in it.

    The table is written to `folder`, and found there by a run that goes on. Raises DataError naming file and line of a
    row of another kind, or of one that can't be rendered.
    """
    return _table(path, folder, encoding, method, _pair, _PAIR)


def judged_rows(path: Path, folder: Path, encoding: Encoding, method: str) -> tuple[Any, int]:
    """Return judged answers as `pairs` does pairs; each side of a pair is a judged answer."""
    return _table(path, folder, encoding, method, _judged, _JUDGED)


def prompt_rows(path: Path, folder: Path, encoding: Encoding, method: str) -> tuple[Any, int]:
    """Return prompts as `pairs` does pairs, with the last answer of their conversation as reference."""
    return _table(path, folder, encoding, method, _prompt, _PROMPT)


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
        "length": 2 * len(found.prompt) + len(chosen.ids) + len(rejected.ids),
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
            "length": len(found.prompt) + len(answer.ids),
        }
        for side, answer in found.answers.items()
        if any(answer.loss)
    ]
    return columns, found.truncated


def _prompt(row: dict[str, Any], encoding: Encoding) -> tuple[list[Columns], bool]:
    messages, reference = example.last_exchange(row)
    ids = chat.chat_prompt_ids(encoding.tokenizer, messages, row.get("tools"), **encoding.of(row))
    if len(ids) >= encoding.max_length:  # a prompt without its end asks something else
        return [], True
    return [{"prompt": ids, "reference": reference, "row": row["id"], "length": len(ids)}], False


def _encoded(row: dict[str, Any], encoding: Encoding) -> Any:
    return encode_answers(encoding.tokenizer, row, max_length=encoding.max_length, **encoding.of(row))


_PAIR = {
    "prompt_ids": "ids", "chosen_ids": "ids", "chosen_loss": "flags", "rejected_ids": "ids", "rejected_loss": "flags",
    "length": "number",
}  # fmt: skip
_JUDGED = {
    "prompt_ids": "ids",
    "completion_ids": "ids",
    "completion_loss": "flags",
    "label": "flag",
    "length": "number",
}
_PROMPT = {"prompt": "ids", "reference": "text", "row": "text", "length": "number"}


def _table(
    path: Path,
    folder: Path,
    encoding: Encoding,
    method: str,
    columns: Callable[[dict[str, Any], Encoding], tuple[list[Columns], bool]],
    types: dict[str, str],
) -> tuple[Any, int]:
    import datasets

    features = _features(types)
    facts, target = folder / f"{path.stem}.json", folder / f"{path.stem}.arrow"
    if not facts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        writer = datasets.arrow_writer.ArrowWriter(path=str(target), features=features)
        rows, cut = 0, 0
        for found, truncated in _rows(path, encoding, method, columns):
            cut += truncated
            rows += len(found)
            for row in found:
                writer.write(row)
        writer.finalize()
        write_json(facts, {"rows": rows, "cut": cut})
    counted = json.loads(facts.read_text(encoding="utf-8"))
    if not counted["rows"]:
        return datasets.Dataset.from_dict({name: [] for name in types}, features=features), counted["cut"]
    return datasets.Dataset.from_file(str(target)), counted["cut"]


def _rows(
    path: Path,
    encoding: Encoding,
    method: str,
    columns: Callable[[dict[str, Any], Encoding], tuple[list[Columns], bool]],
) -> Iterator[tuple[list[Columns], bool]]:
    for number, row in enumerate(example.read_rows(path), 1):
        example.check_kind(row, method, f"{path}:{number}")
        try:
            yield columns(row, encoding)
        except DataError as error:
            raise DataError(f"{path}:{number}: {error.what}", error.fix) from error


def _features(types: dict[str, str]) -> Any:
    import datasets

    known = {
        "ids": datasets.List(datasets.Value("int32")),
        "flags": datasets.List(datasets.Value("bool")),
        "flag": datasets.Value("bool"),
        "text": datasets.Value("string"),
        "number": datasets.Value("int32"),
    }
    return datasets.Features({name: known[kind] for name, kind in types.items()})
