"""One process of a training: `python -m gemma_ops.training.launch.worker job.json`, as torchrun or Ray start it.

It joins the process group and calls the very function that a training in one process calls. Process 0 speaks for all:
its records go to the parent, its files are the step's. An error is reported once, and then the processes wait for the
parent to end them; only what a new process may cure (a peer that was killed, a lost connection, a device that fell
over) leaves with an error code, upon which the launcher starts all of them again, and they go on from the last whole
checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from gemma_ops.errors import MachineError
from gemma_ops.runs import journal
from gemma_ops.training.launch import watch
from gemma_ops.training.launch.job import TrainingJob
from gemma_ops.training.launch.world import barrier, on_main, world

_PATIENCE = timedelta(minutes=60)
"""Time that processes wait for each other: process 0 may write a large checkpoint, or answer prompts, meanwhile."""
_LINGER = 120.0
"""Seconds after which a process that reported an error leaves although nobody ended it."""
_CURABLE = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "cuda error", "tcpstore")


def worker_main(arguments: list[str]) -> None:
    """Run the job of a `job.json`."""
    job = TrainingJob.read(Path(arguments[0]))
    rank = int(os.environ["RANK"])
    _to_log(job.log(rank))
    watch.watch()
    run_worker(job, rank)


def run_worker(job: TrainingJob, rank: int) -> None:
    """Train, as one of several. Leaves with an error only where a restart may cure it."""
    if job.failed or not watch.starter_lives():
        return
    try:
        leave = join_group(job)
        with _records(job):
            from gemma_ops.training import train_here

            metrics = train_here(job.out, job.settings, _here(job), base=job.base, data=job.data, teacher=job.teacher)
            barrier()
            if on_main():
                job.finish(metrics)
        leave()
    except Exception as error:  # the group is left alone: its peers may be gone, or wait in it for ever
        if curable(error):
            raise
        job.fail(explained_failure(error), rank)
        time.sleep(_LINGER)
        sys.exit(1)


def curable(error: BaseException) -> bool:
    """True if the same work may succeed in new processes: a peer has died or a device is lost, as far as libraries
    say."""
    import torch

    if isinstance(error, torch.cuda.OutOfMemoryError):
        return False
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return type(error) in (RuntimeError, ConnectionError, EOFError) and any(word in text for word in _CURABLE)


def explained_failure(error: Exception) -> Exception:
    """Return the error itself, or what a person can do about it."""
    if "Expected to have finished reduction" in str(error):
        found = MachineError(
            "some parameters that learn took no part in a step, and DDP waits for every one",
            "--set train.trl.ddp_find_unused_parameters=true",
        )
        found.__cause__ = error
        return found
    return error


def join_group(job: TrainingJob) -> Callable[[], None]:
    """Join the others, on this process's own device, and return how to leave them. Raises MachineError without a GPU
    each."""
    import torch
    import torch.distributed as dist

    from gemma_ops.training.launch.strategy import shard_on_cpu

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if _device(job) == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        backend = "gloo"
        shard_on_cpu()
    else:
        if local >= torch.cuda.device_count():
            raise MachineError(
                f"{local + 1} processes or more need a GPU each on this machine, and torch sees "
                f"{torch.cuda.device_count()}",
                "lower launch.processes",
            )
        torch.cuda.set_device(local)
        backend = "cuda:nccl,cpu:gloo"  # gloo carries what lies on the CPU
    if dist.is_initialized():  # Ray has made the group, and ends it
        return lambda: None
    dist.init_process_group(backend, timeout=_PATIENCE)
    return dist.destroy_process_group  # type: ignore[no-any-return]


def _device(job: TrainingJob) -> str:
    from gemma_ops.modeling.load import pick_device

    return pick_device(job.machine.device)


def _here(job: TrainingJob) -> Any:
    """Return the machine as this process sees it: its own device, and its share of the threads."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    return job.machine.model_copy(
        update={"device": _device(job), "workers": int(share) if share.isdigit() else job.machine.workers}
    )


@contextlib.contextmanager
def _records(job: TrainingJob) -> Iterator[None]:
    """Send what process 0 records to the parent, line by line; the others' records are the same."""
    if not on_main():
        yield
        return
    with job.records.open("a", encoding="utf-8", buffering=1) as file:

        def send(fields: journal.Record) -> None:
            file.write(json.dumps(fields, default=str) + "\n")

        with journal.sending(send):
            restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
            if restarts or job.records.stat().st_size:
                journal.record(event="restarted", message="a worker was lost; all were started again")
            journal.record(event="workers", processes=world().size, engine=job.machine.launch.engine)
            yield


def _to_log(path: Path) -> None:
    """Redirect everything this process prints, native code included, to its own log."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


if __name__ == "__main__":
    worker_main(sys.argv[1:])
