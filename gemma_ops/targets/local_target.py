"""Targets on this machine: a checkpoint run by transformers, and a GGUF file run by llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from gemma_ops.answer import Answer, Prompt
from gemma_ops.config import MachineConfig
from gemma_ops.data.encoded import Encoded
from gemma_ops.data.parts import media_of
from gemma_ops.errors import ConfigError
from gemma_ops.family.formats import GGUF, GGUF_FILE
from gemma_ops.family.media import Senses
from gemma_ops.privacy.classes import HERE, learned_class
from gemma_ops.runs import digest
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.spec import TargetSpec
from gemma_ops.targets.structured import in_words
from gemma_ops.targets.target import LOCAL, AskingMode, EnginePace

_USUAL = AskingMode()


class CheckpointTarget:
    """A Hugging Face checkpoint, answered by transformers in bf16."""

    sees = LOCAL
    place = HERE
    lockstep = True

    def __init__(
        self,
        name: str,
        path: Path,
        machine: MachineConfig,
        *,
        family: str = "gemma",
        asked: AskingMode = _USUAL,
        changed: Path | None = None,
    ) -> None:
        """Prepare the target; `changed` is a folder with an adapter, or with changed tensors, that is put on the
        checkpoint."""
        self.name = name
        self.identity = asked.identity(local_identity(path))
        self._asked = asked
        self.learned = learned_class(path)
        self.family = family
        self._path = path
        self._machine = machine
        self._changed = changed
        self._model: Any = None
        self._towers = False

    @property
    def reads(self) -> frozenset[str]:
        """Return `text`, and what the checkpoint has towers for."""
        from gemma_ops.modeling.checkpoint_source import checkpoint

        return frozenset({"text", *Senses.read(checkpoint(self._path)).kinds})

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Iterator[list[Answer]]:
        """Load on first use, then answer greedily, one forward batch per given batch."""
        from gemma_ops.modeling import generate, load
        from gemma_ops.modeling.checkpoint_source import checkpoint
        from gemma_ops.modeling.threads import settle_threads

        folder = checkpoint(self._path)
        encode = self._encode
        shows = any(prompt.media for batch in batches for prompt in batch)
        if self._model is None or (shows and not self._towers):
            self._model = None  # text alone needs no towers; the first question that shows something brings them
            settle_threads(folder, self._machine.workers)
            towers = shows or self._changed is not None  # an adapter may reach into them
            self._model = load.load_model(folder, device=load.pick_device(self._machine.device, folder), towers=towers)
            self._towers = towers
            if self._changed:
                self._model = load.put_on(self._model, self._changed, folder)
        for batch in batches:
            prompts = [encode.encoded(prompt, schema) for prompt in batch]
            seen = [encode.seen(prompt, asked) for prompt, asked in zip(batch, prompts, strict=True)]
            yield list(
                generate.answer_prompts(
                    self._model,
                    encode.tokenizer,
                    [asked.ids for asked in prompts],
                    seen=seen,
                    max_new_tokens=max_new_tokens + encode.thoughts,
                    batch_size=len(prompts),
                )
            )

    def asks(self, prompt: Prompt, max_new_tokens: int) -> tuple[list[int], int]:
        """Return the token ids of a prompt of text, and how many tokens its reply may take, thoughts included."""
        return self._encode(prompt), max_new_tokens + self._encode.thoughts

    @cached_property
    def _encode(self) -> Encoder:
        from gemma_ops.modeling.checkpoint_source import checkpoint

        return Encoder(checkpoint(self._path), self._asked)

    @property
    def pace(self) -> EnginePace:
        """Return the device that the checkpoint answers on: where it is loaded, else where it will be."""
        from gemma_ops.modeling import load
        from gemma_ops.modeling.checkpoint_source import checkpoint

        if self._model is not None:
            device = str(self._model.device.type)
        else:
            device = load.pick_device(self._machine.device, checkpoint(self._path))
        return EnginePace(*load.engine_facts(device))

    def close(self) -> None:
        self._model = None


class Quantized:
    """A GGUF file, answered by llama.cpp. The prompt's tokens come from the checkpoint's tokenizer, so that every
    target reads the same ids."""

    sees = LOCAL
    place = HERE
    lockstep = True
    family = "gemma"

    def __init__(
        self,
        name: str,
        file: Path,
        tokenizer: Path,
        machine: MachineConfig,
        *,
        made_by: Path | None = None,
        asked: AskingMode = _USUAL,
    ) -> None:
        """Prepare the target; `made_by` is the artifact the file belongs to, whose digest is the identity."""
        self.name = name
        self.identity = asked.identity(local_identity(made_by or file))
        self._asked = asked
        self.learned = learned_class(file)
        self._file = file
        self._tokenizer = tokenizer
        self._machine = machine

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Iterator[list[Answer]]:
        """Open with room for the longest prompt and its answer, then answer batch by batch."""
        from gemma_ops.modeling.llamacpp import GGUF

        encode = self._encode
        limit = max_new_tokens + encode.thoughts
        prompts = [encode(prompt, schema) for batch in batches for prompt in batch]
        if not prompts:
            return
        size, longest = max(map(len, batches)), max(map(len, prompts))
        with GGUF(self._file, threads=self._machine.workers, context=longest + limit + 8) as model:
            # Loading happens on the first request; it must not count as the first answer's time.
            list(model.answer(prompts[:size], encode.tokenizer, max_new_tokens=1, batch_size=size))
            replies = model.answer(prompts, encode.tokenizer, max_new_tokens=limit, batch_size=size, schema=schema)
            for batch in batches:
                yield list(islice(replies, len(batch)))

    def asks(self, prompt: Prompt, max_new_tokens: int) -> tuple[list[int], int]:
        """Return the token ids of a prompt, and how many tokens its reply may take, thoughts included."""
        return self._encode(prompt), max_new_tokens + self._encode.thoughts

    @cached_property
    def _encode(self) -> Encoder:
        from gemma_ops.modeling.checkpoint_source import checkpoint

        return Encoder(checkpoint(self._tokenizer), self._asked)

    @property
    def pace(self) -> EnginePace:
        """Return the CPU as device, since llama.cpp computes there."""
        from gemma_ops.modeling.llamacpp import threads_for

        return EnginePace("CPU", threads_for(self._file, self._machine.workers))

    def close(self) -> None:
        """Do nothing: the file is open only while it answers."""


class Encoder:
    """Encoder of conversations into token ids, with a checkpoint's tokenizer and its own chat template."""

    def __init__(self, folder: Path, asked: AskingMode = _USUAL, senses: Senses | None = None) -> None:
        """Load the tokenizer; `senses` are the media that the model takes, where `folder` doesn't say it."""
        from gemma_ops.data import published
        from gemma_ops.modeling.load import load_tokenizer

        self.tokenizer = load_tokenizer(folder)
        self.thoughts = asked.thought_tokens if asked.thinking else 0
        """Tokens that a reply may take beyond its answer."""
        self._asked = asked
        self._template = published.template_of(folder)
        self._folder, self._senses = folder, senses
        self._perceiver: Any = None

    def __call__(self, prompt: Prompt, schema: dict[str, Any] | None = None) -> list[int]:
        return self.encoded(prompt, schema).ids

    def encoded(self, prompt: Prompt, schema: dict[str, Any] | None = None) -> Encoded:
        """Return the prompt as tokens, with the places of its images and sounds."""
        from gemma_ops.data import chat

        messages = list(prompt.messages) if schema is None else in_words(prompt.messages, schema)
        senses = self.senses if prompt.media else None
        return chat.prompt(
            self.tokenizer,
            messages,
            list(prompt.tools) or None,
            template=self._template,
            thinking=self._asked.thinking,
            senses=senses,
            control=self._asked.control,
        )

    @cached_property
    def senses(self) -> Senses:
        """Return the media that the model takes."""
        return self._senses or Senses.read(self._folder)

    def seen(self, prompt: Prompt, encoded: Encoded) -> Any:
        """Return the prompt's images and sounds as tensors (`modeling.media.Seen`), None where there are none."""
        from gemma_ops.modeling.media_inputs import Perceiver

        if not prompt.media:
            return None
        self._perceiver = self._perceiver or Perceiver(self._folder)
        return self._perceiver.see(media_of(prompt.messages), prompt.media, encoded.types())


