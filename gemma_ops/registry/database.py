"""Creation of MLflow's sqlite database, whole or not at all.

A fresh database runs some seventy schema migrations: 6 s of waiting for the disk, and a process killed in between
leaves a file that no later start can use. So a child process makes it under a temporary name with the disk
flushes off (2 s), and it is flushed once and renamed when it is whole. A child, because MLflow keeps an engine open per
database and sets logging up as it migrates; neither shall happen in the process that trains.

    python -m gemma_ops.registry.database FILE
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from gemma_ops.errors import MachineError
from gemma_ops.registry.mlflow_environment import set_environment


def ensure(file: Path) -> None:
    """Make the database `file` unless it exists; of several processes one makes it and the others wait.

    Raises MachineError when the folder can't be written or the disk is full.
    """
    if file.exists():
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (file.parent / f".{file.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.exists():
                _make(file)
    except OSError as error:
        raise MachineError(
            f"{file} can't be made: {error.strerror}", "set machine.mlflow to a folder you can write"
        ) from error


def _make(file: Path) -> None:
    fresh = file.with_name(f".{file.name}.making")
    for left in file.parent.glob(f"{fresh.name}*"):  # of a process that was killed, with its journal
        left.unlink()
    # -P: a file of the user's working folder must not stand in for a library.
    child = subprocess.run(
        [sys.executable, "-P", "-m", __name__, str(fresh)], capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise MachineError(
            f"{file} can't be made:\n{child.stderr.strip()[-2000:]}",
            "check the disk space, or set machine.mlflow to another folder",
        )
    with fresh.open("rb") as made:
        os.fsync(made.fileno())
    fresh.rename(file)


def _migrate(file: str) -> None:
    set_environment()
    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def fast(connection: object, _record: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # type: ignore[attr-defined]
        connection.execute("PRAGMA journal_mode=MEMORY")  # type: ignore[attr-defined]

    event.listen(Engine, "connect", fast)
    client = MlflowClient(tracking_uri=f"sqlite:///{file}", registry_uri=f"sqlite:///{file}")
    client.search_registered_models(max_results=1)


if __name__ == "__main__":
    _migrate(sys.argv[1])
