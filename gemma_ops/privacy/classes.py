"""Privacy classes, and how private a model is: at least as private as the strictest row it learned from.

A model repeats what it was trained on, word for word, so its answers may go only where those rows may go. Each step
that makes a model leaves `learned.json` in the folder that people copy and serve (adapter, tuned tensors, checkpoint,
one folder a GGUF file), and a GGUF file says the same in its own header. What a model was made from counts: its rows,
the base it started from, and the teacher whose probabilities or rows it learned.

A model of ours without a record (of a version that wrote none) is taken for the strictest class; a checkpoint from
elsewhere is taken for one trained on public text, unless `model.privacy` says more.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, get_args

from gemma_ops.config import Machine, MachineConfig, Privacy, ReleaseConfig
from gemma_ops.runs.durable import write_json

# From the strictest: may not leave the machine, may go to a paid service, may go anywhere.
PRIVACY: tuple[Privacy, ...] = get_args(Privacy)
HERE = "stays here"
"""`place` of a target whose questions don't leave the machine, as verdicts and reports say it."""
RECORD = "learned.json"
GGUF_KEY = "gemma_ops.learned"
"""Key in the header of a GGUF file whose value is the class."""
_MAKERS = ("train", "merge", "quantize")
"""Steps whose artifacts are models that learned something."""
_INNER = ("weights", "model", "adapter", "tuned")
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a GGUF value by its type; 8 is a string and 9 an array (llama.cpp, `gguf.h`)."""


def stricter(first: Privacy, second: Privacy) -> Privacy:
    """Return the stricter of two privacy classes."""
    return first if PRIVACY.index(first) <= PRIVACY.index(second) else second


def strictest(classes: Iterable[Privacy]) -> Privacy:
    """Return the strictest of several classes; `any` of none."""
    return min(classes, key=PRIVACY.index, default="any")


def class_of(value: Any) -> Privacy:
    """Return a class read from a file; an unknown one counts as the strictest."""
    return PRIVACY[PRIVACY.index(value)] if value in PRIVACY else "local_only"


def rows_class(files: Iterable[Path]) -> Privacy:
    """Return the strictest class in files of rows (JSON Lines with `privacy`); a row without one counts as
    `local_only`."""
    return strictest(set(_classes(files)))


def record_learned(folder: Path, privacy: Privacy, reasons: Iterable[str]) -> None:
    """Write into a model's folder which class it has, and why."""
    write_json(folder / RECORD, {"privacy": privacy, "because": list(reasons)}, indent=1)


def learned_class(path: Path) -> Privacy:
    """Return the class of what a model learned, by an artifact's or checkpoint's folder, or a GGUF file.

    The record in the folder and the one in the file both count, and the stricter one holds.
    """
    if path.is_file():
        known = [found for found in (_in_gguf(path), _recorded(path.parent)) if found]
        return strictest(known) if known else _unrecorded([path.parent, path.resolve().parent])
    folders = [path, *(path / inner for inner in _INNER)]
    known = [found for folder in folders if (found := _recorded(folder))]
    return strictest(known) if known else _unrecorded([folder.resolve() for folder in folders if folder.is_dir()])


def answers_class(learned: Privacy, release: ReleaseConfig) -> Privacy:
    """Return the class of a model's answers: that of what it learned, unless a person has released them further."""
    return learned if release.to is None else max(learned, release.to, key=PRIVACY.index)


def release_of(machine: MachineConfig) -> ReleaseConfig:
    """Return the release that a step was given; none where only the section `machine` is known."""
    return machine.release if isinstance(machine, Machine) else ReleaseConfig()


def _classes(files: Iterable[Path]) -> Iterator[Privacy]:
    for file in files:
        if file.is_file():
            with file.open(encoding="utf-8") as lines:
                yield from (class_of(json.loads(line).get("privacy")) for line in lines if line.strip())


def _recorded(folder: Path) -> Privacy | None:
    """Return what the record in a folder says; a record that can't be read counts as the strictest class."""
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        return class_of(json.loads(file.read_text(encoding="utf-8"))["privacy"])
    except (ValueError, KeyError, TypeError):
        return "local_only"


def _unrecorded(folders: Iterable[Path]) -> Privacy:
    """Return the class of a model without a record: the strictest if one of our steps made it, else the most open."""
    for folder in folders:
        for place in (folder, folder.parent):
            try:
                body = json.loads((place / "artifact.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(body, dict) and body.get("step") in _MAKERS:
                return "local_only"
    return "any"


def _in_gguf(path: Path) -> Privacy | None:
    """Return the class in the header of a GGUF file; None where there is none, or the file is of another kind."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                return None
            _version, _tensors, count = struct.unpack("<IQQ", file.read(20))
            for _ in range(count):
                key, kind = _text(file), struct.unpack("<I", file.read(4))[0]
                if key == GGUF_KEY and kind == 8:
                    return class_of(_text(file))
                _skip(file, kind)
    except (OSError, struct.error, KeyError, UnicodeDecodeError):
        return None
    return None


def _text(file: BinaryIO) -> str:
    return file.read(struct.unpack("<Q", file.read(8))[0]).decode("utf-8")


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == 8:
        file.seek(struct.unpack("<Q", file.read(8))[0], 1)
    elif kind == 9:
        inner, count = struct.unpack("<IQ", file.read(12))
        if inner in _SIZES:
            file.seek(_SIZES[inner] * count, 1)
        else:
            for _ in range(count):
                _skip(file, inner)
    else:
        file.seek(_SIZES[kind], 1)
