"""A training in several processes: started by torchrun or Ray, followed and ended by the run that asked for it.

The run's process starts a launcher (`launch_engines`), the launcher starts workers (`worker`), and the workers do what
the step would have done here. The run's process holds the lock on the folder, keeps the journal, and trains nothing
itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from gemma_ops.config import Machine, TrainConfig
from gemma_ops.errors import MachineError
from gemma_ops.runs import journal, processes
from gemma_ops.training.launch import launch_checks, launch_engines
from gemma_ops.training.launch.job import TrainingJob

_LOOK = 0.1
"""Seconds between two looks at what the workers reported."""
_MARK = 20
"""Number of looks between two signs of life, for machines that wait to join."""
_GRACE = 20.0
"""Seconds a launcher has to end its workers."""


def start_launch(
    out: Path, settings: TrainConfig, machine: Machine, *, base: Path, data: Path, teacher: Path | None = None
) -> dict[str, float]:
    """Run the step `train` in the processes that `machine.launch` asks for, and return its metrics.

    Raises what a worker raised, ConfigError or MachineError for what can't be started here, and MachineError when
    workers died more often than `launch.restarts` allows.
    """
    launch_checks.refuse_launch(settings, machine)
    log = journal.log_path()
    folder = log.with_suffix(".workers") if log else out.with_name(f"{out.name}.workers")
    folder = folder.absolute()  # Ray takes no other, and its workers may start elsewhere
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = TrainingJob(folder, out, settings, machine, base, data, teacher)
    job.write()
    command = launch_engines.launch_command(machine.launch, job.file, job.id)
    with (folder / "launcher.log").open("ab") as file:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=launch_engines.environment(machine.launch, machine.workers),
            start_new_session=True,  # an interrupt from the keyboard reaches this process, which then ends the others
        )
        try:
            return _follow(job, launcher)
        finally:
            end(launcher)
            job.end()


def _follow(job: TrainingJob, launcher: subprocess.Popen[bytes]) -> dict[str, float]:
    """Record what the main worker records, until the launcher ends or a worker reports an error."""
    offset, looks = 0, 0
    while True:
        ended = launcher.poll() is not None
        for record, after in _records(job.records, offset):
            journal.record(**record)
            offset = after
        error = job.error()
        if error:
            raise error
        if ended:
            break
        if looks % _MARK == 0:
            job.mark()
        looks += 1
        time.sleep(_LOOK)
    metrics = job.result()
    if metrics is None or launcher.returncode:
        raise MachineError(
            f"the workers of the training ended early (exit code {launcher.returncode}, launch.restarts is "
            f"{job.machine.launch.restarts}): see the logs in {job.folder}",
            "run the same command again: it goes on from the last checkpoint; launch.restarts allows more losses",
        )
    return metrics


def _records(path: Path, offset: int) -> Iterator[tuple[journal.Record, int]]:
    """Yield whole lines of a file from a byte on, each with the byte after it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def end(launcher: subprocess.Popen[bytes]) -> None:
    """Ask the launcher to end its workers, and see that it does. Workers that it can't reach see that it is gone."""
    if launcher.poll() is None:
        processes.stop_tree(launcher, _GRACE)
