"""The source of a server: weights with all that is needed to ask them as they were evaluated, and their memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import Privacy, ServeConfig
from gemma_ops.data.prompt_record import Prompting, read_prompting
from gemma_ops.errors import GateError
from gemma_ops.family import Shape
from gemma_ops.family.formats import DEFAULT_FORMATS, FORMATS, GGUF, PROJECTOR_SHELF, QUANTIZED, REFERENCE, Format
from gemma_ops.family.gguf_shape import gguf_shape
from gemma_ops.family.media import Senses
from gemma_ops.modeling.checkpoint_source import find_base, read_model_config
from gemma_ops.modeling.llamacpp_shown import find_projector
from gemma_ops.planning.serving_bytes import ServingBytes, checkpoint_bytes, checkpoint_serving_bytes, serving_bytes
from gemma_ops.privacy.classes import PRIVACY, class_of, learned_class, stricter
from gemma_ops.registry.fetching import Pulled
from gemma_ops.registry.points import INTEGRITY
from gemma_ops.runs import digest
from gemma_ops.serving.choosing import choose_engine
from gemma_ops.serving.served_drafter import NO_DRAFTER, DrafterChoice, choose_drafter
from gemma_ops.verdicts import CANARY, Verdict
from gemma_ops.verdicts.drafter_record import DRAFTER_SHELF

SERVED_FORMATS = (*DEFAULT_FORMATS, REFERENCE, *(name for name in FORMATS if name not in GGUF))
"""Order of formats where no verdict ranks them: GGUF files that are made by default, before the one they are compared
with, before checkpoints and what needs its base."""
CHECKPOINT = "tuned"
"""Target name of a merged checkpoint, or of what is put on the base."""


@dataclass(frozen=True)
class Source:
    """Weights with everything that is needed to ask them as they were evaluated."""

    asked: str
    model: str
    file: Path
    """The GGUF file, or the folder of a checkpoint, of an adapter, or of changed tensors."""
    tokenizer: Path
    format: str
    version: str = ""
    prompting: Prompting | None = None
    verdict: Verdict | None = None
    canary: Path | None = None
    """Answers of this model that the evaluation recorded."""
    sha256: str = ""
    base: Path | None = None
    """Checkpoint that `file` is put on, where that is an adapter or changed tensors."""
    drafting: DrafterChoice = NO_DRAFTER

    @property
    def target(self) -> str:
        """Return its target name in the evaluation."""
        return self.format if self.format in QUANTIZED else CHECKPOINT

    @property
    def projector(self) -> Path | None:
        """Return the mmproj file of a GGUF file; None where there is none."""
        return find_projector(self.file) if self.file.is_file() else None

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the sampling settings of `generation_config.json`."""
        path = self.tokenizer / "generation_config.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def answers_class(self) -> Privacy:
        """Return the privacy class of its answers: of what it learned, or what a person has released them to."""
        release = self.verdict.release if self.verdict else None
        to = class_of(release.to) if release and release.to else "local_only"
        learned = learned_class(self.file)
        if self.base:
            learned = stricter(learned, learned_class(self.base))
        return max(learned, to, key=PRIVACY.index)

    def gates(self) -> tuple[str, ...]:
        """Return what the verdict's gates said."""
        return tuple(f"{gate.outcome}: {gate.words}" for gate in self.verdict.gates) if self.verdict else ()


def memory_of(source: Source, settings: ServeConfig) -> ServingBytes:
    """Return what serving a source takes, in all replicas. Raises ModelError as `engine_memory` does."""
    return engine_memory(source, settings).times(settings.replicas)


def engine_memory(source: Source, settings: ServeConfig) -> ServingBytes:
    """Return what one engine of a source takes. Raises ModelError for a file that is no GGUF of Gemma 4, and for
    another model's checkpoint."""
    slots, context = settings.slots, settings.context
    if source.file.is_file():
        size, windowed = source.file.stat().st_size, settings.window_cache
        size += source.projector.stat().st_size if source.projector else 0
        size += source.drafting.drafter.bytes if source.drafting.drafter else 0
        return serving_bytes(
            gguf_shape(source.file), size, slots=slots, context=context, windowed=windowed, cache=settings.kv_cache
        )
    shape = Shape.from_config(read_model_config(source.base or source.file))
    added = sum(file.stat().st_size for file in source.file.glob("*.safetensors")) if source.base else 0
    sees = bool(Senses.read(source.base or source.file).kinds)
    weights = checkpoint_bytes(shape, towers=sees or source.base is not None) + added
    weights += source.drafting.drafter.bytes if source.drafting.drafter else 0
    engine = choose_engine(source.format, settings)
    return checkpoint_serving_bytes(shape, weights, slots=slots, context=context, engine=engine)


def is_weights(name: str, form: Format) -> bool:
    """True if a file of a version is one of a format's; the towers go with every GGUF file."""
    if form.name in GGUF:
        return name == form.place or name.startswith(f"{PROJECTOR_SHELF}/")
    return name.startswith(f"{form.shelf}/")


def source_of_version(
    place: Pulled, asked: str, subject: dict[str, Any], form: Format, verdict: Verdict | None, settings: ServeConfig
) -> Source:
    """Return what a version in a folder serves in a format; its files were compared with the manifest. Raises GateError
    for a file next to them that would be loaded too."""
    files, folder = subject["files"], place.folder
    _check_alone(folder, (form.shelf, "tokenizer", *([PROJECTOR_SHELF] if form.name in GGUF else [])), files)
    base = None if form.name in (*QUANTIZED, "merged") else find_base(subject["base"], asked)
    digests = {name: str(file["sha256"]) for name, file in files.items() if is_weights(name, form)}
    file = folder / (form.place if form.name in GGUF else form.shelf)
    drafting = choose_drafter(
        folder / DRAFTER_SHELF, form.name, digests.get(form.place, ""), settings,
        shows=find_projector(file) is not None, asked=asked,
    )  # fmt: skip
    if drafting.drafter:
        _check_alone(folder, (DRAFTER_SHELF,), files)
    return Source(
        asked, place.name, file, _tokenizer(folder, form.shelf, base), form.name, place.version,
        read_prompting(folder / form.shelf), verdict, folder / CANARY if CANARY in files else None,
        digests.get(form.place, "") if form.name in GGUF else digest.of_listing(digests), base, drafting,
    )  # fmt: skip


def _check_alone(folder: Path, shelves: Sequence[str], files: Mapping[str, Any]) -> None:
    """Raise GateError for a file on a version's shelves that its manifest doesn't list."""
    for shelf in shelves:
        for file in digest.files_in(folder / shelf):
            if (name := file.relative_to(folder).as_posix()) not in files:
                raise GateError(
                    f"{INTEGRITY}: {file} would be loaded too, and is no file of the version: its manifest doesn't "
                    f"list {name}",
                    "remove it, or pull the version into an empty folder",
                )


def _tokenizer(version: Path, shelf: str, base: Path | None) -> Path:
    """Return where a version's tokenizer lies: one registered without takes that of its checkpoint or its base."""
    own = version / "tokenizer"
    return own if (own / "tokenizer.json").is_file() else base or version / shelf
