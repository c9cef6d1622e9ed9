"""A checkpoint as a target: run by transformers, as it is or with an adapter on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gemma_ops.answer import Answer, Prompt
from gemma_ops.config import MachineConfig
from gemma_ops.family.media import Senses
from gemma_ops.privacy.classes import HERE, learned_class
from gemma_ops.targets.prompt_encoder import Encoder, local_identity
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
        made_by: Path | None = None,
    ) -> None:
        """Prepare the target; `changed` is a folder with an adapter, or with changed tensors, that is put on the
        checkpoint. `made_by` is the artifact it belongs to where it lies deeper in there, whose digest is the
        identity."""
        self.name = name
        self.identity = asked.identity(local_identity(made_by or path))
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
            device = load.pick_device(self._machine.device, folder)
            self._model = load.load_model(folder, device=device, towers=towers, packed=True)
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
