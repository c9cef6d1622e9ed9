"""A job in a tool's environment, seen from here: JSON in, JSON out, a log kept, and an end in any case.

The child has no network: its guard is up before it imports anything (`job_start.py`), and what libraries might ask for
is switched off by their own variables.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_ops import errors
from gemma_ops.config import MachineConfig
from gemma_ops.errors import MachineError, OpsError
from gemma_ops.offline.guard import ENVIRONMENT
from gemma_ops.runs import journal
from gemma_ops.runs.durable import write_json
from gemma_ops.runs.processes import start_bound_child, stop_tree
from gemma_ops.toolenvs import job_start
from gemma_ops.toolenvs.install_tool import require_tool
from gemma_ops.toolenvs.tool_list import Tool

_TOLD = 6
"""Lines of a job's log that an error shows."""
_SECONDS = 6 * 3600.0
"""Longest time of a job: a large model on few cores takes an hour."""
_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
"""Variables that a job sees of ours."""


def run_tool_job(
    tool: Tool,
    machine: MachineConfig,
    job: str,
    request: Mapping[str, Any],
    folder: Path,
    *,
    what: str,
    seconds: float = _SECONDS,
) -> dict[str, Any]:
    """Run a job of a tool in `folder`, which keeps its request, its result and `log.txt`, and return the result.

    Raises MachineError where the tool is missing, the job crashed, was killed or took longer than `seconds`; what the
    job itself refuses comes as the OpsError that it is. `what` says for whom it runs.
    """
    found = require_tool(tool, machine, what)
    folder.mkdir(parents=True, exist_ok=True)
    result, log = folder / "result.json", folder / "log.txt"
    result.unlink(missing_ok=True)
    write_json(folder / "job.json", dict(request))
    command = [str(found.python), "-I", job_start.__file__, job, str(folder.absolute())]
    threads = str(machine.workers or os.cpu_count() or 1)
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    kept |= {**ENVIRONMENT, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as file:
        child = start_bound_child(command, env=kept, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            stop_tree(child, 5.0)
            raise MachineError(
                f"{what}: the job {job} of {tool.name} took longer than {seconds:,.0f} s and was ended",
                f"see {log}; use a faster machine or a smaller model",
            ) from None
        except BaseException:
            stop_tree(child, 5.0)
            raise
    if code or not result.is_file():
        raise MachineError(f"{what}: the job {job} of {tool.name} {_end(code)}:\n{_last(log)}", f"see {log}")
    body = json.loads(result.read_text(encoding="utf-8"))
    if "error" in body:
        raise _refusal(body)
    journal.record(event="tool", tool=tool.name, job=job)
    found_result: dict[str, Any] = body["result"]
    return found_result


def _refusal(body: Mapping[str, Any]) -> OpsError:
    kind: type[OpsError] = getattr(errors, body["error"], OpsError)
    return kind(body["what"], body["fix"])


def _end(code: int) -> str:
    if code == 128 + signal.SIGKILL:
        return "was killed, most likely for want of memory"
    return f"failed (exit code {code})"


def _last(log: Path) -> str:
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "\n".join(f"  {line[:200]}" for line in lines[-_TOLD:])
