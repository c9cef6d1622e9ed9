"""Offline: refused up front, and refused when tried. That the whole quickstart tries nothing:
tests/house/test_wheel.py."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_ops.config.loading import read_run_config
from gemma_ops.errors import ConfigError
from gemma_ops.offline import guard
from tests.helpers.networks import namespaces


def python(code, **environment):
    """Run code in a child without inherited offline settings."""
    kept = {name: value for name, value in os.environ.items() if name != guard.VARIABLE}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**kept, **environment})


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("LOCALHOST.", True), ("a.localhost", False), ("", True), ("0.0.0.0", True), ("::ffff:127.0.0.1", True),
        ("10.0.0.1", False), ("169.254.169.254", False), ("::ffff:8.8.8.8", False), ("fe80::1%eth0", False),
        ("example.com", False), ("localhost.example.com", False), ("notlocalhost", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_what_is_this_machine(host, ours):
    assert guard.is_loopback(host) is ours


@pytest.mark.parametrize(
    ("said", "is_on"), [("1", True), ("true", True), ("please", True), ("0", False), ("No", False), (" ", False)]
)
def test_the_variable(said, is_on, monkeypatch):
    monkeypatch.setenv(guard.VARIABLE, said)
    assert guard.active() is is_on


TRIES = """
import asyncio, http.client, socket, threading, urllib.request
made_before = socket.socket()
from socket import create_connection as imported_before
{enter}
from gemma_ops.errors import BoundaryError
async def streams():
    await asyncio.open_connection("192.0.2.1", 80)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tries = {{
    "connect": lambda: made_before.connect(("192.0.2.1", 80)),
    "connect_ex": lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
    "name": lambda: socket.socket().connect(("example.com", 80)),
    "create_connection": lambda: imported_before(("192.0.2.1", 80), 1),
    "sendto": lambda: udp.sendto(b"x", ("192.0.2.1", 53)),
    "sendmsg": lambda: udp.sendmsg([b"x"], [], 0, ("192.0.2.1", 53)),
    "getaddrinfo": lambda: socket.getaddrinfo("example.com", 443),
    "bytes": lambda: socket.getaddrinfo(b"example.com", 443),
    "gethostbyname": lambda: socket.gethostbyname("example.com"),
    "gethostbyaddr": lambda: socket.gethostbyaddr("192.0.2.1"),
    "getnameinfo": lambda: socket.getnameinfo(("192.0.2.1", 80), 0),
    "six": lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80)),
    "urllib": lambda: urllib.request.urlopen("http://example.com", timeout=1),
    "asyncio": lambda: asyncio.run(streams()),
}}
for name, attempt in tries.items():
    try:
        attempt()
        print(name, "went through")
    except BoundaryError as error:
        assert "not this machine" in error.what and "{variable}" in error.fix
    except OSError as error:
        print(name, "was tried:", error)
with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
    socket.create_connection(("127.0.0.1", port)).close()
    socket.create_connection(("localhost", port)).close()
