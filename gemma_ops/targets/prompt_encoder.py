"""Prompts of local models as token ids, and the identity of the models."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from gemma_ops.answer import Prompt
from gemma_ops.data.encoded import Encoded
from gemma_ops.data.parts import media_of
from gemma_ops.family.media import Senses
from gemma_ops.runs import digest
from gemma_ops.targets.structured import in_words
from gemma_ops.targets.target import AskingMode

_USUAL = AskingMode()


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
