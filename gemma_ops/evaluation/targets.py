"""Targets: whatever can answer a question. A local checkpoint, a GGUF file, and by the same protocol any service.

A target takes conversations, not tokens: how a conversation becomes a prompt is its own business. It gets all batches at
once, so that it can size its context for the longest prompt, and yields one list of answers per batch, in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from gemma_ops.answer import Answer
from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation.metrics.base import Row

Conversation = Sequence[dict[str, Any]]
LOCAL = frozenset({"local_only", "paid", "any"})
"""Privacy classes that a target on this machine may see: all."""
QUANTIZED = ("bf16", "q8_0", "q4_0")


class Target(Protocol):
    """Something that answers."""

    name: str
    identity: str
    """Digest of the model, or a service's model id: part of every answer's key."""
    sees: frozenset[str]
    """Privacy classes of rows that may be sent to it."""

    def answer(self, batches: Sequence[Sequence[Conversation]], *, max_new_tokens: int) -> Iterator[list[Answer]]:
        """Answer each batch, in order. A refusal is an answer that ended `blocked`, a failure one that ended `error`."""
        ...

    def close(self) -> None:
        """Free what the target holds."""
        ...


def guard(target: Target, task: str, rows: Sequence[Row]) -> None:
    """Refuse to show rows to a target that may not see them. Raises DataError naming the first."""
    hidden = [row for row in rows if row.privacy not in target.sees]
    if hidden:
        raise DataError(
            f"{len(hidden)} of {len(rows)} rows of task {task} are {hidden[0].privacy} and target {target.name} may not see them (the first: {hidden[0].id})",
            f"leave {target.name} out of evaluate.targets, or relax `privacy` in the task if these rows may leave the machine",
        )


class Checkpoint:
    """A Hugging Face checkpoint, answered by transformers in bf16."""

    sees = LOCAL

    def __init__(self, name: str, path: Path, machine: MachineConfig) -> None:
        self.name = name
        self.identity = identity(path)
        self._path = path
        self._machine = machine
        self._model: Any = None

    def answer(self, batches: Sequence[Sequence[Conversation]], *, max_new_tokens: int) -> Iterator[list[Answer]]:
        """Load on first use, then answer greedily, one forward batch per given batch."""
        from gemma_ops.modeling import generate, load
        from gemma_ops.modeling.source import checkpoint

        folder = checkpoint(self._path)
        encode = Prompts(folder)
        if self._model is None:
            self._model = load.load_model(folder, device=load.pick_device(self._machine.device, folder))
        for batch in batches:
            prompts = [encode(conversation) for conversation in batch]
            yield list(
                generate.answer(
                    self._model, encode.tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=len(prompts)
                )
            )

    def close(self) -> None:
        self._model = None


class Quantized:
    """A GGUF file, answered by llama.cpp. The prompt's tokens come from the checkpoint's tokenizer, so that every target
    reads the same ids."""

    sees = LOCAL

    def __init__(self, name: str, path: Path, tokenizer: Path, machine: MachineConfig) -> None:
        self.name = name
        self._file = path / name / "model.gguf"
        if not self._file.is_file():
            made = sorted(folder.name for folder in path.iterdir() if (folder / "model.gguf").is_file())
            raise ConfigError(
                f"target {name}: {self._file} does not exist",
                f"add {name} to quantize.formats, or evaluate one of: {', '.join(made) or 'none'}",
            )
        self.identity = identity(path)
        self._tokenizer = tokenizer
        self._machine = machine

    def answer(self, batches: Sequence[Sequence[Conversation]], *, max_new_tokens: int) -> Iterator[list[Answer]]:
        """Open with room for the longest prompt and its answer, then answer batch by batch."""
        from gemma_ops.modeling.llamacpp import GGUF
        from gemma_ops.modeling.source import checkpoint

        encode = Prompts(checkpoint(self._tokenizer))
        prompts = [encode(conversation) for batch in batches for conversation in batch]
        size, longest = max(map(len, batches)), max(map(len, prompts))
        with GGUF(self._file, threads=self._machine.workers, context=longest + max_new_tokens + 8) as model:
            # Loading happens on the first request; it must not count as the first answer's time.
            list(model.answer(prompts[:size], max_new_tokens=1, batch_size=size))
            replies = model.answer(prompts, max_new_tokens=max_new_tokens, batch_size=size)
            for batch in batches:
                yield list(islice(replies, len(batch)))

    def close(self) -> None:
        """The file is open only while it answers."""


class Prompts:
    """Turns conversations into token ids with a checkpoint's tokenizer and the template of its size."""

    def __init__(self, folder: Path) -> None:
        from gemma_ops import family
        from gemma_ops.modeling.load import load_tokenizer
        from gemma_ops.modeling.source import read_config

        self.tokenizer = load_tokenizer(folder)
        self._empty_thought = family.empty_thought(read_config(folder))

    def __call__(self, conversation: Conversation) -> list[int]:
        from gemma_ops.data import chat

        return chat.prompt_ids(self.tokenizer, list(conversation), empty_thought=self._empty_thought)


def identity(path: Path) -> str:
    """Digest of the step that made a model, from its manifest; a plain folder is known by its configuration and the sizes
    of its files."""
    manifest = path / "artifact.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["digest"])
    from gemma_ops import digest

    sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    config = path / "config.json"
    return digest.of_json([sizes, digest.of_file(config) if config.is_file() else ""])


def open_target(
    name: str, machine: MachineConfig, *, base: Path | None, tuned: Path | None, quantized: Path | None
) -> Target:
    """The target of that name. Raises ConfigError when this run has no model for it."""
    if name in QUANTIZED:
        if quantized is None or (tuned or base) is None:
            raise _absent(name, "quantize")
        tokenizer = tuned or base
        assert tokenizer is not None
        return Quantized(name, quantized, tokenizer, machine)
    path = {"base": base, "tuned": tuned}.get(name)
    if name not in ("base", "tuned"):
        raise ConfigError(
            f"evaluate.targets: there is no target {name!r}", f"use some of: base, tuned, {', '.join(QUANTIZED)}"
        )
    if path is None:
        raise _absent(name, "train" if name == "tuned" else "fetch")
    return Checkpoint(name, path, machine)


def _absent(name: str, step: str) -> ConfigError:
    return ConfigError(
        f"evaluate.targets names {name}, and this run has no model for it (its recipe runs no `{step}` step before)",
        "take it out: --set 'evaluate.targets=[base]', or use a recipe that makes it",
    )
