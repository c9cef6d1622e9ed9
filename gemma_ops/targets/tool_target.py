"""A target that answers inside a tool's environment: what our own versions of the libraries can't run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from gemma_ops.answer import Answer, End, Prompt
from gemma_ops.config import MachineConfig
from gemma_ops.family.formats import EDGE, QuantizedFormat
from gemma_ops.privacy.classes import HERE, learned_class
from gemma_ops.targets.prompt_encoder import Encoder, local_identity
from gemma_ops.targets.target import LOCAL, TEXT, AskingMode, EnginePace

_USUAL = AskingMode()


class ToolTarget:
    """A checkpoint of compressed-tensors, or a file of LiteRT-LM. All prompts go to one job, and are answered
    greedily; their tokens come from the checkpoint's tokenizer, as for every other target."""

    sees = LOCAL
    place = HERE
    lockstep = False
    family = "gemma"
    reads = TEXT

    def __init__(
        self,
        name: str,
        form: QuantizedFormat,
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
        self.learned = learned_class(file)
        self._form, self._file, self._tokenizer, self._machine, self._asked = form, file, tokenizer, machine, asked

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Iterator[list[Answer]]:
        """Ask everything in one job, then yield batch by batch. A schema is asked for in words only."""
        prompts = [self._encode(prompt, schema) for batch in batches for prompt in batch]
        if not prompts:
            return
        replies = iter(self._replies(prompts, max_new_tokens + self._encode.thoughts))
        for batch in batches:
            yield [next(replies) for _ in batch]

    def asks(self, prompt: Prompt, max_new_tokens: int) -> tuple[list[int], int]:
        """Return the token ids of a prompt, and how many tokens its reply may take, thoughts included."""
        return self._encode(prompt), max_new_tokens + self._encode.thoughts

    def _replies(self, prompts: Sequence[list[int]], limit: int) -> Iterator[Answer]:
        from gemma_ops.modeling.generate import STOPS
        from gemma_ops.toolenvs.tool_job import run_tool_job
        from gemma_ops.toolenvs.tool_list import TOOLS

        tokenizer = self._encode.tokenizer
        edge = self._form.name in EDGE
        job, tool = ("answer_edge", "litert") if edge else ("answer_checkpoint", "llm-compressor")
        request = {
            "model": str((self._file if edge else self._file.parent).absolute()),
            "prompts": list(prompts), "limit": limit, "mixture": False,
            "texts": [tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts],
            "stops": [token for stop in STOPS if (token := tokenizer.token_to_id(stop)) is not None],
            "threads": self._machine.workers or 0,
        }  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="gemma-ops-") as folder:
            body = run_tool_job(TOOLS[tool], self._machine, job, request, Path(folder), what=f"target {self.name}")
        for ids, said in zip(prompts, body["answers"], strict=True):
            yield _answer(tokenizer, ids, said)

    @cached_property
    def _encode(self) -> Encoder:
        from gemma_ops.modeling.checkpoint_source import checkpoint

        return Encoder(checkpoint(self._tokenizer), self._asked)

    @property
    def pace(self) -> EnginePace:
        """Return the CPU as device: jobs of tools compute there."""
        return EnginePace("CPU", self._machine.workers)

    def close(self) -> None:
        """Do nothing: a job ends with its answers."""


def _answer(tokenizer: Any, prompt: list[int], said: Mapping[str, Any]) -> Answer:
    """Return the answer of a job: `ids`, or `text` where the runtime gives no ids, whether it `stopped`, `seconds`; or
    the `error` that it ended in."""
    from gemma_ops.modeling.generate import STOPS, read_reply
    from gemma_ops.modeling.thoughts import left_open

    if "error" in said:
        return Answer("", "error", len(prompt), 0, said["seconds"], said["error"])
    ids = said["ids"] if "ids" in said else tokenizer.encode(said["text"], add_special_tokens=False).ids
    stops = {tokenizer.token_to_id(token) for token in STOPS}
    read = read_reply(tokenizer, ids, stops, opened=left_open(tokenizer, prompt))
    end: End = "stop" if said["stopped"] else "length"
    return Answer(
        read.text, end, len(prompt), len(ids) - read.thought_tokens, round(said["seconds"], 4),
        thought_tokens=read.thought_tokens, thought=read.thought,
    )  # fmt: skip
