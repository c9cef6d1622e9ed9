"""What many modules of tests need and none changes: made once a session, whichever process of xdist comes first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

ROOT: list[Path] = []
"""The folder that all processes of this session share; conftest.py says it."""


def share(own: Path) -> None:
    """Say what folder of temporary files this process has: those of xdist lie side by side."""
    ROOT[:] = [own.parent if "PYTEST_XDIST_WORKER" in os.environ else own]


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` filled. To be copied from, never to be changed."""
    folder = ROOT[0] / f"once-{name}"
    with (ROOT[0] / f"once-{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            (folder / "whole").touch()
    return folder
