"""`gemma-ops` in processes that have the heavy libraries loaded already: most of what a short command takes is
importing.

`python preloaded.py serve SOCKET` imports them once and then forks for each command; `python preloaded.py run SOCKET
WORDS…` stands for `gemma-ops WORDS…`: its folder, environment, input and output are the command's, a SIGTERM is passed
on, and it ends as the command does. What a command does itself is as in a process of its own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "peft", "trl", "mlflow", "gemma_ops.training.sft")


def serve(path):
    """Fork for each command that is asked for, until killed."""
    importlib.import_module("gemma_ops.cli")._quiet()
    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a run collects garbage after each step, and need not look at what all commands share
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the commands
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(path)
        listening.listen(16)
        while True:
            asked, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os._exit(attend(asked))
            asked.close()


def attend(asked):
    """Run one command in a child; say its pid and, at its end, its exit code."""
    body, fds, _, _ = socket.recv_fds(asked, 1 << 20, 3)
    words, folder, environment = json.loads(body)
    pid = os.fork()
    if pid == 0:
        asked.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        os.closerange(3, max(fds) + 1)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["gemma-ops", *words]
        importlib.import_module("gemma_ops.cli").main()  # ends this process
    for fd in fds:
        os.close(fd)
    asked.sendall(f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        asked.sendall(f"{code}\n".encode())
    return 0


def run(path, words):
    """Ask for a command, and end as it does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.connect(path)
        body = json.dumps([words, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(asking, [body], [0, 1, 2])
        with asking.makefile() as told:
            pid = int(told.readline())
            signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
            return int(told.readline() or 1)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    sys.exit(run(sys.argv[2], sys.argv[3:]))
