"""A run's live mirror in MLflow, on a thread of its own.

The run's thread only says that something happened. The mirror's thread imports MLflow, opens the place and copies what
is new in the run folder every few seconds (`sync.py`). A server that goes away in the middle of a run is asked again
until the run ends; what could not be copied is reported at the end, stays in the run's logs, and is sent by the next
run. A run in which every step was kept and mirrored before starts no thread and imports nothing.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.errors import OpsError, ServiceError
from gemma_ops.registry import profile, state, sync, system
from gemma_ops.runs import journal
from gemma_ops.runs.artifact import Artifact
from gemma_ops.runs.run import Run

SYSTEM_EVERY = 10.0  # seconds between two samples of CPU, memory and GPU
EVERY = 2.0  # seconds between two looks at the run folder
PATIENCE = 20.0  # seconds without any success after which the end of a run stops waiting for MLflow
KILLED_PATIENCE = 1.0  # the same when the run was interrupted
_LONGEST_PAUSE = 30.0  # seconds between two tries at a server that is away


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Mirror:
    """The listener that mirrors a run. `say` receives one line at the end if something could not be mirrored."""

    def __init__(
        self,
        machine: MachineConfig,
        *,
        say: Callable[[str], None] = _say,
        every: float = EVERY,
        patience: float = PATIENCE,
    ) -> None:
        self.machine = machine
        self.place = profile.locate_mlflow(machine)
        self.say, self.every, self.patience = say, every, patience
        self._thread: threading.Thread | None = None
        self._wake, self._gone = threading.Event(), threading.Event()
        self._ended: tuple[str, str | None] | None = None
        self._problem: BaseException | None = None
        self._beat = time.monotonic()
        self._finished = False

    def step_started(self, run: Run, step: str, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        """Start the thread at the first step that is made. Raises ServiceError when a server isn't there, before work
        is spent."""
        if self.place and self._thread is None:
            profile.probe_mlflow(self.place)
            self._start(run.path)
        self._wake.set()

    def step_record(self, run: Run, step: str, record: journal.Record) -> None:
        """Do nothing: the thread reads the log the record has been written to."""

    def step_finished(self, run: Run, artifact: Artifact) -> None:
        self._wake.set()

    def run_finished(self, run: Run, error: BaseException | None) -> None:
        """Let the thread copy the rest, wait while it makes progress, and then report what is missing."""
        if self.place is None:
            return
        status, why = _ending(error)
        if self._thread is None:
            digests = {name: artifact.digest for name, artifact in run.artifacts.items()}
            if status != "FINISHED" or sync.up_to_date(run.path, self.place, digests):
                return  # nothing was made
            try:
                profile.probe_mlflow(self.place)
            except ServiceError as absent:
                self.say(f"MLflow was not brought up to date: {absent.what}")
                return
            self._start(run.path)
        assert self._thread is not None
        self._ended = (status, why)
        self._beat = time.monotonic()
        self._wake.set()
        # Somebody who ended the run by hand waits for nothing that the next run brings up to date.
        patience = min(self.patience, KILLED_PATIENCE) if status == "KILLED" else self.patience
        while self._thread.is_alive() and time.monotonic() - self._beat < patience:
            self._thread.join(0.05)
        self._gone.set()
        if not self._finished:
            self._report(run.path)

    def _start(self, run: Path) -> None:
        state.forget()
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._work, args=(run,), name="mlflow-mirror", daemon=True)
        self._thread.start()

    def _work(self, run: Path) -> None:
        pause, tracking, tries = self.every, None, 0
        monitor = system.Monitor(SYSTEM_EVERY)
        while not self._gone.is_set():
            ended = self._ended
            try:
                if self.place:
                    profile.probe_mlflow(self.place)
                tracking = tracking or profile.connect_mlflow(self.machine)
                with profile.mlflow_calls(tracking.place):
                    run_id = sync.sync(
                        tracking, run, ended=ended[0] if ended else None, error=ended[1] if ended else None
                    )
                    monitor.sample(tracking, run_id)
                self._problem, pause, self._beat = None, self.every, time.monotonic()
                if ended:
                    self._finished = True
                    return
            except ServiceError as error:
                self._problem, pause, tries = error, min(pause * 2, _LONGEST_PAUSE), tries + 1 if ended else 0
                if tries == 2:
                    return  # it was away before the run ended and still is
            except Exception as error:
                # The mirror must not take the training down with it; it stops here and the end of the run tells why.
                self._problem = error
                return
            self._wake.wait(min(pause, self.every) if self._ended else pause)
            self._wake.clear()

    def _report(self, run: Path) -> None:
        left = sync.pending_records(run, self.place) if self.place else 0
        error = self._problem
        where = (
            f"{left:,} records of {run / 'logs'} are not in MLflow yet; the same command sends them when it is "
            f"run again"
        )
        if error is None or isinstance(error, ServiceError):
            what = error.what if isinstance(error, ServiceError) else f"MLflow at {self.machine.mlflow} is too slow"
            self.say(f"{what}. {where}")
        elif isinstance(error, OpsError):
            self.say(f"the run is not mirrored: {error.what}\ntry: {error.fix}")
        else:
            trace = run / "logs" / "mlflow-error.txt"
            trace.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            self.say(
                f"the run is not mirrored: {type(error).__name__}: {str(error).splitlines()[0][:200]} (see {trace}). "
                f"{where}"
            )


def _ending(error: BaseException | None) -> tuple[str, str | None]:
    """Return MLflow's status for how the run ended, and why. Only our own messages are reported: others may quote
    data."""
    if error is None:
        return "FINISHED", None
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "KILLED", type(error).__name__
    what = f": {error.what.splitlines()[0]}" if isinstance(error, OpsError) else ""
    return "FAILED", f"{type(error).__name__}{what}"[:500]


def mirror(machine: MachineConfig, **options: Any) -> Mirror:
    """Return the listener that mirrors a run in MLflow; it does nothing when `machine.mlflow` is null."""
    return Mirror(machine, **options)
