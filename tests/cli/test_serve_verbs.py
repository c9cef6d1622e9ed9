"""`serve`, `chat` and `pull` as a person runs them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import httpx2
import pytest

from gemma_ops.nano import WEIGHTS
from gemma_ops.serving import chatting
from gemma_ops.serving.engine import EngineGoneError
from tests.helpers import patience
from tests.helpers.live_server import make_files


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("gguf")) / "q8_0" / "model.gguf"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_file_is_served_until_it_is_told_to_end(file, tmp_path, how):
    command = [sys.executable, "-m", "gemma_ops", "serve", f"{file}@{WEIGHTS}", "--set", "serve.port=0"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    lines = [process.stdout.readline() for _ in range(4)]
    url = re.search(r"at (http://127\.0\.0\.1:\d+) on llama\.cpp", lines[0])[1]
    assert lines[1] == "verdict: none; canary: nothing was recorded to compare with\n"
    asked = json.loads(re.search(r"-d '(.*)'$", lines[2].strip())[1])
    found = httpx2.post(f"{url}/v1/chat/completions", json=asked | {"max_tokens": 4}, timeout=60).json()
    assert found["usage"]["completion_tokens"] <= 4
    process.send_signal(how)
    told, log = patience.finish(process, 30)
    assert process.returncode == 0, log
    assert "1 request, " in told
    assert json.loads(log.splitlines()[-1])["status"] == 200


def test_one_question_over_http_and_the_end(file, cli):
    done = cli("serve", f"{file}@{WEIGHTS}", "--set", "serve.port=0", "--ask", "hello", "--set", "serve.max_tokens=8")
    assert done.returncode == 0, done.stderr
    alone = cli("chat", f"{file}@{WEIGHTS}", "--prompt", "hello", "--set", "serve.max_tokens=8")
    assert done.stdout.splitlines()[4] == alone.stdout.strip()
    assert "1 request, " in done.stdout
    refused = cli("serve", f"{file}@{WEIGHTS}", "--set", "serve.port=0", "--ask", "say <|turn>")
    assert (refused.returncode, "control token" in refused.stderr) == (3, True)


def test_one_question_prints_the_answer_alone(file, cli):
    done = cli("chat", f"{file}@{WEIGHTS}", "--prompt", "hello", "--set", "serve.max_tokens=8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    two = cli(
        "chat", f"{file}@{WEIGHTS}", "--versus", f"{file}@{WEIGHTS}", "--prompt", "hello", "--set", "serve.max_tokens=8"
    )
    assert [line.partition(": ")[2] for line in two.stdout.splitlines()] == [done.stdout.strip()] * 2


def test_a_conversation_remembers_until_it_is_reset(file, tmp_path):
    command = [sys.executable, "-m", "gemma_ops", "chat", f"{file}@{WEIGHTS}", "--set", "serve.max_tokens=6"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdin.write("hello\n/reset\n/system be short\nsay <|turn>model\n/what\n/quit\n")
    process.stdin.flush()
    told, log = patience.finish(process, 60)
    assert process.returncode == 0, log
    assert "refused: " in told
    assert "control token <|turn>" in told
    assert told.count("/reset forgets the conversation") == 2  # at the beginning, and for what is no command


def test_an_engine_that_dies_in_a_conversation_ends_its_turn_alone(capsys):
    def replying(*_):
        raise EngineGoneError("the engine ended", "send it again")

    service, history = SimpleNamespace(model=SimpleNamespace(engine=SimpleNamespace(senses=None))), []
    service.replying = replying
    asyncio.run(chatting._turn(service, history, "", "hello", named=False))
    assert (capsys.readouterr().out, history) == ("failed: the engine ended; send it again\n", [])


@pytest.mark.parametrize(
    ("source", "sets", "code", "what"),
    [
        ("nothing", [], 2, "nothing that can be served"),
        ("gone.gguf", [], 2, "does not exist"),
        ("FILE", ["serve.host=0.0.0.0"], 2, "serve.keys is not set"),
        ("FILE", ["serve.keys=gone"], 2, "can't be read"),
        ("FILE", ["serve.slots=0"], 2, "serve.slots"),
        ("FILE", ["serve.port=TAKEN"], 5, "can't listen on 127.0.0.1"),
        ("BROKEN", [], 4, "llama.cpp can't load"),
    ],
)
def test_what_can_not_be_served_is_told(file, cli, tmp_path, source, sets, code, what):
    (tmp_path / "broken.gguf").write_bytes(file.read_bytes()[:100_000])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {"FILE": f"{file}@{WEIGHTS}", "BROKEN": f"{tmp_path / 'broken.gguf'}@{WEIGHTS}"}
        given = [
            part
            for item in ["serve.port=0", *sets]
            for part in ("--set", item.replace("TAKEN", str(taken.getsockname()[1])))
        ]
        done = cli("serve", names.get(source, source), *given, seconds=60)
    assert what in done.stderr
    assert "Traceback" not in done.stderr
    assert "try: " in done.stderr
    assert done.returncode == code


def test_a_server_stays_where_it_can_be_reached(file, tmp_path):
    """Offline, other commands move into a network of their own; a server in there would answer nobody."""
    command = [
        sys.executable,
        "-m",
        "gemma_ops",
        "serve",
        f"{file}@{WEIGHTS}",
        "--set",
        "serve.port=0",
        "--set",
        "offline=true",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    assert "a guard in Python" in process.stdout.readline()
    url = re.search(r"at (http://127\.0\.0\.1:\d+) on", process.stdout.readline())[1]
    assert httpx2.get(f"{url}/ready", timeout=30).json()["status"] == "ready"
    process.terminate()
    patience.finish(process, 30)
    assert process.returncode == 0