def local_identity(path: Path) -> str:
    """Return the digest of the step that made a model, from its manifest; a plain folder is known by its configuration
    and the sizes of its files, a plain file by its content."""
    if path.is_file():
        return digest.of_file(path)
    manifest = path / "artifact.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text(encoding="utf-8"))["digest"])
    sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir()) if file.is_file()}
    config = path / "config.json"
    return digest.of_json([sizes, digest.of_file(config) if config.is_file() else ""])


def open_local(
    spec: TargetSpec,
    machine: MachineConfig,
    models: RunModels,
    *,
    asked: AskingMode = _USUAL,
) -> CheckpointTarget | Quantized:
    """Open the local target of a specification. Raises ConfigError when this run has no model for it."""
    if spec.kind == "quantized":
        tokenizer, quantized = models.tuned or models.base, models.quantized
        if quantized is None or tokenizer is None:
            raise _absent(spec.name, "quantize")
        return Quantized(spec.name, _made(spec.name, quantized), tokenizer, machine, made_by=quantized, asked=asked)
    if spec.kind == "gguf":
        file, folder = Path(spec.place).expanduser(), Path(spec.tokenizer).expanduser()
        if not file.is_file():
            raise ConfigError(f"target {spec.name}: {file} does not exist", "correct the path after `gguf:`")
        return Quantized(spec.name, file, _folder(spec.name, folder), machine, asked=asked)
    if spec.kind == "folder":
        return CheckpointTarget(spec.name, _folder(spec.name, Path(spec.place).expanduser()), machine, asked=asked)
    path = models.base if spec.kind == "base" else models.tuned
    if path is None:
        raise _absent(spec.name, "train" if spec.kind == "tuned" else "fetch")
    return CheckpointTarget(spec.name, path, machine, asked=asked)


def _made(name: str, quantized: Path) -> Path:
    file = quantized / GGUF[name].path
    if not file.is_file():
        made = sorted(folder.name for folder in quantized.iterdir() if (folder / GGUF_FILE).is_file())
        raise ConfigError(
            f"target {name}: {file} does not exist",
            f"add {name} to quantize.formats, or evaluate one of: {', '.join(made) or 'none'}",
        )
    return file


def _folder(name: str, folder: Path) -> Path:
    from gemma_ops.modeling.checkpoint_source import checkpoint

    if not (checkpoint(folder) / "config.json").is_file():
        raise ConfigError(f"target {name}: {folder} holds no checkpoint", "give a folder with config.json and weights")
    return folder


def _absent(name: str, step: str) -> ConfigError:
    return ConfigError(
        f"target {name}: this run has no model for it (its recipe runs no `{step}` step before)",
        "take it out: --set 'evaluate.targets=[base]', or use a recipe that makes it",
    )
