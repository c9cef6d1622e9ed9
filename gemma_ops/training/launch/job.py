"""What the processes of one training share: a folder that says what to do, and in which they report.

job.json        the step's arguments, written by the parent before anything starts
records.jsonl   the journal of the main worker, which the parent follows
result.json     the step's metrics, written last
error.json      the first error of a worker; the parent raises it again
launcher.log    what torchrun or Ray print
worker-N.log    what process N prints, over all its lives
"""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops import errors
from gemma_ops.config import Machine, TrainConfig
from gemma_ops.errors import OpsError
from gemma_ops.runs.durable import write_json


class WorkerError(RuntimeError):
    """A defect in a worker, with its traceback there."""


class OutOfMemoryError(WorkerError):
    """Stand-in, in the parent, for torch's error of this name, by which a run knows that a GPU was too small."""


@dataclass(frozen=True)
class TrainingJob:
    """The arguments of the step `train`, and the folder of the processes that do its work."""

    folder: Path
    out: Path
    settings: TrainConfig
    machine: Machine
    base: Path
    data: Path
    teacher: Path | None = None

    @property
    def file(self) -> Path:
        return self.folder / "job.json"

    @property
    def records(self) -> Path:
        return self.folder / "records.jsonl"

    @property
    def id(self) -> str:
        """Return what tells this attempt from others at a rendezvous."""
        return f"{self.out.parent.name}-{self.folder.name}"

    def write(self) -> None:
        """Write `job.json`. Paths become absolute: workers may start elsewhere."""
        write_json(
            self.file,
            {
                "out": str(self.out.absolute()),
                "settings": self.settings.model_dump(mode="json"),
                "machine": self.machine.model_dump(mode="json"),
                "base": str(self.base.absolute()),
                "data": str(self.data.absolute()),
                "teacher": str(self.teacher.absolute()) if self.teacher else None,
            },
        )

    @classmethod
    def read(cls, file: Path) -> TrainingJob:
        """Read the job of a `job.json`."""
        body = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            folder=file.parent,
            out=Path(body["out"]),
            settings=TrainConfig.model_validate(body["settings"]),
            machine=Machine.model_validate(body["machine"]),
            base=Path(body["base"]),
            data=Path(body["data"]),
            teacher=Path(body["teacher"]) if body["teacher"] else None,
        )

    def log(self, rank: int) -> Path:
        return self.folder / f"worker-{rank}.log"

    def mark(self) -> None:
        """Write the sign that the parent lives."""
        (self.folder / "alive").touch()

    def end(self) -> None:
        """Write that the job is over, well or not."""
        (self.folder / "ended").touch()

    @property
    def over(self) -> bool:
        return (self.folder / "ended").exists()

    def finish(self, metrics: dict[str, float]) -> None:
        """Write that the training is done."""
        write_json(self.folder / "result.json", metrics)

    def result(self) -> dict[str, float] | None:
        """Return the metrics of a training that is done."""
        metrics: dict[str, float] | None = _read(self.folder / "result.json")
        return metrics

    def fail(self, error: BaseException, rank: int) -> None:
        """Report an error; the first one counts."""
        body: dict[str, Any] = {"kind": type(error).__name__, "rank": rank, "text": str(error)}
        if isinstance(error, OpsError):
            body |= {"what": error.what, "fix": error.fix}
        else:
            body["trace"] = "".join(traceback.format_exception(error))
        own = self.folder / f"error-{rank}.json"
        write_json(own, body)
        if not self.failed:
            own.replace(self.folder / "error.json")  # whole; of two at the same moment either will do

    @property
    def failed(self) -> bool:
        return (self.folder / "error.json").exists()

    def error(self) -> Exception | None:
        """Return the error a worker reported: the same OpsError, or a WorkerError with the worker's traceback."""
        body = _read(self.folder / "error.json")
        if body is None:
            return None
        if "what" in body:
            kind = getattr(errors, body["kind"], OpsError)
            known: OpsError = kind(body["what"], body["fix"])
            return known
        if body["kind"] == "OutOfMemoryError":
            return OutOfMemoryError(body["text"])
        return WorkerError(f"process {body['rank']} of the training failed:\n{body['trace']}")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
