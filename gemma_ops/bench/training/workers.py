"""The processes that measure: a fresh one for each job, or one that is kept for many.

Fresh ones share nothing, not even a warm allocator, and on a CPU their high-water mark is that of one arm. On a GPU the
allocator tells each job's own peak, and a process that is kept pays for imports and compiled kernels once: a list of
benchmarks that would take an hour takes minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol, Self

_CHILD = [sys.executable, "-P", "-m", "gemma_ops.bench.training.bench_child"]
_KILLED = "killed, as by a machine out of memory"


class Worker(Protocol):
    """The interface of a worker, which runs one job described in a file."""

    def do(self, job: Path, reply: Path, log: Path, *, seconds: float, threads: int | None) -> str | None:
        """Run `job` within `seconds`; its result is in the file `reply`, and an error is returned."""


class Fresh:
    """Worker that starts a new process for each job. `threads`: of a CPU job; None is a GPU's."""

    def do(self, job: Path, reply: Path, log: Path, *, seconds: float, threads: int | None) -> str | None:
        with log.open("a", encoding="utf-8") as out:
            try:
                done = subprocess.run(
                    [*_CHILD, str(job)], stdout=out, stderr=out, timeout=seconds, check=False, env=_environment(threads)
                )
            except subprocess.TimeoutExpired:
                return f"no end after {seconds:.0f} s"
        return None if reply.is_file() else _ended(done.returncode)


class Kept:
    """Worker with one process for all jobs, started again when it dies. A context manager: leaving it ends the
    process."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def do(self, job: Path, reply: Path, log: Path, *, seconds: float, threads: int | None) -> str | None:
        if self.process is None or self.process.poll() is not None:
            with log.open("a", encoding="utf-8") as out:
                self.process = subprocess.Popen(
                    [*_CHILD, "--serve"],
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=out,
                    text=True,
                    env=_environment(threads),
                )
        assert self.process.stdin is not None
        self.process.stdin.write(f"{job}\n")
        self.process.stdin.flush()
        limit = time.monotonic() + seconds
        while not reply.is_file():
            if self.process.poll() is not None:
                return _ended(self.process.returncode)
            if time.monotonic() > limit:
                self.end()
                return f"no end after {seconds:.0f} s"
            time.sleep(0.02)
        return None

    def end(self) -> None:
        """Stop the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _environment(threads: int | None) -> dict[str, str]:
    known = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if threads is None:
        return known | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    return known | {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}


def _ended(code: int) -> str:
    return _KILLED if code in (-9, 137) else f"ended with code {code}"
