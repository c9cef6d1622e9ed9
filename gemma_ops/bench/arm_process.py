"""What a benchmark measures, run in a process of its own: it imports first, and prints what it found as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from gemma_ops.errors import MachineError


def run_arm(
    module: str, *arguments: object, failed: str, fix: str, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a module with arguments and return what it prints. Raises MachineError where it fails: the words `failed`
    with the end of what it said, and `fix`."""
    command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
    variables = {**os.environ, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    if done.returncode:
        raise MachineError(f"{failed}:\n{done.stderr[-2000:]}", fix)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
