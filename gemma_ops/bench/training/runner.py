"""Execution of a whole benchmark: the gate, then every arm in a process of its own, repeats interleaved, each result
kept as soon as it is there. Run again, it goes on where it was stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gemma_ops.bench.training import bench_machine, bench_report, picture, workers
from gemma_ops.bench.training.arms import ARMS, REFERENCE
from gemma_ops.bench.training.bench_spec import BenchSpec, check_arms
from gemma_ops.errors import GateError, OpsError

TOLERANCE = 1e-5
"""Relative error of a step's gradients in float32, above which an arm computes something else."""
_LONGEST = 3600
"""Seconds after which a process counts as stuck."""

Tell = Callable[[str], None]


class BenchRunner:
    """One benchmark in one folder. `deadline` is in `time.monotonic` seconds: no process is started after it."""

    def __init__(
        self,
        spec: BenchSpec,
        folder: Path,
        tell: Tell,
        *,
        command: str = "",
        deadline: float | None = None,
        worker: workers.Kept | None = None,
        gate: dict[str, Any] | None = None,
    ) -> None:
        check_arms(spec.arms, tuple(ARMS))
        self.spec, self.folder, self.tell, self.deadline = spec, folder, tell, deadline
        self.worker: workers.Worker = worker or workers.Fresh()
        self.path, self.log = folder / "bench.json", folder / "child.log"
        folder.mkdir(parents=True, exist_ok=True)
        self.body = self._kept() or {
            "spec": spec.to_json(),
            "command": command,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": bench_machine.machine(spec.device),
            "versions": bench_machine.package_versions(),
            "arms": {},
            "results": [],
        }
        self.body["spec"] = spec.to_json()
        if gate is not None:
            self.body["gate"] = gate

    def run(self) -> dict[str, Any]:
        """Measure what is not measured yet, and return everything, the summary included.

        Raises GateError when gemma-ops' gradients differ from stock TRL's: then no number is worth reporting.
        """
        able = [name for name in self.spec.arms if self._able(name)]
        with self._together():
            self._gate([name for name in able if ARMS[name].exact])
            model = self._model(able)
        for repeat in range(self.spec.repeats):
            for name in able:
                if self._due(name, repeat) and not self._late():
                    self._time(name, repeat, model)
        self.body["summary"] = bench_report.summary(self.body)
        self._write()
        (self.folder / "bench.svg").write_text(picture.svg(self.body), encoding="utf-8")
        done = all(not self._due(name, repeat) for name in able for repeat in range(self.spec.repeats))
        if done:
            shutil.rmtree(self.folder / "model", ignore_errors=True)
            shutil.rmtree(self.folder / "gradients", ignore_errors=True)
        return self.body

    def measured_rate(self, known: float | None = None) -> float | None:
        """Return the operations per second of this GPU's largest products, measured once; kept with the results. None
        on a failure."""
        if "rate" not in self.body:
            self.body["rate"] = known or self._child("rate").get("flops")
        rate: float | None = self.body["rate"]
        return rate

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Keep one process, with one set of imports, for what is not timed."""
        given, kept = self.worker, workers.Kept()
        if isinstance(given, workers.Fresh):
            self.worker = kept
        try:
            yield
        finally:
            self.worker = given
            kept.end()

    def _able(self, name: str) -> bool:
        """True if an arm can run here; the reason is kept if not."""
        arm = ARMS[name]
        missing = arm.missing()
        reason = None
        if missing:
            reason = "not installed"
        elif self.spec.device == "cpu" and not arm.on_cpu:
            reason = "needs a GPU"
        self.body["arms"][name] = {"what": arm.what, "choices": arm.choices, "absent": reason}
        return reason is None

    def _gate(self, names: list[str]) -> None:
        if not set(names) <= set(self.body.get("gate", {})):
            if self._late():
                return
            self.tell("gate: gradients of one step in float32, every arm against stock TRL")
            found = self._child("gate", arms=names)
            if "error" in found:
                raise OpsError(f"the gradients could not be compared: {found['error']}", f"see {self.log}")
            self.body["gate"] = found["gate"]
            self._write()
        for name, result in self.body["gate"].items():
            if "problem" in result:
                raise OpsError(f"{name} failed on the small shape: {result['problem']}", f"see {self.log}")
            if not result["error"] <= TOLERANCE:
                raise GateError(
                    f"{name}: gradients in float32 differ from stock TRL's by {result['error']:.1e} (more than "
                    f"{TOLERANCE:.0e}), so its speed is not reported",
                    "if it is gemma-ops, report it: a kernel or the packing is wrong on this machine",
                )

    def _model(self, names: list[str]) -> Path | None:
        """Return the checkpoint that arms load: for small sizes always, for true ones where an arm takes nothing
        else."""
        if not self.spec.saved and not any(ARMS[name].from_folder for name in names):
            return None
        folder = self.folder / "model"
        if not (folder / "tokenizer.json").is_file() and not self._late():
            self.tell("writing the model with random weights")
            made = self._child("save", model=str(folder))
            if "error" in made:
                raise OpsError(f"the model could not be made: {made['error']}", f"see {self.log}")
        return folder

    def _time(self, name: str, repeat: int, model: Path | None) -> None:
        spec, arm = self.spec, ARMS[name]
        gradients = self.folder / "gradients" / f"{name}.safetensors"
        gradients.parent.mkdir(exist_ok=True)
        took = time.monotonic()
        result = self._child(
            "time",
            arm=name,
            model=str(model) if model and (spec.saved or arm.from_folder) else None,
            gradients=str(gradients) if repeat == 0 else None,
            kernels=repeat == 0 and spec.device == "cuda" and isinstance(self.worker, workers.Fresh),
        )
        if repeat == 0 and "error" not in result:
            result["agreement"] = self._agreement(name)
        self.body["results"].append({"arm": name, "repeat": repeat, "seconds": time.monotonic() - took, **result})
        self.body["summary"] = bench_report.summary(self.body)
        self._write()
        self.tell(f"{name:<16} {repeat + 1}/{spec.repeats}  {bench_report.progress_line(result, spec, self.body)}")

    def _agreement(self, name: str) -> dict[str, float] | None:
        """Return the agreement of an arm's gradients with the reference's, once both are there."""
        mine, theirs = (self.folder / "gradients" / f"{arm}.safetensors" for arm in (name, REFERENCE))
        if not (mine.is_file() and theirs.is_file()):
            return None
        from safetensors.torch import load_file

        from gemma_ops.bench.training.measure import agreement

        try:
            return agreement(load_file(mine), load_file(theirs))
        except ValueError:
            return None

    def _due(self, name: str, repeat: int) -> bool:
        """True if it is not measured yet, and not known to fail."""
        mine = [result for result in self.body["results"] if result["arm"] == name]
        return not any(result["repeat"] == repeat or "error" in result for result in mine)

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _child(self, kind: str, **more: Any) -> dict[str, Any]:
        """Run one job in another process; a process that dies silently is an error too."""
        job, reply = self.folder / "job.json", self.folder / "reply.json"
        reply.unlink(missing_ok=True)
        job.write_text(
            json.dumps({"kind": kind, "spec": self.spec.to_json(), "reply": str(reply), **more}), encoding="utf-8"
        )
        left = _LONGEST if self.deadline is None else max(60.0, min(_LONGEST, self.deadline - time.monotonic() + 60))
        threads = self.spec.threads if self.spec.device == "cpu" else None
        problem = self.worker.do(job, reply, self.log, seconds=left, threads=threads)
        if not reply.is_file():
            return {"error": problem or "ended without a word"}
        result: dict[str, Any] = json.loads(reply.read_text(encoding="utf-8"))
        for path in (job, reply):
            path.unlink(missing_ok=True)
        return result

    def _kept(self) -> dict[str, Any] | None:
        """Return what an earlier run of the same measurement left; another one's folder is not touched."""
        if not self.path.is_file():
            return None
        body: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        if not self.spec.measures_like(body["spec"]):
            raise OpsError(
                f"{self.path} holds another measurement ({_difference(self.spec.to_json(), body['spec'])})",
                "choose another --out, or remove that folder",
            )
        return body

    def _write(self) -> None:
        half = self.path.with_suffix(".partial")
        half.write_text(json.dumps(self.body, indent=1) + "\n", encoding="utf-8")
        half.replace(self.path)


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    odd = [key for key in mine if key not in ("arms", "repeats") and mine[key] != theirs.get(key)]
    return ", ".join(f"{key}: {theirs.get(key)}, not {mine[key]}" for key in odd[:3])
