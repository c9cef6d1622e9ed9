"""Sources of a server: a version of the registry, what a run made, or files that lie anywhere.

NAME@ALIAS, NAME/VERSION     pulled from MLflow, every byte compared with the manifest
a run                        its quantized file, merged checkpoint or adapter, asked as the adapter was trained
a folder                     a version that `pull` laid there, compared with its manifest
FILE.gguf@FOLDER             the folder holds the tokenizer; nothing is known of a verdict
FOLDER                       a checkpoint
ADAPTER@FOLDER               the folder of an adapter, on the checkpoint in the other; a path with a `/` in it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.data.prompt_record import read_prompting
from gemma_ops.errors import ConfigError, DataError, GateError
from gemma_ops.family.formats import FORMATS, GGUF, PROJECTOR_MADE, QUANTIZED, WEIGHT_ENDINGS
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.modeling.llamacpp_shown import find_projector
from gemma_ops.registry.fetching import is_version, pull_version
from gemma_ops.runs import digest
from gemma_ops.serving.choosing import choose_format
from gemma_ops.serving.copied import is_pulled_copy, open_copy
from gemma_ops.serving.served_drafter import DrafterChoice, choose_drafter, drafter_wanted
from gemma_ops.serving.served_source import CHECKPOINT, SERVED_FORMATS, Source, is_weights, source_of_version
from gemma_ops.verdicts import CANARY, VERDICT, Verdict
from gemma_ops.verdicts.drafter_record import DRAFTER, DRAFTER_GGUF, DRAFTER_WEIGHTS


def open_source(asked: str, machine: MachineConfig, settings: ServeConfig) -> Source:
    """Find the source that is asked for. Raises ConfigError for a source that is none or lacks the format, and what
    pulling raises."""
    file, _, folder = asked.partition("@")
    if file.endswith(".gguf"):
        return _of_file(Path(file).expanduser(), Path(folder).expanduser() if folder else None, asked)
    run, path = Path(machine.runs) / asked, Path(asked).expanduser()
    if is_pulled_copy(path):
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
    if form.name in GGUF:
        _unchanged(step, f"{PROJECTOR_MADE}/", record["files"])
    answered = verdict.targets.get(form.name if form.name in QUANTIZED else CHECKPOINT) if verdict else None
    stale = answered and answered.sha256 not in (None, sha256)
    if form.name == "merged":
        stale = answered and answered.artifact not in (None, record["digest"])
    if stale:
        raise GateError(
            f"the verdict of {asked} is about another file of {form.name} than the run holds now",
            "evaluate it: gemma-ops evaluate CONFIG --redo evaluate",
        )
    canary, whole = run / "evaluate" / CANARY, form.name in (*QUANTIZED, "merged")
    drafting = _run_drafter(run / "draft", form.name, sha256, settings, asked, shows=find_projector(file) is not None)
    return Source(
        asked, run.name, file, checkpoint(home if whole else base), form.name,
        prompting=read_prompting(file if file.is_dir() else file.parent), verdict=verdict,
        canary=canary if canary.is_file() else None, sha256=sha256, base=None if whole else checkpoint(base),
        drafting=drafting,
    )  # fmt: skip


def _run_drafter(
    step: Path, form: str, sha256: str, settings: ServeConfig, asked: str, *, shows: bool
) -> DrafterChoice:
    """Return the drafter that a run's file is served with. Raises GateError for one that its step didn't leave so."""
    if not (step / "artifact.json").is_file():
        return choose_drafter(None, form, sha256, settings, shows=shows, asked=asked)
    record = json.loads((step / "artifact.json").read_text(encoding="utf-8"))
    for what in (DRAFTER, DRAFTER_GGUF, f"{DRAFTER_WEIGHTS}/"):
        _unchanged(step, what, record["files"])
    return choose_drafter(step, form, sha256, settings, shows=shows, asked=asked)


def _of_version(asked: str, machine: MachineConfig, settings: ServeConfig) -> Source:
    small = pull_version(machine, asked, wanted=lambda name: not name.endswith(WEIGHT_ENDINGS))
    subject = small.manifest["subject"]
    files = subject["files"]
    verdict = _verdict(small.folder / VERDICT)
    made = [name for name in SERVED_FORMATS if FORMATS[name].place in files]
    form = FORMATS[choose_format(settings, made, verdict, asked)]
    drafts = drafter_wanted(small.folder, form, files, settings, asked)
    whole = pull_version(
        machine, f"{small.name}/{small.version}", wanted=lambda name: is_weights(name, form) or drafts(name)
    )
    return source_of_version(whole, asked, subject, form, verdict, settings)


def _unchanged(step: Path, what: str, made: dict[str, dict[str, Any]]) -> str:
    """Return the SHA-256 of a step's file, or the digest of those below a folder (`what` ends with `/`). Raises
    GateError where one is not what the step left, and for one that it didn't leave: a further shard would be loaded
    too."""
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
    """Return the digest of the weights and settings in a folder."""
    files = [file for kind in ("*.safetensors", "*.json", "*.jinja") for file in folder.glob(kind)]
    return digest.of_listing({file.name: digest.of_file(file) for file in files})


def _verdict(path: Path) -> Verdict | None:
    return Verdict.read(path) if path.is_file() else None
