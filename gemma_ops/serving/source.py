"""What is served: a version of the registry, what a run made, or files that lie anywhere.

NAME@ALIAS, NAME/VERSION     pulled from MLflow, every byte compared with the manifest
a run                        its quantized file, merged checkpoint or adapter, asked as the adapter was trained
a folder                     a version that `pull` laid there, compared with its manifest
FILE.gguf@FOLDER             the folder holds the tokenizer; nothing is known of a verdict
FOLDER                       a checkpoint
ADAPTER@FOLDER               the folder of an adapter, on the checkpoint in the other; a path with a `/` in it
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops import digest
from gemma_ops.config import MachineConfig, Privacy, ServeConfig
from gemma_ops.data.prompting import Prompting, read_prompting
from gemma_ops.errors import ConfigError, DataError, GateError
from gemma_ops.family import Shape
from gemma_ops.family.formats import DEFAULT_FORMATS, FORMATS, GGUF, REFERENCE, Format
from gemma_ops.family.gguf_shape import gguf_shape
from gemma_ops.family.media import Senses
from gemma_ops.modeling.source import checkpoint, find_base, read_config
from gemma_ops.planning.serving import ServingBytes, checkpoint_bytes, checkpoint_serving_bytes, serving_bytes
from gemma_ops.privacy import PRIVACY, class_of, learned_class, stricter
from gemma_ops.registry.fetching import Pulled, is_version, pull_version
from gemma_ops.registry.points import INTEGRITY
from gemma_ops.serving.choosing import choose_engine, choose_format
from gemma_ops.verdicts import CANARY, VERDICT, Verdict

SERVED_FORMATS = (*DEFAULT_FORMATS, REFERENCE, *(name for name in FORMATS if name not in GGUF))
"""Where no verdict tells them apart: GGUF files that are made where nothing is said, before the one they are compared
with, before checkpoints and what needs its base."""
_CHECKPOINT = "tuned"
"""The target that a merged checkpoint, or what is put on the base, answers as."""


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
    """What the evaluation recorded of this model's answers."""
    sha256: str = ""
    base: Path | None = None
    """The checkpoint that `file` is put on, where that is an adapter or changed tensors."""

    @property
    def target(self) -> str:
        """What its evaluation calls it."""
        return self.format if self.format in GGUF else _CHECKPOINT

    @property
    def defaults(self) -> dict[str, Any]:
        """Sampling settings of `generation_config.json`."""
        path = self.tokenizer / "generation_config.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def answers_class(self) -> Privacy:
        """The privacy class of its answers: of what it learned, or what a person has released them to."""
        release = self.verdict.release if self.verdict else None
        to = class_of(release.to) if release and release.to else "local_only"
        learned = learned_class(self.file)
        if self.base:
            learned = stricter(learned, learned_class(self.base))
        return max(learned, to, key=PRIVACY.index)

    def gates(self) -> tuple[str, ...]:
        """What the verdict's gates said."""
        return tuple(f"{gate.outcome}: {gate.words}" for gate in self.verdict.gates) if self.verdict else ()


def open_source(asked: str, machine: MachineConfig, settings: ServeConfig) -> Source:
    """Find what is asked for. Raises ConfigError for a source that is none or lacks the format, and what pulling
    raises."""
    from gemma_ops.serving.copied import is_copy, open_copy

    file, _, folder = asked.partition("@")
    if file.endswith(".gguf"):
        return _of_file(Path(file).expanduser(), Path(folder).expanduser() if folder else None, asked)
    run, path = Path(machine.runs) / asked, Path(asked).expanduser()
    if is_copy(path):
        return open_copy(path, settings, machine.trusted_keys)
    if not path.is_absolute() and run.is_dir():
        return _of_run(run, asked, settings)
    if is_version(asked):
        return _of_version(asked, machine, settings)
    if folder and (Path(file).expanduser() / FORMATS["adapter"].file).is_file():
        return _of_adapter(Path(file).expanduser(), Path(folder).expanduser(), asked)
    if (checkpoint(path) / "config.json").is_file():
        return _of_folder(path, asked)
    raise ConfigError(
        f"{asked!r} is nothing that can be served: no run in {machine.runs}, no NAME@ALIAS, no NAME/VERSION, "
        "no folder that `pull` made, no GGUF file, no checkpoint",
        "name a run (gemma-ops show NAME lists what it made), a version (NAME@champion), FILE.gguf@FOLDER, or the "
        "folder of a checkpoint",
    )


