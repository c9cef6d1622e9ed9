"""A job of a tool: files in and out, no network, none of our packages, and an end in any case."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from gemma_ops.config import MachineConfig
from gemma_ops.errors import GateError, MachineError
from gemma_ops.toolenvs import job_start, tool_job
from gemma_ops.toolenvs.tool_list import TOOLS

TOOL = TOOLS["litert"]


@pytest.fixture
def machine(tmp_path):
    """A machine on which the tool is an environment that holds nothing: our interpreter by another name."""
    machine = MachineConfig(tools=str(tmp_path / "tools"), workers=1)
    folder = TOOL.place(machine)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (folder / "tool.json").write_text(json.dumps({"lock": TOOL.digest}))
    return machine


@pytest.fixture
def run(machine, tmp_path, monkeypatch):
    """Run a job whose body is given as Python; `request` and `folder` are known to it."""

    def call(body, request=None, **options):
        package = tmp_path / "gemma_ops"
        for part in ("errors.py", "offline"):
            target = package / part
            if not target.exists():
                package.mkdir(exist_ok=True)
                target.symlink_to(Path(job_start.__file__).parents[1] / part)
        jobs = package / "toolenvs" / "jobs"
        jobs.mkdir(parents=True, exist_ok=True)
        start = package / "toolenvs" / "job_start.py"
        start.write_text(Path(job_start.__file__).read_text())
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (jobs / "asked.py").write_text(f"def run_job(request, folder):\n{lines}\n")
        monkeypatch.setattr(job_start, "__file__", str(start))
        try:
            return tool_job.run_tool_job(
                TOOL, machine, "asked", request or {}, tmp_path / "job", what="the file", **options
            )
        finally:
            monkeypatch.undo()

    return call


def test_a_job_answers_and_keeps_its_files(run, tmp_path):
    body = "print('heard')\nreturn {'doubled': 2 * request['number']}"
    assert run(body, {"number": 21}) == {"doubled": 42}
    assert json.loads((tmp_path / "job" / "job.json").read_text()) == {"number": 21}
    assert (tmp_path / "job" / "log.txt").read_text().strip() == "heard"


def test_a_job_has_no_network_none_of_our_packages_and_no_secrets(run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    body = """
import os, socket, sys
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
    said = "connected"
except Exception as error:
    said = str(error)
seen = [each for each in sys.path if each in (request["ours"], request["root"])]
return {"said": said, "ours": seen, "secret": "HF_TOKEN" in os.environ,
        "hub": os.environ["HF_HUB_OFFLINE"]}"""
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    root = str(Path(job_start.__file__).parents[2])
    found = run(body, {"ours": "/somewhere", "root": root})
    assert "192.0.2.1, which is not this machine" in found.pop("said")
    assert found == {"ours": [], "secret": False, "hub": "1"}


def test_what_a_job_refuses_comes_as_it_is(run):
    body = "from gemma_ops.errors import GateError\nraise GateError('no', 'do this')"
    with pytest.raises(GateError) as error:
        run(body)
    assert (error.value.what, error.value.fix) == ("no", "do this")


def test_a_crash_shows_the_end_of_the_log(run):
    with pytest.raises(MachineError, match=r"job asked of litert failed \(exit code 1\):(.|\n)*ZeroDivisionError"):
        run("return 1 / 0")


def test_a_killed_job_says_so(run):
    with pytest.raises(MachineError, match="was killed, most likely for want of memory"):
        run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")


def test_a_job_that_hangs_is_ended(run):
    with pytest.raises(MachineError, match="took longer than 1 s and was ended"):
        run("import time\ntime.sleep(600)", seconds=1.0)


def test_a_result_of_before_is_not_taken(run):
    assert run("return {}") == {}
    with pytest.raises(MachineError, match="exit code 0"):
        run("import os\nos._exit(0)")
