"""A GGUF file run by llama.cpp: greedy answers from token ids (`llamacpp_library` gives logits).

Rides on `xllamacpp` (llama.cpp's own server, in ready wheels). Prompts go in as ids and replies come out as ids, so
that a quantized file sees exactly the tokens the transformers model sees, whatever llama.cpp's template or tokenizer
would have made of the text.

Prompts of one batch are handed over in one request and decoded in lock-step, one slot each: the same prompts with the
same batch size give the same answers. The server insists on an address; it gets a socket file in a private folder, so
no port is opened.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gemma_ops.answer import Answer, End
from gemma_ops.errors import DataError, MachineError, ModelError
from gemma_ops.modeling.closing import Closing
from gemma_ops.modeling.generate import STOPS, read_reply
from gemma_ops.modeling.llamacpp_server import ServerSettings, asked_server, open_server, tokenized
from gemma_ops.modeling.llamacpp_shown import ShownPrompt, marked_prompt
from gemma_ops.modeling.thoughts import left_open
from gemma_ops.modeling.threads import SMALL

_SLACK = 8  # tokens of context beyond prompt and reply
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 1, "samplers": ["top_k"], "seed": 0}
# White space is free in JSON, and a small model that may write any writes nothing else.
SPACING: dict[str, Any] = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
VISIBLE = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>')
"""Special tokens that llama.cpp prints, for clients that parse them; it hides the others. An `Answer` holds none."""


def threads_for(path: Path, threads: int | None) -> int:
    """Return the CPU threads that a file is run with: one for a small file, else as many as are asked for, or all
    cores."""
    return 1 if path.stat().st_size < SMALL else threads or os.cpu_count() or 1


class GGUF(Closing):
    """A GGUF file, loaded when first used; a context manager that frees it.

    `threads`: CPU threads, all cores when None; files under 100 MB get one (a second one makes a busy machine many
    times slower: llama.cpp's threads spin while they wait). `context`: tokens a prompt and its reply may take together;
    None takes what the longest of each call needs. `projector` is the mmproj file for prompts that show something, and
    `image_tokens` the most soft tokens of an image. `drafter` is the GGUF file of a drafter, which says `drafted`
    tokens before the model checks them. Raises MachineError when `xllamacpp` is not installed, ModelError when a file
    is absent or llama.cpp refuses it.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        context: int | None = None,
        projector: Path | None = None,
        image_tokens: int = 0,
        drafter: Path | None = None,
        drafted: int = 0,
    ) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise MachineError(
                "running GGUF files needs the package xllamacpp, which is not installed",
                "pip install 'gemma-ops[gguf]'",
            ) from error
        if not path.is_file():
            raise ModelError(f"{path} does not exist", "run the step `quantize` first, or correct the path")
        self.path = path
        self._library: Any = xllamacpp
        self._threads = threads_for(path, threads)
        self._fixed_context = context
        self._projector, self._image_tokens = projector, image_tokens
        self._drafter, self._drafted = drafter, drafted
        self._marker = ""
        self._server: Any = None
        self._room = (0, 0)  # context per slot, slots
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Free the model; it is loaded again when used again."""
        self._server = None
        self._room = (0, 0)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def answer(
        self,
        prompts: Sequence[list[int] | ShownPrompt],
        tokenizer: Any,
        *,
        max_new_tokens: int,
        batch_size: int,
        schema: dict[str, Any] | None = None,
    ) -> Iterator[Answer]:
        """Answer prompts of token ids, greedily, yielding in their order; those that show something need the towers.

        A reply ends with `stop` at `<turn|>`, `<eos>` or `<|tool_response>`, with `length` when cut at
        `max_new_tokens`, with `error` when llama.cpp refuses the prompt (it is longer than a fixed context allows) or
        would be asked with other tokens than the prompt's.
        The reply's tokens are read with the checkpoint's `tokenizer`, as `generate.answer` reads them.

        `schema`, a JSON schema, is enforced while decoding, so a reply that ended with `stop` follows it. llama.cpp
        drops a schema it can't read without a word: check what comes back.
        """
        stops = {tokenizer.token_to_id(token) for token in STOPS}
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            began = time.perf_counter()
            replies, refused = self._asked(batch, tokenizer, max_new_tokens, min(batch_size, len(prompts)), schema)
            wall = time.perf_counter() - began
            seconds = round(wall / len(batch), 4)
            # Slots begin together and the one that wrote longest ends last, so what it did not spend on writing is the
            # time to the first token.
            writing = max((reply["timings"]["predicted_ms"] for reply in replies if reply), default=0.0) / 1000
            first = round(max(wall - writing, 0.0), 4)
            for place, (given, reply) in enumerate(zip(batch, replies, strict=True)):
                prompt = _ids(given)
                if reply is None:
                    why = refused.get(place, "llama.cpp refused the prompt")
                    yield Answer("", "error", len(prompt), 0, seconds, why)
                else:
                    end: End = "stop" if reply["stop_type"] == "eos" else "length"
                    said = read_reply(tokenizer, reply["tokens"], stops, opened=left_open(tokenizer, prompt))
                    count = reply["tokens_predicted"] - said.thought_tokens
                    yield Answer(
                        said.text, end, len(prompt), count, seconds, first_seconds=first,
                        thought_tokens=said.thought_tokens, thought=said.thought,
                    )  # fmt: skip

    def continuation(self, prompt: list[int], count: int) -> list[int]:
        """Return the ids of the greedy continuation of a prompt, up to `count` tokens, the one that ended it
        included."""
        reply = self._replies([prompt], len(prompt) + count, count, slots=1)[0]
        if reply is None:
            raise ModelError(f"{self.path} refuses a prompt of {len(prompt)} tokens", "give a larger context")
        return list(reply["tokens"])

    def tokenize(self, text: str) -> list[int]:
        """Return the ids that llama.cpp's own tokenizer gives a text, special tokens recognised, without a `<bos>` put
        before it."""
        if self._server is None:
            self._serve(64, 1)
        return tokenized(self._socket, text)

    def _asked(
        self,
        batch: Sequence[list[int] | ShownPrompt],
        tokenizer: Any,
        count: int,
        slots: int,
        schema: dict[str, Any] | None,
    ) -> tuple[list[dict[str, Any] | None], dict[int, str]]:
        """Return one reply per prompt, None where it was refused, and why by its place in the batch where that is
        known."""
        room = max(len(_ids(given)) for given in batch) + count
        self._serve(room, slots)
        asked: dict[int, list[int] | dict[str, Any]] = {}
        refused: dict[int, str] = {}
        for place, given in enumerate(batch):
            try:
                asked[place] = (
                    marked_prompt(given, tokenizer, self._marker, self.tokenize)
                    if isinstance(given, ShownPrompt)
                    else given
                )
            except DataError as error:
                refused[place] = error.what
        replies: list[dict[str, Any] | None] = [None] * len(batch)
        found = self._replies(list(asked.values()), room, count, slots, schema) if asked else []
        for place, reply in zip(asked, found, strict=True):
            tokens = len(_ids(batch[place]))
            if reply and reply["tokens_evaluated"] != tokens:
                refused[place] = f"llama.cpp read {reply['tokens_evaluated']} tokens, and the prompt has {tokens}"
            else:
                replies[place] = reply
        return replies, refused

    def _replies(
        self,
        batch: Sequence[list[int] | dict[str, Any]],
        room: int,
        count: int,
        slots: int,
        schema: dict[str, Any] | None = None,
    ) -> list[dict[str, Any] | None]:
        """Return one reply per prompt; None where llama.cpp refused. `room`: tokens of the longest prompt and its
        reply."""
        self._serve(room, slots)
        body = {"prompt": batch, "n_predict": count, "return_tokens": True, "cache_prompt": False, **GREEDY}
        if schema is not None:
            body["json_schema"] = {**schema, **SPACING}
        reply = asked_server(self._socket, "POST", "/completion", body)
        if isinstance(reply, dict) and "error" in reply:
            if len(batch) == 1:
                return [None]
            return [self._replies([prompt], room, count, slots, schema)[0] for prompt in batch]
        replies: list[dict[str, Any] | None] = reply if isinstance(reply, list) else [reply]
        return sorted(replies, key=lambda one: int(one["index"]) if one else 0)

    @property
    def _socket(self) -> str:
        return str(self._server.listening_address).removeprefix("unix://")

    def _serve(self, tokens: int, slots: int) -> Any:
        """Return the running server, restarted when it has too little room for `tokens` in each of `slots`."""
        context = self._fixed_context or tokens + _SLACK
        if self._server is not None and context <= self._room[0] and slots == self._room[1]:
            return self._server
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="gemma-ops-")
        settings = ServerSettings(
            str(self.path), str(Path(self._folder.name) / "llama.sock"), slots, context, self._threads,
            projector=str(self._projector or ""), image_tokens=self._image_tokens, drafter=str(self._drafter or ""),
            drafted=self._drafted,
        )  # fmt: skip
        try:
            self._server = open_server(self._library, settings)
        except RuntimeError as error:
            self.close()
            raise ModelError(
                f"llama.cpp can't load {self.path}: {error}", "export it again; `gemma-ops doctor` shows the versions"
            ) from error
        self._room = (context, slots)
        if self._projector:
            self._marker = str(asked_server(self._socket, "GET", "/props")["media_marker"])
        return self._server


def _ids(prompt: list[int] | ShownPrompt) -> list[int]:
    return prompt.ids if isinstance(prompt, ShownPrompt) else prompt