def memory_of(source: Source, settings: ServeConfig) -> ServingBytes:
    """What serving a source takes, in all replicas. Raises ModelError as `engine_memory` does."""
    return engine_memory(source, settings).times(settings.replicas)


def engine_memory(source: Source, settings: ServeConfig) -> ServingBytes:
    """What one engine of a source takes. Raises ModelError for a file that is no GGUF of Gemma 4, and for another
    model's checkpoint."""
    slots, context = settings.slots, settings.context
    if source.file.is_file():
        size, windowed = source.file.stat().st_size, settings.window_cache
        return serving_bytes(gguf_shape(source.file), size, slots=slots, context=context, windowed=windowed)
    shape = Shape.from_config(read_config(source.base or source.file))
    added = sum(file.stat().st_size for file in source.file.glob("*.safetensors")) if source.base else 0
    sees = bool(Senses.read(source.base or source.file).kinds)
    weights = checkpoint_bytes(shape, towers=sees or source.base is not None) + added
    engine = choose_engine(source.format, settings)
    return checkpoint_serving_bytes(shape, weights, slots=slots, context=context, engine=engine)


def _of_file(file: Path, folder: Path | None, asked: str) -> Source:
    if not file.is_file():
        raise ConfigError(f"{file} does not exist", "correct the path")
    tokenizer = folder or file.parent
    if not (tokenizer / "tokenizer.json").is_file():
        raise ConfigError(
            f"{tokenizer} holds no tokenizer.json", "say where it is: FILE.gguf@FOLDER, the checkpoint's folder"
        )
    return Source(
        asked, file.stem, file, tokenizer, "", prompting=read_prompting(file.parent), sha256=digest.of_file(file)
    )


def _of_folder(folder: Path, asked: str) -> Source:
    weights = checkpoint(folder)
    return Source(
        asked, folder.resolve().name, weights, weights, "merged", prompting=read_prompting(folder),
        sha256=_folder_digest(weights),
    )  # fmt: skip


def _of_adapter(folder: Path, base: Path, asked: str) -> Source:
    weights = checkpoint(base)
    if not (weights / "config.json").is_file():
        raise ConfigError(f"{base} holds no checkpoint", "say where the adapter's base is: ADAPTER@FOLDER")
    return Source(
        asked, folder.resolve().name, folder, weights, "adapter", prompting=read_prompting(folder),
        sha256=_folder_digest(folder), base=weights,
    )  # fmt: skip


def _of_run(run: Path, asked: str, settings: ServeConfig) -> Source:
    verdict = _verdict(run / "evaluate" / VERDICT)
    made = [name for name in SERVED_FORMATS if (run / FORMATS[name].step / FORMATS[name].path).is_file()]
    form = FORMATS[choose_format(settings, made, verdict, asked)]
    step, base = run / form.step, run / "fetch"
    home = next((found for found in (run / "merge", base) if (found / "artifact.json").is_file()), None)
    if home is None:
        raise DataError(f"{run} holds no model", "make the run's first steps: gemma-ops run CONFIG")
    file = step / form.path if form.name in GGUF else step / form.made
    record = json.loads((step / "artifact.json").read_text(encoding="utf-8"))
    sha256 = _unchanged(step, form.path if form.name in GGUF else f"{form.made}/", record["files"])
    answered = verdict.targets.get(form.name if form.name in GGUF else _CHECKPOINT) if verdict else None
    stale = answered and answered.sha256 not in (None, sha256)
    if form.name == "merged":
        stale = answered and answered.artifact not in (None, record["digest"])
    if stale:
        raise GateError(
            f"the verdict of {asked} is about another file of {form.name} than the run holds now",
            "evaluate it: gemma-ops evaluate CONFIG --redo evaluate",
        )
    canary, whole = run / "evaluate" / CANARY, form.name in (*GGUF, "merged")
    return Source(
        asked, run.name, file, checkpoint(home if whole else base), form.name,
        prompting=read_prompting(file if file.is_dir() else file.parent), verdict=verdict,
        canary=canary if canary.is_file() else None, sha256=sha256, base=None if whole else checkpoint(base),
    )  # fmt: skip


