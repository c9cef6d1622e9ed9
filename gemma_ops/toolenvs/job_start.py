"""Starts a job inside a tool's environment: `python -I job_start.py JOB FOLDER`.

The tool's interpreter must not see the packages beside ours, whose versions it could not run with. So the package is
put up by its own folder alone, without its `__init__` and without the folder that it lies in: a job imports from
gemma_ops what needs the standard library, numpy and torch, and nothing else.

FOLDER holds `job.json`, and gets `result.json`: what the job returned, or what went wrong for a reason that a person
can act on. Any other exception ends in a traceback and exit code 1. No job opens a socket beyond this machine.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from pathlib import Path


def start_job(name: str, folder: Path) -> None:
    """Run the job `gemma_ops.toolenvs.jobs.NAME` on what the folder holds."""
    package = types.ModuleType("gemma_ops")
    package.__path__ = [str(Path(__file__).resolve().parents[1])]
    sys.modules["gemma_ops"] = package
    guard = importlib.import_module("gemma_ops.offline.guard")
    errors = importlib.import_module("gemma_ops.errors")
    guard.enforce()
    request = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    try:
        body = {"result": importlib.import_module(f"gemma_ops.toolenvs.jobs.{name}").run_job(request, folder)}
    except errors.OpsError as error:
        body = {"error": type(error).__name__, "what": error.what, "fix": error.fix}
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps(body), encoding="utf-8")
    temporary.replace(folder / "result.json")


if __name__ == "__main__":
    start_job(sys.argv[1], Path(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # engines leave threads behind that would be waited for
