"""Installing a tool: from a wheelhouse without a network, again after a kill, refused with a way out."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

from gemma_ops.config import MachineConfig
from gemma_ops.errors import BoundaryError, BusyError, ConfigError, MachineError
from gemma_ops.toolenvs import install_tool as installing
from gemma_ops.toolenvs.install_tool import find_tool, install_tool, list_tools, require_tool
from gemma_ops.toolenvs.tool_list import TOOLS, Tool, named_tool, tools_folder
from tests.helpers import patience

ROOT = Path(__file__).parents[2]


class LittleTool(Tool):
    """A tool of one distribution, which a test makes itself."""

    folder = None

    @property
    def lock(self):
        return self.folder / "lock.txt"


def wheel(folder, name="little", version="1.0"):
    body = {
        f"{name}.py": "ANSWER = 42\n",
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in body.items():
        sum_ = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={sum_},{len(text)}")
    record = f"{name}-{version}.dist-info/RECORD"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in body.items():
            archive.writestr(path, text)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")


@pytest.fixture
def tool(tmp_path):
    LittleTool.folder = tmp_path
    (tmp_path / "lock.txt").write_text("little==1.0\n")
    return LittleTool("little", "for tests", 1000)


@pytest.fixture
def wheelhouse(tmp_path, tool):
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder)
    body = {"tool": "little", "lock": tool.digest, **installing._here()}
    (folder / "wheelhouse.json").write_text(json.dumps(body))
    return folder


@pytest.fixture
def machine(tmp_path):
    return MachineConfig(tools=str(tmp_path / "tools"))


def test_a_tool_is_made_offline_from_a_wheelhouse_and_kept(tool, wheelhouse, machine, monkeypatch):
    monkeypatch.setenv("GEMMA_OPS_OFFLINE", "1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/nowhere")  # nobody's settings count
    partial = tool.place(machine).with_name(f"{tool.place(machine).name}.partial")
    (partial / "bin").mkdir(parents=True)  # of an installation that was killed
    (partial / "bin" / "python").write_text("half")
    assert not find_tool(tool, machine).installed
    with pytest.raises(MachineError, match="needs the tool little, and it is not installed") as error:
        require_tool(tool, machine, "x")
    assert error.value.fix == "gemma-ops tools install little"
    found = install_tool(tool, machine, wheelhouse=wheelhouse)
    done = patience.run([str(found.python), "-c", "import little; print(little.ANSWER)"], seconds=60)
    assert done.stdout.strip() == "42"
    assert not partial.exists()
    shutil.rmtree(wheelhouse)
    assert install_tool(tool, machine, wheelhouse=wheelhouse).folder == found.folder  # nothing is done again
    (tool.lock).write_text("little==1.1\n")
    other = find_tool(tool, machine)
    assert not other.installed
    assert other.older
    with pytest.raises(MachineError, match="of another gemma-ops"):
        require_tool(tool, machine, "x")


KILLED = """
import sys
from pathlib import Path
from gemma_ops.toolenvs import install_tool as installing
folder = Path(sys.argv[1])
with installing._alone(folder / "env") as lock:
    body = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(300)"
    installing._call([sys.executable, "-c", body, str(folder / "begun")], folder / "log", "pip", lock)
"""


def test_pip_ends_with_a_killed_installation_and_holds_its_lock_until_then(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT)
    patience.until(lambda: (tmp_path / "begun").exists() and (tmp_path / "begun").read_text(), seconds=60)
    with pytest.raises(BusyError, match="another process is installing env"), installing._alone(tmp_path / "env"):
        pass
    child.kill()
    child.wait()

    def free():
        try:
            with installing._alone(tmp_path / "env"):
                return True
        except BusyError:
            return False

    patience.until(free, seconds=60)
    assert not psutil.pid_exists(int((tmp_path / "begun").read_text()))


def test_what_pip_refuses_is_told_and_leaves_nothing_that_counts(tool, wheelhouse, machine):
    next(wheelhouse.glob("*.whl")).unlink()
    with pytest.raises(MachineError, match=r"little can't be installed(.|\n)*No matching distribution"):
        install_tool(tool, machine, wheelhouse=wheelhouse)
    assert not find_tool(tool, machine).installed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": "3.9"}, "python 3.9 instead of"),
        ({"lock": "0" * 64}, "lock 000000000000 instead of"),
        ({"tool": "other"}, "tool other instead of little"),
        (None, "is no wheelhouse that is whole"),
    ],
)
def test_a_wheelhouse_of_something_else_is_refused(tool, wheelhouse, machine, change, words):
    file = wheelhouse / "wheelhouse.json"
    if change is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ConfigError, match=words):
        install_tool(tool, machine, wheelhouse=wheelhouse)


def test_offline_without_a_wheelhouse_little_room_and_an_old_python(tool, machine, monkeypatch):
    monkeypatch.setattr(installing, "OLDEST", (9, 0))
    with pytest.raises(MachineError, match=r"wheels for Python 9.0 to 3.13"):
        install_tool(tool, machine)
    monkeypatch.undo()
    large = LittleTool("little", "", 10**18)
    with pytest.raises(MachineError, match="takes up to 1000000000 GB"):
        install_tool(large, machine)
    monkeypatch.setenv("GEMMA_OPS_OFFLINE", "1")
    with pytest.raises(BoundaryError, match="would fetch distributions") as error:
        install_tool(tool, machine)
    assert "gemma-ops tools wheelhouse little DIR" in error.value.fix


def test_locks_are_exact_name_torch_first_and_no_place(monkeypatch, tmp_path):
    for tool in TOOLS.values():
        lines = tool.lock.read_text().split()
        assert lines[0] == "torch==2.13.0"
        assert all(re.fullmatch(r"[\w.-]+==[\w.!]+", line) for line in lines)
        assert len(tool.versions()) == len(lines)
    assert TOOLS["llm-compressor"].versions()["compressed-tensors"] == "0.19.0"
    assert TOOLS["litert"].versions()["litert-torch"] == "0.10.0"
    with pytest.raises(ConfigError, match="no tool 'vllm'"):
        named_tool("vllm")
    monkeypatch.setenv("GEMMA_OPS_TOOLS", str(tmp_path / "a"))
    assert tools_folder(MachineConfig()) == tmp_path / "a"
    assert tools_folder(MachineConfig(tools=str(tmp_path / "b"))) == tmp_path / "b"
    monkeypatch.delenv("GEMMA_OPS_TOOLS")
    monkeypatch.setenv("GEMMA_OPS_CACHE", str(tmp_path / "c"))
    assert tools_folder(MachineConfig()) == tmp_path / "c" / "tools"


def test_the_list_says_what_is_there(cli, tmp_path):
    done = cli("tools", "list", env={"GEMMA_OPS_TOOLS": str(tmp_path)}, check=True)
    assert "not installed: gemma-ops tools install litert" in done.stdout
    assert [each.installed for each in list_tools(MachineConfig(tools=str(tmp_path)))] == [False, False]
