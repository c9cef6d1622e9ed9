"""The drafter that a source is served with: whether there is one, whether it pays, and where it lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import ServeConfig
from gemma_ops.errors import ConfigError
from gemma_ops.family.formats import PROJECTOR_SHELF, Format
from gemma_ops.serving.choosing import choose_engine
from gemma_ops.verdicts.drafter_record import DRAFTER, DRAFTER_GGUF, DRAFTER_SHELF, DRAFTER_WEIGHTS, DrafterRecord


@dataclass(frozen=True)
class ServedDrafter:
    """A drafter that an engine is started with."""

    place: Path
    """Its GGUF file for llama.cpp, the folder of its checkpoint for vLLM."""
    tokens: int
    """Tokens that it says before the model checks them."""

    @property
    def bytes(self) -> int:
        """Return the bytes of its weights."""
        files = [self.place] if self.place.is_file() else self.place.glob("*.safetensors")
        return sum(file.stat().st_size for file in files)

    @property
    def clustered(self) -> bool:
        """True for a checkpoint whose head reads the likeliest clusters of tokens only."""
        config = self.place / "config.json"
        return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("use_ordered_embeddings"))


@dataclass(frozen=True)
class DrafterChoice:
    """Whether a drafter is used, and why; no words where there is none to decide about."""

    drafter: ServedDrafter | None = None
    words: str = ""


NO_DRAFTER = DrafterChoice()


def is_drafter(name: str, engine: str) -> bool:
    """True if a file of a version is the drafter that an engine reads."""
    read = f"{DRAFTER_SHELF}/{DRAFTER_WEIGHTS}/" if engine == "vLLM" else f"{DRAFTER_SHELF}/{DRAFTER_GGUF}"
    return name.startswith(read)


def choose_drafter(
    folder: Path | None, form: str, sha256: str, settings: ServeConfig, *, shows: bool, asked: str
) -> DrafterChoice:
    """Return the drafter in a folder (of the step `draft`, or of a version) that a format is served with; `sha256` is
    that of its GGUF file, `shows` whether it sees or hears.

    Left to itself (`serve.drafter: auto`) it is used where it was measured with this very file and is recommended.
    Raises ConfigError where it is to be used and can't be, and DataError for a record that can't be read.
    """
    record = DrafterRecord.read(folder / DRAFTER) if folder and (folder / DRAFTER).is_file() else None
    if settings.drafter == "off" or (record is None and settings.drafter == "auto"):
        return DrafterChoice(words="off: serve.drafter" if record else "")
    if record is None or folder is None:
        raise ConfigError(f"serve.drafter is on, and {asked} has no drafter", "make one: --set draft.base=stock")
    engine = choose_engine(form, settings)
    why_not = _impossible(engine, form, shows=shows)
    if why_not and settings.drafter == "on":
        raise ConfigError(f"serve.drafter is on, and {why_not}", "set serve.drafter to off, or serve another format")
    why = why_not or _not_recommended(record, engine, form, sha256)
    if why and settings.drafter == "auto":
        return DrafterChoice(words=f"off: {why}")
    place = folder / (DRAFTER_WEIGHTS if engine == "vLLM" else DRAFTER_GGUF)
    because = "serve.drafter" if settings.drafter == "on" else record.files[form].reason
    return DrafterChoice(ServedDrafter(place, record.tokens), f"on, {record.tokens} tokens ahead: {because}")


def _impossible(engine: str, form: str, *, shows: bool) -> str:
    if engine == "transformers":
        return "transformers is served one token at a time"
    if engine == "vLLM" and form != "merged":
        return "vLLM takes a drafter for whole checkpoints"
    return "llama.cpp takes no drafter where images or sounds can be shown" if shows and engine == "llama.cpp" else ""


def _not_recommended(record: DrafterRecord, engine: str, form: str, sha256: str) -> str:
    file = record.files.get(form)
    if engine == "vLLM":
        return "it was measured in llama.cpp, and not in vLLM"
    if file is None:
        return f"it was not measured with {form}"
    if file.sha256 != sha256:
        return f"it was measured with another file of {form}"
    return "" if file.recommended else file.reason


def drafter_wanted(
    version: Path, form: Format, files: Mapping[str, Any], settings: ServeConfig, asked: str
) -> Callable[[str], bool]:
    """Return which files of a version in a folder its drafter needs; none where it isn't used. Its record lies there
    already."""
    sha256 = str(files[form.place]["sha256"]) if form.place in files else ""
    shows = any(name.startswith(f"{PROJECTOR_SHELF}/") for name in files)
    choice = choose_drafter(version / DRAFTER_SHELF, form.name, sha256, settings, shows=shows, asked=asked)
    engine = choose_engine(form.name, settings)
    return lambda name: choice.drafter is not None and is_drafter(name, engine)