one, other = socket.socketpair()
one.sendall(b"x")
"""


def test_every_way_out_is_shut_and_loopback_is_open():
    """Also for a socket and a function that were there before; without the guard they are all tried."""
    enter = "from gemma_ops.offline import guard as offline; offline.enforce()"
    shut = python(TRIES.format(enter=enter, variable=guard.VARIABLE))
    assert (shut.stdout, shut.returncode) == ("", 0), shut.stdout + shut.stderr


def test_a_run_started_from_python_is_offline_too(tmp_path):
    machine = {"runs": str(tmp_path), "mlflow": None}
    enter = (
        "from gemma_ops.config import RunConfig; from gemma_ops.runs.run import Run; "
        f"Run(RunConfig(offline=True, machine={machine!r})).__enter__()"
    )
    shut = python(TRIES.format(enter=enter, variable=guard.VARIABLE))
    assert (shut.stdout, shut.returncode) == ("", 0), shut.stdout + shut.stderr


def test_the_variable_alone_shuts_a_child_of_a_child(tmp_path):
    inner = "import gemma_ops, socket; socket.create_connection(('192.0.2.1', 80), 1)"
    code = f"import gemma_ops, subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {inner!r}]).returncode)"
    child = python(code, GEMMA_OPS_OFFLINE="yes")
    assert "BoundaryError" in child.stderr
    code = f"from gemma_ops.offline import guard as offline; offline.enforce(); {code}"
    assert "BoundaryError" in python(code).stderr


def test_libraries_are_told_and_proxies_dropped():
    code = (
        "from gemma_ops.offline import guard as offline; offline.enforce()\n"
        "import os, urllib.request, huggingface_hub.constants as hub\n"
        "print(urllib.request.getproxies_environment(), hub.HF_HUB_OFFLINE, hub.HF_HUB_DISABLE_TELEMETRY)\n"
        "print([name for name, value in offline.ENVIRONMENT.items() if os.environ[name] != value])"
    )
    # A proxy on loopback would be a way out that no address gives away; and what was set before must not stay.
    ways = {"HTTPS_PROXY": "http://127.0.0.1:3128", "all_proxy": "socks5://127.0.0.1:1", "no_proxy": "", "NO_PROXY": ""}
    told = python(code, HF_HUB_OFFLINE="0", **ways)
    assert told.stdout.splitlines() == ["{} True True", "[]"], told.stderr


def test_a_verb_ends_with_the_reason_and_the_way_out(cli, tmp_path):
    """A recipe of the user's own that asks somebody: exit 11, one line each, no traceback."""
    recipe = "import urllib.request\ndef recipe(run, config):\n    urllib.request.urlopen('http://example.com')\n"
    (tmp_path / "asks.py").write_text(recipe)
    result = cli("run", "quickstart", "-s", "recipe=asks.py", "-s", "offline=true", "-s", "evaluate.gates=[]")
    assert result.returncode == 11
    assert "error: offline: something asked for example.com" in result.stderr
    assert "try: " in result.stderr
    assert "Traceback" not in result.stderr


REMOTE = {
    "model.base": "model.base=google/gemma-4-E2B-it",
    "synth.judge": "synth.judge=google/gemma-4-31B-it",
    "data.hub": "data.hub=someone/rows",
    "machine.mlflow": "machine.mlflow=https://mlflow.example.com:5000",
    "synth.teacher": "synth.teacher=openai:http://10.0.0.9:8000/v1#gemma",
    "evaluate.targets": "evaluate.targets=[base, 'gemini:gemini-3.8-flash']",
}
MORE = [
    ("machine.mlflow", ["machine.mlflow=postgresql+psycopg2://127.0.0.1,10.0.0.7/mlflow"], "10.0.0.7"),
    ("machine.mlflow", ["machine.mlflow=postgresql:///mlflow?host=10.0.0.8"], "10.0.0.8"),
    ("machine.mlflow", ["machine.mlflow=mysql+pymysql://db.example.org/mlflow"], "db.example.org"),
    ("launch.rendezvous", ["launch.engine=torchrun", "launch.nodes=2", "launch.rendezvous=10.0.0.5:29500"], "10.0.0.5"),
    ("launch.rendezvous", ["launch.engine=ray", "launch.rendezvous=ray://head.example.org:10001"], "head.example.org"),
    ("launch.rendezvous", ["launch.engine=ray", "launch.rendezvous=auto"], "auto"),
    ("train.distill.teacher", ["train.method=distill", "train.distill.teacher=google/gemma-4-31B-it"], "31B"),
    ("synth.teacher", ["synth.teacher=openai:http://lm.localhost:8000/v1#gemma"], "lm.localhost"),
]


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_everything_remote_is_refused_in_one_message(empty_cache):
    with pytest.raises(ConfigError) as caught:
        guard.check_offline(read_run_config([], list(REMOTE.values())))
    lines = caught.value.what.splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == list(REMOTE)


@pytest.mark.parametrize(("key", "sets", "named"), MORE)
def test_other_machines_are_found_wherever_they_are_named(key, sets, named, empty_cache):
    with pytest.raises(ConfigError) as caught:
        guard.check_offline(read_run_config([], sets))
    (line,) = caught.value.what.splitlines()[1:]
    assert line.strip().startswith(f"{key}:")
    assert named in line


