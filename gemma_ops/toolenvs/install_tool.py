"""Installing a tool: a virtual environment made from its lock, whole or not there.

pip works in a folder named `….partial`, which is renamed when everything is in it, with the record of what it was made
from written last. An installation that was killed takes its pip along, and starts again; one that is there is left
alone. Where there is no network, distributions come from a wheelhouse, a folder that `fill_wheelhouse` made on a
machine of the same kind.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_ops.config import MachineConfig
from gemma_ops.errors import BoundaryError, BusyError, ConfigError, MachineError
from gemma_ops.offline import guard
from gemma_ops.runs.durable import write_json
from gemma_ops.runs.processes import start_bound_child, stop_tree
from gemma_ops.toolenvs.tool_list import NEWEST, OLDEST, TOOLS, Tool

_RECORD = "tool.json"
"""File of an environment that is whole: which tool, which lock, which Python."""
_WHEELHOUSE = "wheelhouse.json"
"""File of a wheelhouse that is whole."""
_TOLD = 12
"""Lines of pip's log that an error shows."""


@dataclass(frozen=True)
class InstalledTool:
    """A tool on this machine, or its absence."""

    tool: Tool
    folder: Path
    installed: bool
    older: bool
    """Whether an environment of another lock lies beside it, which this version of gemma-ops doesn't use."""

    @property
    def python(self) -> Path:
        """Return the environment's interpreter."""
        return self.folder / "bin" / "python"


def find_tool(tool: Tool, machine: MachineConfig) -> InstalledTool:
    """Look for a tool on this machine: one counts that is whole and was made from this very lock."""
    folder = tool.place(machine)
    others = [each for each in folder.parent.glob(f"{tool.name}-*/{_RECORD}") if each.parent != folder]
    try:
        body = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        body = {}
    return InstalledTool(tool, folder, body.get("lock") == tool.digest, bool(others))


def list_tools(machine: MachineConfig) -> list[InstalledTool]:
    """Return every tool, installed or not."""
    return [find_tool(tool, machine) for tool in TOOLS.values()]


def require_tool(tool: Tool, machine: MachineConfig, what: str) -> InstalledTool:
    """Return an installed tool; raises MachineError where it isn't, saying `what` needs it."""
    found = find_tool(tool, machine)
    if not found.installed:
        why = "the installed one is of another gemma-ops" if found.older else "it is not installed"
        raise MachineError(
            f"{what} needs the tool {tool.name}, and {why} ({found.folder.parent})",
            f"gemma-ops tools install {tool.name}",
        )
    return found