def _of_version(asked: str, machine: MachineConfig, settings: ServeConfig) -> Source:
    small = pull_version(machine, asked, wanted=lambda name: not name.endswith((".gguf", ".safetensors")))
    subject = small.manifest["subject"]
    files = subject["files"]
    verdict = _verdict(small.folder / VERDICT)
    made = [name for name in SERVED_FORMATS if FORMATS[name].place in files]
    form = FORMATS[choose_format(settings, made, verdict, asked)]
    whole = pull_version(machine, f"{small.name}/{small.version}", wanted=lambda name: is_weights(name, form))
    return source_of_version(whole, asked, subject, form, verdict)


def is_weights(name: str, form: Format) -> bool:
    """Whether a file of a version is one of a format's."""
    return name == form.place if form.name in GGUF else name.startswith(f"{form.shelf}/")


def source_of_version(
    place: Pulled, asked: str, subject: dict[str, Any], form: Format, verdict: Verdict | None
) -> Source:
    """What a version in a folder serves in a format; its files were compared with the manifest. Raises GateError for a
    file beside them that would be loaded too."""
    files, folder = subject["files"], place.folder
    _check_alone(folder, (form.shelf, "tokenizer"), files)
    base = None if form.name in (*GGUF, "merged") else find_base(subject["base"], asked)
    digests = {name: str(file["sha256"]) for name, file in files.items() if is_weights(name, form)}
    file = folder / (form.place if form.name in GGUF else form.shelf)
    return Source(
        asked, place.name, file, _tokenizer(folder, form.shelf, base), form.name, place.version,
        read_prompting(folder / form.shelf), verdict, folder / CANARY if CANARY in files else None,
        digests.get(form.place, "") if form.name in GGUF else digest.of_listing(digests), base,
    )  # fmt: skip


def _check_alone(folder: Path, shelves: Sequence[str], files: Mapping[str, Any]) -> None:
    """Raise GateError for a file on a version's shelves that its manifest doesn't list."""
    for shelf in shelves:
        for file in digest.files_in(folder / shelf):
            if (name := file.relative_to(folder).as_posix()) not in files:
                raise GateError(
                    f"{INTEGRITY}: {file} would be loaded too, and is no file of the version: its manifest doesn't list {name}",
                    "remove it, or pull the version into an empty folder",
                )


def _tokenizer(version: Path, shelf: str, base: Path | None) -> Path:
    """Where a version's tokenizer lies: one registered without takes that of its checkpoint or its base."""
    own = version / "tokenizer"
    return own if (own / "tokenizer.json").is_file() else base or version / shelf


def _unchanged(step: Path, what: str, made: dict[str, dict[str, Any]]) -> str:
    """The SHA-256 of a step's file, or the digest of those below a folder (`what` ends with `/`). Raises GateError
    where one is not what the step left, and for one that it didn't leave: a further shard would be loaded too."""
    named = {name: str(facts["sha256"]) for name, facts in made.items() if name == what or name.startswith(what)}
    there = digest.files_in(step / what) if what.endswith("/") else []
    for name in named.keys() | {file.relative_to(step).as_posix() for file in there}:
        if not (step / name).is_file() or digest.of_file(step / name) != named.get(name):
            raise GateError(
                f"{step / name} was changed since it was made",
                f"make it again: gemma-ops run CONFIG --redo {step.name}",
            )
    return digest.of_listing(named) if what.endswith("/") else named[what]


def _folder_digest(folder: Path) -> str:
    """The digest of the weights and settings in a folder."""
    files = [file for kind in ("*.safetensors", "*.json", "*.jinja") for file in folder.glob(kind)]
    return digest.of_listing({file.name: digest.of_file(file) for file in files})


def _verdict(path: Path) -> Verdict | None:
    return Verdict.read(path) if path.is_file() else None
