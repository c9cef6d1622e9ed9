"""A run: a folder in which named steps leave finished artifacts.

A step is a function `(out, settings, machine, **inputs) -> metrics` that writes files below `out`. It works in
`<name>.partial`, which is renamed to `<name>` after `artifact.json` is written, so a folder without `.partial` is
whole. The name is a step's identity; the fingerprint (its settings and the digests of its inputs) is evidence: where it
matches, the step is kept; where it differs, the run refuses and shows the difference.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

from gemma_ops import __version__
from gemma_ops.config import RunConfig
from gemma_ops.config.gemini import lay_over
from gemma_ops.errors import BusyError, DriftError, MachineError, OpsError
from gemma_ops.offline import guard
from gemma_ops.runs import digest, journal
from gemma_ops.runs.artifact import (
    MANIFEST,
    Artifact,
    Input,
    Reads,
    check_whole,
    difference,
    identity_of,
    read_artifact,
    set_aside,
)
from gemma_ops.runs.durable import write_json

Step = Callable[..., dict[str, float]]
_PENDING = "fingerprint.json"
_NOTHING_LEFT = 64 << 10
"""Bytes of free space below which any failure is put down to lack of space."""


class Listener(Protocol):
    """Follower of a run while it happens (the MLflow mirror, the terminal)."""

    def step_started(self, run: Run, step: str, settings: dict[str, Any], inputs: dict[str, str]) -> None: ...
    def step_record(self, run: Run, step: str, record: journal.Record) -> None: ...
    def step_finished(self, run: Run, artifact: Artifact) -> None: ...
    def run_finished(self, run: Run, error: BaseException | None) -> None: ...


class StopHere(Exception):  # noqa: N818 - a wish, not an error
    """Raised after the step named by `--until`; not an error."""


class Run:
    """A run's folder, locked: makes, keeps or refuses its steps."""

    def __init__(
        self,
        config: RunConfig,
        *,
        until: str | None = None,
        redo: tuple[str, ...] = (),
        listeners: tuple[Listener, ...] = (),
    ) -> None:
        self.config = config
        self.machine = config.here()
        self.path = Path(config.machine.runs) / config.name
        self.until = until
        self.redo = set(redo)
        self.listeners = listeners
        self.artifacts: dict[str, Artifact] = {}
        self._lock: Any = None
        self._hashes = digest.Cache(Path(config.machine.runs) / ".digests.json")

    def __enter__(self) -> Self:
        lay_over(self.config.machine.gemini)
        if self.config.offline:
            guard.enforce()  # also for whoever runs a recipe from Python
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / ".lock").open("a+")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise BusyError(
                f"{self.path} is in use by process {holder}", "wait for it, or give this run its own name: --set name=…"
            ) from None
        except OSError as error:
            raise MachineError(
                f"{self.path} can't be written: {error.strerror}", "set machine.runs to a folder you can write"
            ) from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        if self.machine.workers:
            os.environ["OMP_NUM_THREADS"] = str(self.machine.workers)  # read when torch is imported, by the first step
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        try:
            if error is None or isinstance(error, StopHere):
                self._write_config()
            for listener in self.listeners:
                listener.run_finished(self, None if isinstance(error, StopHere) else error)
        finally:
            self._lock.close()

    def step(self, function: Step, settings: Any, *, name: str | None = None, **inputs: Input | None) -> Artifact:
        """Make the step, or keep what is there.

        `inputs` are artifacts of earlier steps or paths outside the run; None is left out. Raises DriftError when the
        folder holds the same step made from other settings or inputs, and whatever the step itself raises.
        """
        name = name or function.__name__
        given = {key: value for key, value in inputs.items() if value is not None}
        identity = {
            "settings": digest.canonical(settings),
            "inputs": {key: self._digest(value) for key, value in given.items()},
        }
        done, partial = self.path / name, self.path / f"{name}.partial"
        if name in self.redo:
            self.redo.discard(name)
            set_aside(done)
            set_aside(partial)
        artifact = read_artifact(done, kept=True)
        if artifact:
            body = json.loads((done / MANIFEST).read_text(encoding="utf-8"))
            self._check(name, body, identity)
            check_whole(done, body)
        else:
            artifact = self._make(function, settings, name, given, identity, partial, done)
        self.artifacts[name] = artifact
        for listener in self.listeners:
            listener.step_finished(self, artifact)
        if name == self.until:
            raise StopHere(name)
        return artifact

    def _make(
        self,
        function: Step,
        settings: Any,
        name: str,
        given: dict[str, Input],
        identity: dict[str, Any],
        partial: Path,
        done: Path,
    ) -> Artifact:
        if (partial / _PENDING).exists():
            pending = json.loads((partial / _PENDING).read_text(encoding="utf-8"))
            if pending.get("refused") and difference(identity_of(pending), identity):
                shutil.rmtree(partial)  # it failed for a reason that was told, and what was asked for has changed
            else:
                self._check(name, pending, identity, unfinished=True)
        elif partial.exists():
            shutil.rmtree(partial)  # cut off before it said what it was for
        partial.mkdir(exist_ok=True)
        write_json(partial / _PENDING, identity)
        self._write_config()
        for listener in self.listeners:
            listener.step_started(self, name, identity["settings"], identity["inputs"])
        paths = {key: value.path if isinstance(value, Artifact | Reads) else value for key, value in given.items()}
        started = time.time()

        def on_record(step: str, record: journal.Record) -> None:
            for listener in self.listeners:
                listener.step_record(self, step, record)

        try:
            with journal.writing(self.path / "logs", name, on_record):
                held = {"offline": guard.held_by()} if guard.active() else {}
                journal.record(event="start", pid=os.getpid(), version=__version__, **held)
                metrics = function(partial, settings, self.machine, **paths)
                journal.record(event="end", seconds=round(time.time() - started, 3), **metrics)
            files = {
                file.relative_to(partial).as_posix(): {"sha256": digest.of_file(file), "bytes": file.stat().st_size}
                for file in digest.files_in(partial, links=False)
                if file.relative_to(partial).as_posix() not in (_PENDING, MANIFEST, f"{MANIFEST}.tmp")
            }
            body = {
                "schema": "gemma-ops/artifact@1",
                "step": name,
                "digest": digest.of_listing({key: str(value["sha256"]) for key, value in files.items()}),
                **identity,
                "metrics": metrics,
                "files": files,
                "made": {
                    "version": __version__,
                    "argv": sys.argv[1:],
                    "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "seconds": round(time.time() - started, 1),
                },
            }
            write_json(partial / MANIFEST, body)
            partial.rename(done)
            (done / _PENDING).unlink()
            for leftover in (f"{name}.old", f"{name}.partial.old"):
                shutil.rmtree(self.path / leftover, ignore_errors=True)
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":
                raise MachineError(
                    f"{name} ran out of GPU memory: {str(error).splitlines()[0]}",
                    "`gemma-ops plan` says what would fit; train.micro_batch, train.checkpointing, "
                    "train.weights=nf4 and machine.eval_batch each save memory",
                ) from error
            if _disk_is_full(error, partial):
                raise MachineError(
                    f"the disk is full (while {name} was writing {self.path})",
                    "free some space and run the same command again: finished steps are kept and this one goes on",
                ) from error
            if isinstance(error, OpsError):
                write_json(partial / _PENDING, {**identity, "refused": True})
            raise
        finally:
            _free_memory()
        return Artifact(name, done, body["digest"], metrics)

    def _write_config(self) -> None:
        """Write the settings of what is in the folder, when something was made; a refused run writes nothing."""
        write_json(self.path / "config.json", self.config.model_dump(mode="json", by_alias=True))

    def _digest(self, value: Input) -> Any:
        if isinstance(value, Artifact):
            return value.digest
        if isinstance(value, tuple):
            names = [path.name for path in value]
            return {
                name if names.count(name) == 1 else f"{name}#{number}": self._digest(path)
                for number, (name, path) in enumerate(zip(names, value, strict=True))
            }
        if isinstance(value, Reads):
            found = {path.name: self._digest(path) for path in value.files}
            if value.shown:  # many, and of the same name in different folders: one digest for all
                found["shown"] = self._hashes.of_files(value.shown, value.path)
            return found
        if not value.exists():
            raise OpsError(f"{value} does not exist", "check the path in the configuration")
        return self._hashes.of_path(value)

    def _check(self, name: str, found: dict[str, Any], identity: dict[str, Any], *, unfinished: bool = False) -> None:
        lines = difference(identity_of(found), identity)
        if lines:
            what = "holds unfinished work for" if unfinished else "was made from"
            raise DriftError(
                f"{self.path / name} {what} other settings or inputs:\n  " + "\n  ".join(lines),
                f"make it again with --redo {name}, keep both with --set name=<other>, or change the setting back",
            )


def _free_memory() -> None:
    """Free a step's models before the next one loads its own: they hold each other in reference cycles."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _disk_is_full(error: Exception, folder: Path) -> bool:
    """True if a step failed for lack of space: libraries wrap the system's error, or report it only in words."""
    full = {errno.ENOSPC, errno.EDQUOT}
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in full) or "No space left on device" in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return shutil.disk_usage(folder).free < _NOTHING_LEFT
