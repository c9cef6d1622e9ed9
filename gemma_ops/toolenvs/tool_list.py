"""The tools that have an environment of their own: what each is for, its lock, and where it is installed.

A lock names every distribution with its exact version, torch first: asked for as a range, pip would take a CUDA build
of several GB. To move a tool to newer versions, resolve it once in an empty environment and write down what
`pip freeze` says.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError

VARIABLE = "GEMMA_OPS_TOOLS"
"""Environment variable that names the folder of tools where `machine.tools` doesn't."""
OLDEST, NEWEST = (3, 11), (3, 13)
"""Versions of Python for which all distributions of the locks have wheels."""


@dataclass(frozen=True)
class Tool:
    """One tool."""

    name: str
    """Name on the command line; its lock is `locks/NAME.txt`."""
    purpose: str
    """What it makes, for `tools list`."""
    bytes: int
    """Disk space that installing takes, at most: on Linux with the CPU build of torch."""

    @property
    def lock(self) -> Path:
        """Return the file with the exact versions."""
        return Path(__file__).parent / "locks" / f"{self.name}.txt"

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the lock."""
        return hashlib.sha256(self.lock.read_bytes()).hexdigest()

    def versions(self) -> dict[str, str]:
        """Return the version of each distribution in the lock, by name."""
        lines = self.lock.read_text(encoding="utf-8").split()
        return {name: number for name, _, number in (line.partition("==") for line in lines)}

    def place(self, machine: MachineConfig) -> Path:
        """Return the folder of its environment: another lock has another folder."""
        return tools_folder(machine) / f"{self.name}-{self.digest[:12]}"


_GB = 1_000_000_000
TOOLS = {
    each.name: each
    for each in (
        Tool("llm-compressor", "checkpoints for vLLM: w4a16, w8a8, fp8, nvfp4", 4 * _GB),
        Tool("litert", ".litertlm files for phones and laptops", 5 * _GB),
    )
}
"""Tools by name."""


def named_tool(name: str) -> Tool:
    """Return a tool. Raises ConfigError where there is none of that name."""
    if name not in TOOLS:
        raise ConfigError(f"there is no tool {name!r}", f"one of: {', '.join(TOOLS)}")
    return TOOLS[name]


def tools_folder(machine: MachineConfig) -> Path:
    """Return the folder of all tools: `machine.tools`, else `GEMMA_OPS_TOOLS`, else `tools` in the cache."""
    named = machine.tools or os.environ.get(VARIABLE)
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("GEMMA_OPS_CACHE") or Path.home() / ".cache" / "gemma-ops").absolute() / "tools"
