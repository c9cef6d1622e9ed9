"""Witnesses of what a tree of processes sends: a recorder in each Python process, and a network of its own whose kernel
counts.
"""

from __future__ import annotations

import subprocess

# A guard that only writes down: put before ours, in every Python process of a tree, through `sitecustomize`.
RECORDER = """
import os, sys
_file = os.open(os.environ["SOCKET_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def _note(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.bind", "socket.gethostname"):
        what = (int(arguments[0].family), arguments[1]) if hasattr(arguments[0], "family") else arguments
        os.write(_file, f"{event} {what!r}\\n".encode())
sys.addaudithook(_note)
os.write(_file, b"started\\n")
"""


def namespaces():
    """Whether this machine lets us make a network of our own, with nothing in it."""
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def unroutable(text):
    """From /proc/net/snmp of a network without any route: how often anything tried to send, native code included."""
    heads, values = (line.split() for line in text.splitlines() if line.startswith("Ip:"))
    return int(values[heads.index("OutNoRoutes")])
