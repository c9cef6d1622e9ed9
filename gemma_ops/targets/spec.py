"""Names of targets in configurations, and their parts.

    base, tuned                           the checkpoint this run started from, and the one it made
    bf16, q8_0, q4_0                      a quantized file of this run
    champion                              the present champion of the registered model, if there is one
    FOLDER                                a checkpoint folder, known by a `/` in it
    gguf:FILE@FOLDER                      any GGUF file, with the checkpoint folder whose tokenizer it takes
    gemini:MODEL[@THINKING]               Gemini, for example gemini:gemini-3.8-flash@low
    openai:URL#MODEL[@FAMILY]             an OpenAI-compatible endpoint, for example openai:http://localhost:8000/v1#qwen3

A name says enough to know the lineage and the place of a target, so plans and lineage checks open nothing.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from gemma_ops.config.policy import CHAMPION
from gemma_ops.errors import ConfigError
from gemma_ops.family import formats

QUANTIZED = tuple(formats.QUANTIZED)
"""Names of targets that are files of the step `quantize`."""
OWN = ("base", "tuned", *QUANTIZED, CHAMPION)
"""Names of targets that are one word: those that a run makes itself, and the champion that it pulls."""
Kind = Literal["base", "tuned", "quantized", "champion", "folder", "gguf", "gemini", "openai"]
THINKING = ("minimal", "low", "medium", "high", "xhigh")
_FAMILY = re.compile(
    r"(?<![a-z])(gemma|gemini|llama|qwen|mistral|mixtral|phi|gpt|claude|deepseek|olmo|granite)(?![a-z])"
)
_FORMS = (
    f"base, tuned, {', '.join(QUANTIZED)}, champion, gemini:MODEL, openai:URL#MODEL, gguf:FILE@FOLDER, or a "
    f"checkpoint folder"
)


@dataclass(frozen=True)
class TargetSpec:
    """A target's name, taken apart. `model` is the service's model id, `place` a path or URL."""

    name: str
    kind: Kind
    family: str
    model: str = ""
    place: str = ""
    thinking: str | None = None
    tokenizer: str = ""

    @property
    def local(self) -> bool:
        """True if it runs in this process."""
        return self.kind not in ("gemini", "openai")


def parse_target(name: str) -> TargetSpec:
    """Take a target's name apart. Raises ConfigError for what can't be one."""
    if name in ("base", "tuned"):
        return TargetSpec(name, "base" if name == "base" else "tuned", "gemma")
    if name in QUANTIZED:
        return TargetSpec(name, "quantized", "gemma")
    if name == CHAMPION:
        return TargetSpec(name, "champion", "gemma")
    kind, colon, rest = name.partition(":")
    if colon and kind == "gemini":
        return _gemini(name, rest)
    if colon and kind == "openai":
        return _openai(name, rest)
    if colon and kind == "gguf":
        file, at, folder = rest.rpartition("@")
        if not (file and at and folder):
            raise ConfigError(
                f"target {name!r} names no tokenizer",
                "write gguf:FILE@FOLDER, with the folder of the checkpoint the file was made from",
            )
        return TargetSpec(name, "gguf", "gemma", place=file, tokenizer=folder)
    if "/" in name and not colon:
        return TargetSpec(name, "folder", "gemma", place=name)
    close = difflib.get_close_matches(name, [*OWN, "gemini:", "openai:", "gguf:"], n=1)
    raise ConfigError(
        f"there is no target {name!r}" + (f"; did you mean {close[0]}?" if close else ""), f"use some of: {_FORMS}"
    )


def family_of(model: str) -> str:
    """Return the lineage as far as a model's name tells it; `unknown` otherwise."""
    found = _FAMILY.search(model.casefold())
    return found.group(1).replace("mixtral", "mistral") if found else "unknown"


def _gemini(name: str, rest: str) -> TargetSpec:
    model, _, thinking = rest.partition("@")
    if not model:
        raise ConfigError(
            f"target {name!r} names no model", "write gemini:MODEL, for example gemini:gemini-3.8-flash@low"
        )
    if thinking and thinking not in THINKING:
        raise ConfigError(
            f"target {name!r}: there is no thinking level {thinking!r}", f"use one of {', '.join(THINKING)}"
        )
    # The service also serves Gemma models, and those are kin to every other Gemma.
    family = "gemma" if model.startswith("gemma") else "gemini"
    return TargetSpec(name, "gemini", family, model=model, thinking=thinking or None)


def _openai(name: str, rest: str) -> TargetSpec:
    url, hash_mark, model = rest.partition("#")
    model, _, family = model.partition("@")
    if not url.startswith(("http://", "https://")) or not hash_mark or not model:
        raise ConfigError(
            f"target {name!r} is no endpoint with a model",
            "write openai:URL#MODEL, for example openai:http://localhost:8000/v1#gemma-4-31b-it",
        )
    return TargetSpec(name, "openai", family or family_of(model), model=model, place=url.rstrip("/"))