def install_tool(tool: Tool, machine: MachineConfig, *, wheelhouse: Path | None = None) -> InstalledTool:
    """Install a tool, from the network or from a wheelhouse; one that is there is left as it is.

    Raises MachineError for a Python or a disk that won't do, and where pip fails; ConfigError for a wheelhouse of
    another tool, lock, Python or system; BoundaryError offline without a wheelhouse; BusyError while another process
    installs it.
    """
    found = find_tool(tool, machine)
    if found.installed:
        return found
    _check_python()
    if wheelhouse is not None:
        _check_wheelhouse(tool, wheelhouse)
    elif guard.active():
        raise BoundaryError(
            f"offline, and installing {tool.name} would fetch distributions",
            f"on a machine with a network: gemma-ops tools wheelhouse {tool.name} DIR; here: --wheelhouse DIR",
        )
    folder = found.folder
    _check_room(folder.parent, tool)
    with _alone(folder) as lock:
        partial = folder.with_name(f"{folder.name}.partial")
        for old in (partial, folder):  # what lies there without its record was cut short
            shutil.rmtree(old, ignore_errors=True)
        log = folder.with_name(f"{folder.name}.log")
        venv = [sys.executable, "-m", "venv", str(partial)]
        _call(venv, log, f"the environment of {tool.name} can't be made", lock)
        source = ["--no-index", "--find-links", str(wheelhouse)] if wheelhouse else []
        pip = [str(partial / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        command = [*pip, *source, "--requirement", str(tool.lock)]
        _call(command, log, f"{tool.name} can't be installed", lock, only_wheels=wheelhouse is not None)
        write_json(partial / _RECORD, {"tool": tool.name, "lock": tool.digest, **_here()})
        partial.rename(folder)
    return find_tool(tool, machine)


def fill_wheelhouse(tool: Tool, folder: Path) -> int:
    """Put every distribution of a tool into a folder as wheels, and return their number; the folder serves machines of
    this system and Python. Raises MachineError where pip fails, BoundaryError offline."""
    _check_python()
    if guard.active():
        raise BoundaryError(
            f"offline, and a wheelhouse of {tool.name} is filled from the network",
            "fill it on a machine with a network, with the same system and Python",
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _WHEELHOUSE).unlink(missing_ok=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-input", "--disable-pip-version-check", "--wheel-dir"]
    log = folder / "pip.log"
    _call([*pip, str(folder), "--requirement", str(tool.lock)], log, f"the wheels of {tool.name} can't be fetched")
    write_json(folder / _WHEELHOUSE, {"tool": tool.name, "lock": tool.digest, **_here()})
    return len(list(folder.glob("*.whl")))


def _here() -> dict[str, Any]:
    """Return what a wheel must fit."""
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "system": platform.system(),
        "processor": platform.machine(),
    }


def _check_python() -> None:
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        first, last = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
        raise MachineError(
            f"the locks of tools have wheels for Python {first} to {last}, and this is {_here()['python']}",
            f"run gemma-ops in an environment of Python {first} to {last}",
        )


def _check_wheelhouse(tool: Tool, folder: Path) -> None:
    try:
        body = json.loads((folder / _WHEELHOUSE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder} is no wheelhouse that is whole: it has no {_WHEELHOUSE}",
            f"gemma-ops tools wheelhouse {tool.name} {folder}",
        ) from None
    wanted = {"tool": tool.name, "lock": tool.digest, **_here()}
    if odd := [key for key, value in wanted.items() if body.get(key) != value]:
        told = ", ".join(f"{key} {str(body.get(key))[:12]} instead of {str(wanted[key])[:12]}" for key in odd)
        raise ConfigError(
            f"{folder} was filled for something else: {told}",
            f"fill it with this version of gemma-ops, system and Python: gemma-ops tools wheelhouse {tool.name} DIR",
        )


def _check_room(folder: Path, tool: Tool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise MachineError(
            f"{folder} can't be written: {error.strerror}", "set machine.tools to another folder"
        ) from error
    if free < tool.bytes:
        raise MachineError(
            f"{tool.name} takes up to {tool.bytes / 1e9:.0f} GB, and {folder} has {free / 1e9:.1f} GB free",
            "free some room, or set machine.tools to a folder on another disk",
        )


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Hold the lock of an environment, and yield its file: whoever works for this process holds it too."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"another process is installing {folder.name}", "wait until it is done") from None
        yield lock.fileno()


def _call(command: Sequence[str], log: Path, what: str, *locks: int, only_wheels: bool = False) -> None:
    """Run a command with its output in `log`, which ends with this process and holds `locks` until then. With
    `only_wheels`, nobody's settings of pip add other sources."""
    kept = {name: value for name, value in os.environ.items() if not (only_wheels and name.startswith("PIP_"))}
    kept.pop("PYTHONPATH", None)
    if only_wheels:
        kept["PIP_CONFIG_FILE"] = os.devnull
    with log.open("a", encoding="utf-8") as file:
        child = start_bound_child(command, stdout=file, stderr=subprocess.STDOUT, env=kept, pass_fds=locks)
        try:
            code = child.wait()
        except BaseException:
            stop_tree(child, 5.0)
            raise
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = "\n  ".join(line for line in lines if not line.startswith("WARNING"))[-2000:].splitlines()[-_TOLD:]
        raise MachineError(f"{what}:\n" + "\n".join(told), f"see {log}; run the same command again to go on")