@pytest.mark.parametrize(
    "sets",
    [
        [],
        ["launch.engine=torchrun", "launch.processes=2"],
        ["launch.engine=torchrun", "launch.nodes=2", "launch.rendezvous=127.0.0.1:29500"],
        ["machine.mlflow=postgresql:///mlflow?host=/run/postgresql"],
        ["machine.mlflow=http://127.0.0.1:5000"],
        ["machine.mlflow=sqlite:////data/host/mlflow.db"],
        ["machine.mlflow=postgresql://localhost/mlflow"],
        ["machine.gemini.base_url=http://127.0.0.1:8085", "synth.teacher=gemini:gemini-3.8-flash@low"],
        ["synth.teacher=openai:http://localhost:8000/v1#gemma"],
        ["synth.teacher=./teacher"],
        ["register.description=gemini: compared with it"],
    ],
)
def test_what_lies_here_is_not_refused(sets, empty_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher").mkdir()
    guard.check_offline(read_run_config(["quickstart"], sets))


def test_a_model_in_the_hubs_cache_is_here(empty_cache):
    config = read_run_config([], ["model.base=google/gemma-4-E2B-it"])
    snapshot = empty_cache / "models--google--gemma-4-E2B-it" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model\.base"):  # no `main` is known
        guard.check_offline(config)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    guard.check_offline(config)
    guard.check_offline(read_run_config([], ["model.base=google/gemma-4-E2B-it", "model.revision=abc"]))


def test_the_verbs_refuse_before_any_work_and_plan_still_answers(cli, empty_cache):
    remote = ("quickstart", "-s", "model.base=google/gemma-4-E2B-it", "-s", "evaluate.gates=[]")
    environment = {guard.VARIABLE: "1", "HF_HUB_CACHE": str(empty_cache)}
    result = cli("run", *remote, env=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert "model.base" in result.stderr
    assert not (Path(empty_cache).parent / "runs").exists()
    assert cli("plan", *remote, env=environment).returncode == 0


ESCAPES = """
import socket, subprocess, sys
from gemma_ops.offline import namespace, guard as offline
from gemma_ops.config import RunConfig
offline.enforce()
offline.confine(RunConfig.model_validate({config}), {targets})
print(offline.held_by())
child = "import socket; s = socket.socket(); s.settimeout(2); print(s.connect_ex(('192.0.2.1', 9)))"
print(subprocess.run([sys.executable, "-I", "-c", child], capture_output=True, text=True).stdout.strip())
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
print(namespace.inside_namespace(), namespace.enter())
"""


def test_in_a_network_of_its_own_the_kernel_refuses_children_too():
    """A child without our guard finds no way (ENETUNREACH), and loopback is there. Where the system allows no such
    network, the reason is told."""
    told = python(ESCAPES.format(config={}, targets=[]))
    words, child, state = told.stdout.splitlines()
    if namespaces():
        assert words.startswith("the kernel: ")
        assert child == str(errno.ENETUNREACH)
        assert state.strip() == "True"
    else:
        assert words.startswith("a guard in Python")
        assert "does not allow it" in words


@pytest.mark.parametrize(
    ("config", "targets", "because"),
    [
        ({"machine": {"mlflow": "http://127.0.0.1:5000"}}, [], "machine.mlflow"),
        ({"machine": {"gemini": {"base_url": "http://127.0.0.1:8765"}}}, [], "machine.gemini.base_url"),
        ({"evaluate": {"targets": ["openai:http://127.0.0.1:8000/v1#m"]}}, [], "evaluate.targets"),
        ({"launch": {"engine": "ray", "rendezvous": "127.0.0.1:6379"}}, [], "launch.rendezvous"),
        ({}, ["openai:http://127.0.0.1:8000/v1#m"], "openai:http://127.0.0.1:8000/v1#m"),
    ],
)
def test_a_run_that_uses_a_server_on_this_machine_keeps_its_network_and_says_so(config, targets, because):
    words = python(ESCAPES.format(config=config, targets=targets)).stdout.splitlines()[0]
    assert words.startswith("a guard in Python")
    assert f"{because} is a server on this machine" in words


def test_the_command_says_who_holds_it_and_the_doctor_who_would(cli, tmp_path):
    """A recipe whose child is a program that knows nothing of us."""
    recipe = (
        "import subprocess, sys\ndef recipe(run, config):\n    code = 'import socket; "
        'print(socket.socket().connect_ex(("192.0.2.1", 9)))\'\n'
        "    raise SystemExit(subprocess.run([sys.executable, '-I', '-c', code], capture_output=True, text=True, "
        "timeout=20).stdout)\n"
    )
    (tmp_path / "asks.py").write_text(recipe)
    result = cli("run", "quickstart", "-s", "recipe=asks.py", "-s", "offline=true", "-s", "evaluate.gates=[]")
    alone = namespaces()
    assert ("offline is held by the kernel" in " ".join(result.stderr.split())) == alone
    assert (str(errno.ENETUNREACH) in result.stderr) == alone
    doctor = " ".join(cli("doctor").stdout.split())
    assert ("the kernel refuses" in doctor) == alone
    assert ("a guard in Python only" in doctor) != alone
