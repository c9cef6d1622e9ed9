"""What is served: a version of the registry, a run's quantized file, or a GGUF file with a folder beside it.

NAME@ALIAS, NAME/VERSION     pulled from MLflow, every byte compared with the manifest
a run                        its `quantize` step's file, asked as its adapter was trained
FILE.gguf@FOLDER             the folder holds the tokenizer; nothing is known of a verdict
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gemma_ops import digest
from gemma_ops.config import MachineConfig, Privacy, ServeConfig
from gemma_ops.data.prompting import Prompting, read_prompting
from gemma_ops.errors import ConfigError, DataError, GateError
from gemma_ops.family.formats import DEFAULT_FORMATS, GGUF, REFERENCE, GgufName
from gemma_ops.family.gguf_shape import gguf_shape
from gemma_ops.modeling.source import checkpoint
from gemma_ops.planning.serving import ServingBytes, serving_bytes
from gemma_ops.privacy import PRIVACY, class_of, learned_class
from gemma_ops.verdicts import CANARY, VERDICT, Verdict

_FORMATS = (*DEFAULT_FORMATS, REFERENCE)
"""Where no verdict tells them apart: those that are made where nothing is said, before the one they are compared
with."""


@dataclass(frozen=True)
class Source:
    """Weights with everything that is needed to ask them as they were evaluated."""

    asked: str
    model: str
    file: Path
    tokenizer: Path
    format: str
    version: str = ""
    prompting: Prompting | None = None
    verdict: Verdict | None = None
    canary: Path | None = None
    """What the evaluation recorded of this model's answers."""
    sha256: str = ""

    @property
    def defaults(self) -> dict[str, Any]:
        """Sampling settings of `generation_config.json`."""
        path = self.tokenizer / "generation_config.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def answers_class(self) -> Privacy:
        """The privacy class of its answers: of what it learned, or what a person has released them to."""
        release = self.verdict.release if self.verdict else None
        to = class_of(release.to) if release and release.to else "local_only"
        return max(learned_class(self.file), to, key=PRIVACY.index)

    def gates(self) -> tuple[str, ...]:
        """What the verdict's gates said."""
        return tuple(f"{gate.outcome}: {gate.words}" for gate in self.verdict.gates) if self.verdict else ()


def open_source(asked: str, machine: MachineConfig, settings: ServeConfig) -> Source:
    """Find what is asked for. Raises ConfigError for a source that is none or lacks the format, and what pulling
    raises."""
    from gemma_ops.registry.fetching import is_version

    file, _, folder = asked.partition("@")
    if file.endswith(".gguf"):
        return _of_file(Path(file).expanduser(), Path(folder).expanduser() if folder else None, asked)
    run = Path(machine.runs) / asked
    if run.is_dir():
        return _of_run(run, asked, settings)
    if is_version(asked):
        return _of_version(asked, machine, settings)
    raise ConfigError(
        f"{asked!r} is nothing that can be served: no run in {machine.runs}, no NAME@ALIAS, no NAME/VERSION, "
        "no GGUF file",
        "name a run (gemma-ops show NAME lists what it made), a version (NAME@champion), or FILE.gguf@FOLDER",
    )


def memory_of(source: Source, settings: ServeConfig) -> ServingBytes:
    """What serving a source takes, in all replicas. Raises ModelError for a file that is no GGUF of Gemma 4."""
    size = source.file.stat().st_size
    one = serving_bytes(gguf_shape(source.file), size, slots=settings.slots, context=settings.context)
    return one.times(settings.replicas)


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


def _of_run(run: Path, asked: str, settings: ServeConfig) -> Source:
    verdict = _verdict(run / "evaluate" / VERDICT)
    made = [name for name in _FORMATS if (run / "quantize" / GGUF[name].path).is_file()]
    form = choose_format(settings.format, made, verdict, asked)
    file = run / "quantize" / GGUF[form].path
    home = next((run / step for step in ("merge", "fetch") if (run / step / "artifact.json").is_file()), None)
    if home is None:
        raise DataError(f"{run} holds no model", "make the run's first steps: gemma-ops run CONFIG")
    canary, sha256 = run / "evaluate" / CANARY, digest.of_file(file)
    made_as = json.loads((run / "quantize" / "artifact.json").read_text(encoding="utf-8"))["files"]
    if sha256 != made_as[GGUF[form].path]["sha256"]:
        raise GateError(f"{file} was changed since it was made", "make it again: gemma-ops run CONFIG --redo quantize")
    answered = verdict.targets.get(form) if verdict else None
    if answered and answered.sha256 not in (None, sha256):
        raise GateError(
            f"the verdict of {asked} is about another file of {form} than the run holds now",
            "evaluate it: gemma-ops evaluate CONFIG --redo evaluate",
        )
    return Source(
        asked, run.name, file, checkpoint(home), form, prompting=read_prompting(file.parent), verdict=verdict,
        canary=canary if canary.is_file() else None, sha256=sha256,
    )  # fmt: skip


def _of_version(asked: str, machine: MachineConfig, settings: ServeConfig) -> Source:
    from gemma_ops.registry.fetching import pull_version

    small = pull_version(machine, asked, wanted=lambda name: not name.endswith((".gguf", ".safetensors")))
    files = small.manifest["subject"]["files"]
    verdict = _verdict(small.folder / VERDICT)
    made = [name for name in _FORMATS if GGUF[name].place in files]
    form = choose_format(settings.format, made, verdict, asked)
    place = GGUF[form].place
    whole = pull_version(machine, f"{small.name}/{small.version}", wanted=lambda name: name == place)
    canary = small.folder / CANARY
    return Source(
        asked, small.name, whole.folder / place, small.folder / "tokenizer", form, small.version,
        read_prompting(small.folder / GGUF[form].shelf), verdict, canary if CANARY in files else None,
        str(files[place]["sha256"]),
    )  # fmt: skip


def choose_format(
    wanted: Literal["auto"] | GgufName, made: Sequence[GgufName], verdict: Verdict | None, asked: str
) -> GgufName:
    """The format that is served: the one asked for, else the one whose primary metrics are the highest on average over
    the verdict's tasks, else the first that was made. Raises ConfigError where it was not made."""
    if not made:
        raise ConfigError(
            f"{asked} has no GGUF file",
            "quantize it: gemma-ops run CONFIG, with quantize.formats and register.artifacts",
        )
    if wanted != "auto":
        if wanted not in made:
            raise ConfigError(f"{asked} has no {wanted}", f"serve one of: {', '.join(made)}, with --set serve.format=…")
        return made[made.index(wanted)]
    found: dict[GgufName, list[float]] = {}
    for result in verdict.results if verdict else ():
        figure = result.metrics.get(verdict.tasks[result.task].primary) if verdict else None
        form = next((name for name in made if name == result.target), None)
        if form and figure and figure.value is not None:
            found.setdefault(form, []).append(float(figure.value))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return max(means, key=lambda name: (means[name], -made.index(name))) if means else made[0]


def _verdict(path: Path) -> Verdict | None:
    return Verdict.read(path) if path.is_file() else None
