"""Selection of the files that go into a version, and their names there.

Only what can't run code and is needed to use or judge the version: trainers leave pickles and notes with local paths in
their output folders. The staged tree holds symbolic links, so that a 60 GB checkpoint isn't copied to be copied again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from gemma_ops.config import RegisterConfig
from gemma_ops.errors import DataError, ModelError
from gemma_ops.family.formats import FORMATS, GGUF, PROJECTOR_FILE, PROJECTOR_MADE, PROJECTOR_SHELF, QUANTIZED
from gemma_ops.modeling.checkpoint_source import checkpoint
from gemma_ops.registry.contents import ALLOWED, REPORT, content_problem
from gemma_ops.verdicts import CANARY, VERDICT
from gemma_ops.verdicts.drafter_record import DRAFTER, DRAFTER_SHELF

TUNED = "tuned"
ELSEWHERE = "elsewhere"
"""Folder in which an evaluation keeps what it may show on another machine."""
TOKENIZER = "tokenizer"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
)  # fmt: skip
# Of our own steps: how a folder was made stands in the manifest.
_LEFT_OUT = frozenset({"artifact.json", "fingerprint.json"})


def select_files(
    settings: RegisterConfig,
    *,
    model: Path | None = None,
    adapter: Path | None = None,
    merged: Path | None = None,
    quantized: Path | None = None,
    drafter: Path | None = None,
    evaluation: Path | None = None,
    leaves: bool = False,
    quotes: bool = True,
) -> dict[str, Path]:
    """Return {path in the version: file} for what `register.artifacts` names and the run has made, with its drafter,
    the tokenizer of `model`, the verdict and the report; `quotes` says whether the report and the canary, which quote
    rows, may go along.

    Something named that no step of the recipe makes is left out (a recipe without training has no adapter); something a
    step should have made and didn't raises ModelError. Raises DataError for a file of a kind that isn't allowed, and
    for one that is not what its name says.
    """
    chosen: dict[str, Path] = {}
    steps = {"train": adapter, "merge": merged, "quantize": quantized}
    for name in settings.artifacts:
        full = name == "adapter" and adapter and (adapter / TUNED).is_dir()  # a full fine-tune has no adapter
        form = FORMATS[TUNED if full else name]
        if step := steps[form.step]:
            chosen |= _folder(step / form.made, form.shelf, form.file)
            towers = step / PROJECTOR_MADE
            if form.name in GGUF and towers.is_dir():  # which go with every GGUF file
                chosen |= _folder(towers, PROJECTOR_SHELF, PROJECTOR_FILE)
    if not chosen:
        *most, last = ("adapter", "merged", *QUANTIZED)
        raise ModelError(
            f"nothing to register: the run has made none of {', '.join(settings.artifacts)}",
            f"set register.artifacts to what this recipe makes: {', '.join(most)} or {last}",
        )
    if drafter:
        chosen |= _folder(drafter, DRAFTER_SHELF, DRAFTER)
    for file in (VERDICT, "summary.md", *((REPORT, CANARY) if quotes else ())):
        if evaluation and (evaluation / file).exists():
            chosen[file] = shown_report(evaluation, file, leaves=leaves)
    if model:
        beside = checkpoint(model)
        chosen |= {f"{TOKENIZER}/{name}": beside / name for name in _TOKENIZER_FILES if (beside / name).is_file()}
    _check_contents(chosen)
    return chosen


def _check_contents(chosen: dict[str, Path]) -> None:
    for name, file in chosen.items():
        if problem := content_problem(file, name):
            raise DataError(
                f"{file} may not go into a registered version: {problem}",
                "make that step again; a file that is another kind than its name says can run code when it is loaded",
            )


def shown_report(folder: Path, file: str, *, leaves: bool) -> Path:
    """Return a file of an evaluation; where it leaves the machine, the one that was made for others, if rows must stay
    here."""
    other = folder / ELSEWHERE / file
    return other if leaves and other.exists() else folder / file


def link(chosen: dict[str, Path], folder: Path) -> None:
    """Lay the chosen files out below `folder` as symbolic links; what was there before is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, file in chosen.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(file.resolve())


def _folder(folder: Path, prefix: str, needed: str) -> dict[str, Path]:
    if not (folder / needed).exists():
        raise ModelError(f"{folder} has no {needed}", "make that step again, or take it out of register.artifacts")
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_dir() or file.name in _LEFT_OUT:
            continue
        if file.suffix not in ALLOWED:
            raise DataError(
                f"{file} may not go into a registered version: only {', '.join(sorted(ALLOWED))} may",
                "remove it if it isn't needed; pickled files (.bin, .pt, .pkl) can run code when they are loaded",
            )
        files[f"{prefix}/{file.relative_to(folder).as_posix()}"] = file
    return files
