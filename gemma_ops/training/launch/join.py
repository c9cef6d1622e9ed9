"""The other machines of a training: each waits until the first one has started the job, and lends its processes.

Every machine sees the run folder under the same path. The first one runs the recipe as always, holds the lock, keeps
the journal; the others run `gemma-ops launch join` with the same configuration, find the job there, and meet the first
at `launch.rendezvous`. They write their workers' logs and nothing else.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from gemma_ops.config import RunConfig
from gemma_ops.errors import ConfigError, MachineError
from gemma_ops.training.launch import end, launch_engines
from gemma_ops.training.launch.job import TrainingJob

_LOOK = 1.0
"""Seconds between two looks at the run folder."""


def join_training(config: RunConfig, *, say: Callable[[str], None], patience: float = 24 * 3600.0) -> None:
    """Take part in the training of a run that another machine holds, and return when it is over.

    Raises ConfigError where there is nothing to join, MachineError when no training began within `patience` seconds.
    """
    launch = config.launch
    if launch.engine != "torchrun" or launch.nodes == 1 or not launch.rendezvous:
        raise ConfigError(
            "nothing to join: only torchrun on several machines has others that wait",
            "--set launch.engine=torchrun --set launch.nodes=… --set launch.rendezvous=<first machine>:29500; "
            "Ray's machines join its cluster (`ray start`)",
        )
    run = Path(config.machine.runs) / config.name
    say(f"waiting for the training of {run}")
    job = _await(run / "logs", patience)
    say(f"joining {job.folder} at {launch.rendezvous}")
    with (job.folder / f"launcher-{os.uname().nodename}.log").open("ab") as file:
        agent = subprocess.Popen(
            launch_engines.launch_command(launch, job.file, job.id),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=launch_engines.environment(launch, config.machine.workers),
            start_new_session=True,
        )
        try:
            while agent.poll() is None and not job.over:
                time.sleep(_LOOK)
            if job.over:  # workers leave by themselves when it went well
                _wait(agent, 30.0)
        finally:
            end(agent)
    say("the training is over")


def _await(logs: Path, patience: float) -> TrainingJob:
    """Return the job that some process holds now: its sign of life changes during the wait. Clocks of two machines may
    differ."""
    until = time.monotonic() + patience
    before: dict[Path, float] = {}
    while time.monotonic() < until:
        now = {path: path.stat().st_mtime for path in logs.glob("*.workers/alive")}
        for path, at in now.items():
            if before.get(path, at) != at and not (path.parent / "ended").exists():
                return TrainingJob.read(path.parent / "job.json")
        before |= now
        time.sleep(_LOOK)
    raise MachineError(f"no training began in {logs.parent}", "start it on the first machine: gemma-ops train …")


def _wait(agent: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        agent.wait(seconds)
    except subprocess.TimeoutExpired:
        return
