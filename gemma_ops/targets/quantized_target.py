"""A GGUF file as a target: run by llama.cpp, with the towers of the mmproj file beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from gemma_ops.answer import Answer, Prompt
from gemma_ops.config import MachineConfig
from gemma_ops.data.parts import media_of
from gemma_ops.family.media import Senses
from gemma_ops.modeling.llamacpp_shown import ShownPrompt, find_projector, shown_arrays
from gemma_ops.privacy.classes import HERE, learned_class
from gemma_ops.runs import digest
from gemma_ops.targets.prompt_encoder import Encoder, local_identity
from gemma_ops.targets.target import LOCAL, AskingMode, EnginePace

_USUAL = AskingMode()


class Quantized:
    """A GGUF file, answered by llama.cpp. The prompt's tokens come from the checkpoint's tokenizer, so that every
    target reads the same ids. With an mmproj file beside it, it sees and hears what that file says."""

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
        self._projector = find_projector(file)
        model = local_identity(made_by or file)
        if self._projector and made_by is None:
            model = digest.of_json([model, local_identity(self._projector)])
        self.identity = asked.identity(model)
        self._asked = asked
        self.learned = learned_class(file)
        self._file = file
        self._tokenizer = tokenizer
        self._machine = machine

    @cached_property
    def senses(self) -> Senses:
        """Return the media that it takes: those of the mmproj file."""
        return Senses.read(self._projector.parent) if self._projector else Senses()

    @property
    def reads(self) -> frozenset[str]:
        """Return `text`, and what the mmproj file has towers for."""
        return frozenset({"text", *self.senses.kinds})

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Iterator[list[Answer]]:
        """Open with room for the longest prompt and its answer, then answer batch by batch."""
        from gemma_ops.modeling.llamacpp import GGUF

        encode = self._encode
        limit = max_new_tokens + encode.thoughts
        prompts = [self._prompt(prompt, schema) for batch in batches for prompt in batch]
        if not prompts:
            return
        shows = any(prompt.media for batch in batches for prompt in batch)
        size, longest = max(map(len, batches)), max(map(len, prompts))
        with GGUF(
            self._file,
            threads=self._machine.workers,
            context=longest + limit + 8,
            projector=self._projector if shows else None,
            image_tokens=self.senses.image.budget if self.senses.image else 0,
        ) as model:
            # Loading happens on the first request; it must not count as the first answer's time.
            list(model.answer(prompts[:size], encode.tokenizer, max_new_tokens=1, batch_size=size))
            replies = model.answer(prompts, encode.tokenizer, max_new_tokens=limit, batch_size=size, schema=schema)
            for batch in batches:
                yield list(islice(replies, len(batch)))

    def _prompt(self, prompt: Prompt, schema: dict[str, Any] | None) -> list[int] | ShownPrompt:
        encoded = self._encode.encoded(prompt, schema)
        if not prompt.media:
            return encoded.ids
        shown = shown_arrays(media_of(prompt.messages), prompt.media, self.senses)
        return ShownPrompt(encoded.ids, encoded.types(), shown)

    def asks(self, prompt: Prompt, max_new_tokens: int) -> tuple[list[int], int]:
        """Return the token ids of a prompt, and how many tokens its reply may take, thoughts included."""
        return self._encode(prompt), max_new_tokens + self._encode.thoughts

    @cached_property
    def _encode(self) -> Encoder:
        from gemma_ops.modeling.checkpoint_source import checkpoint

        return Encoder(checkpoint(self._tokenizer), self._asked, self.senses)

    @property
    def pace(self) -> EnginePace:
        """Return the CPU as device, since llama.cpp computes there."""
        from gemma_ops.modeling.llamacpp import threads_for

        return EnginePace("CPU", threads_for(self._file, self._machine.workers))

    def close(self) -> None:
        """Do nothing: the file is open only while it answers."""
