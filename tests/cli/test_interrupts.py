"""Ctrl-C ends a command soon, whatever hangs, and says what it waited for; where it is ignored, `kill` ends a
server."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading

import pytest

from tests.cli.test_bad_input import _start
from tests.helpers import patience

TASK = (
    "schema: gemma-ops/eval-task@1\nname: slow\nversion: 1\nprivacy: any\ndata: {path: data.jsonl}\n"
    "generation: {max_new_tokens: 8}\nmetrics: [exact_match]\nprimary: exact_match\n"
)


@pytest.fixture
def silent():
    """A server that takes requests and never answers."""
    asked, done = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked.set()
            done.wait(120)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    done.set()
    server.shutdown()


def test_a_server_that_never_answers_is_not_waited_for(tmp_path, silent):
    url, asked = silent
    (tmp_path / "task").mkdir()
    (tmp_path / "task/task.yaml").write_text(TASK)
    (tmp_path / "task/data.jsonl").write_text(json.dumps({"id": "a", "prompt": "?", "reference": "x"}) + "\n")
    sets = [
        "name=slow",
        "machine.mlflow=null",
        "register.name=null",
        'evaluate.tasks=["task"]',
        f'evaluate.targets=["openai:{url}#m"]',
    ]
    child = _start(tmp_path, "evaluate", "baseline", *(part for item in sets for part in ("--set", item)))
    patience.until(asked.is_set, 120, of=child.pid)
    child.send_signal(signal.SIGINT)
    _, stderr = patience.finish(child, 10)  # it waits two seconds; the server is silent for two minutes
    assert child.returncode == 130
    assert "not waiting any longer for" in stderr
    assert f"answers of openai:{url}#m" in stderr
    assert "run the same command again" in stderr
    assert "Traceback" not in stderr


def test_a_second_ctrl_c_ends_at_once(tmp_path):
    code = (
        "import signal, sys, time, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gemma_ops.cli import interrupts\n"
        "interrupts.PATIENCE = 600\n"
        "interrupts.install_interrupts()\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('first', "
        "flush=True)\n    time.sleep(600)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "first\n"
    child.send_signal(signal.SIGINT)
    patience.finish(child, 60)
    assert child.returncode == 130


def test_where_ctrl_c_is_ignored_it_stays_ignored_and_a_kill_ends_the_emulator(tmp_path):
    verb = [sys.executable, "-m", "gemma_ops", "dev", "gemini-emulator", "--port", "0"]
    child = subprocess.Popen(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *verb], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert "Gemini emulator at" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(1)
    child.terminate()
    told, _ = patience.finish(child, 60)
    assert child.returncode == 0
    assert "0 requests" in told
