"""What a target says to the training prompts, on disk: its greedy answers, the states that its head reads, and the keys
and values that a drafter reads in place of its own.

Written once, a file for a few rows, each renamed into place when whole: a killed recording goes on after the last file.
Memory holds one file's rows, however many there are. Numbers are bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gemma_ops.modeling.generate import stop_ids
from gemma_ops.runs import journal

KINDS = ("full_attention", "sliding_attention")
"""Kinds of layers, whose last keys and values a drafter reads."""
_PASS = 4096
"""Tokens of a reading pass, unless one row alone has more."""


@dataclass(frozen=True)
class RecordedRow:
    """One conversation of `tokens` tokens: the prompt, and the answer with the token that ended it."""

    ids: torch.Tensor
    """Tokens, (tokens,)."""
    asked: int
    """Tokens of the prompt."""
    hidden: torch.Tensor
    """States that the head reads, (tokens, width of the target)."""
    shared: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Keys and values by kind of layer, (heads, tokens, width of a head) each."""

    def __len__(self) -> int:
        return len(self.ids)


class RecordedStates:
    """The rows in a folder of recordings, read one at a time."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._places: list[tuple[Path, int]] = []
        self.tokens = self.answered = 0
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for row, asked in enumerate(opened.get_tensor("asked").tolist()):
                    size = opened.get_slice(f"{row}.ids").get_shape()[0]
                    if size > asked + 1:  # nothing can be drafted of a shorter answer
                        self._places.append((file, row))
                        self.tokens += size
                        self.answered += size - asked

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> RecordedRow:
        from safetensors import safe_open

        file, row = self._places[number]
        with safe_open(file, framework="pt") as opened:

            def tensor(name: str) -> torch.Tensor:
                found: torch.Tensor = opened.get_tensor(f"{row}.{name}")
                return found

            return RecordedRow(
                tensor("ids").long(), int(opened.get_tensor("asked")[row]), tensor("hidden"),
                {kind: (tensor(f"keys.{kind}"), tensor(f"values.{kind}")) for kind in KINDS},
            )  # fmt: skip


def record_states(
    model: Any, prompts: Sequence[list[int]], folder: Path, *, answer_tokens: int, batch: int
) -> RecordedStates:
    """Let a loaded target answer prompts greedily, and keep what it computed; goes on with the files that `folder`
    lacks. Rows come in the order of the prompts' length."""
    folder.mkdir(parents=True, exist_ok=True)
    ordered = sorted(prompts, key=len)
    for start in range(0, len(ordered), batch):
        file = folder / f"{start // batch:06d}.safetensors"
        if not file.exists():
            answered = _answered(model, ordered[start : start + batch], answer_tokens)
            _write(model, answered, file)
        journal.record(event="recorded", done=min(start + batch, len(ordered)), rows=len(ordered))
    return RecordedStates(folder)


def is_recorded(folder: Path, prompts: int, batch: int) -> bool:
    """True if the answers to so many prompts lie in a folder, and no target is needed for them."""
    return all((folder / f"{number:06d}.safetensors").exists() for number in range(-(-prompts // batch)))


def _answered(model: Any, prompts: Sequence[list[int]], count: int) -> list[tuple[list[int], int]]:
    """Return each prompt with its greedy answer, and the prompt's length."""
    longest, stops = max(map(len, prompts)), set(stop_ids(model))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=count,
            do_sample=False, eos_token_id=sorted(stops), pad_token_id=0, use_cache=True,
        )[:, longest:].tolist()  # fmt: skip
    found = []
    for prompt, reply in zip(prompts, out, strict=True):
        end = next((place for place, token in enumerate(reply, 1) if token in stops), len(reply))
        found.append((prompt + reply[:end], len(prompt)))
    return found


def _write(model: Any, rows: Sequence[tuple[list[int], int]], file: Path) -> None:
    from safetensors.torch import save_file

    kept: dict[str, torch.Tensor] = {"asked": torch.tensor([asked for _, asked in rows], dtype=torch.int32)}
    for group in _passes(rows):
        longest = max(len(rows[row][0]) for row in group)
        # Padded behind, and causal: what counts sees no padding.
        ids = torch.tensor([rows[row][0] + [0] * (longest - len(rows[row][0])) for row in group])
        with torch.inference_mode():
            read = model.get_decoder()(input_ids=ids.to(model.device), use_cache=False, return_shared_kv_states=True)
        for place, row in enumerate(group):
            size = len(rows[row][0])
            kept[f"{row}.ids"] = torch.tensor(rows[row][0], dtype=torch.int32)
            kept[f"{row}.hidden"] = _stored(read.last_hidden_state[place, :size])
            for kind in KINDS:
                for name, value in zip(("keys", "values"), read.shared_kv_states[kind], strict=True):
                    kept[f"{row}.{name}.{kind}"] = _stored(value[place, :, :size])
    temporary = file.with_suffix(".tmp")
    save_file(kept, temporary)
    temporary.replace(file)


def _stored(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.bfloat16).cpu().contiguous()


def _passes(rows: Sequence[tuple[list[int], int]]) -> list[list[int]]:
    """Return the rows in groups that one pass reads."""
    groups: list[list[int]] = [[]]
    longest = 0
    for row, (ids, _) in enumerate(rows):
        longest = max(longest, len(ids))
        if groups[-1] and longest * (len(groups[-1]) + 1) > _PASS:
            groups.append([])
            longest = len(ids)
        groups[-1].append(row)
    return groups
