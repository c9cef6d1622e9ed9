"""A network of its own for this process and all its children: one that holds nothing but loopback, so that the kernel
refuses.

Linux lets an ordinary user make a user namespace and, owned by it, a network namespace (user_namespaces(7),
network_namespaces(7)); containers and some distributions forbid it. The process keeps its user and its files. Sockets
of native code and of child processes are inside too, and nobody inside can leave. Servers on this machine's own
loopback address are outside, and can't be reached.

Nothing of the package is imported here: the file runs by itself to find out whether the system allows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1
"""SIOCGIFFLAGS, SIOCSIFFLAGS and IFF_UP (netdevice(7))."""
_INSIDE = "GEMMA_OPS_NAMESPACE"
"""Environment variable that names the network namespace a process was moved into."""


def inside_namespace() -> bool:
    """True if this process is in a network that `enter` made, by itself or as a child of one that did."""
    return bool(_here()) and os.environ.get(_INSIDE) == _here()


def enter() -> str:
    """Move this process into a network with only loopback. Returns why it can't be, empty when it is done.

    It must be the only thread. There is no way back.
    """
    if inside_namespace():
        return ""
    if sys.platform != "linux":
        return "only Linux has network namespaces"
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        return f"the process has {threads} threads already"
    libc = ctypes.CDLL(None, use_errno=True)
    # Root keeps its rights over the files of other users only in the user namespace that it is in.
    if os.getuid() or libc.unshare(_NEW_NET):
        user, group = os.getuid(), os.getgid()
        if libc.unshare(_NEW_USER | _NEW_NET):
            return f"the system does not allow it ({os.strerror(ctypes.get_errno())})"
        with contextlib.suppress(OSError):  # older kernels have no such file
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
    _raise_loopback()
    os.environ[_INSIDE] = _here()
    return ""


def namespace_refused() -> str:
    """Return why `enter` can't be done here, empty when it can: it is tried in a child process."""
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", __file__], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if child.returncode == 0 else child.stdout.strip() or "a child process failed"


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        (flags,) = struct.unpack("16xH14x", fcntl.ioctl(any_socket, _GET_FLAGS, request))
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sH14x", b"lo", flags | _UP))


def _here() -> str:
    try:
        return str(Path("/proc/self/ns/net").readlink())
    except OSError:
        return ""


if __name__ == "__main__":
    try:
        why = enter()
    except OSError as error:
        why = f"the system does not allow it ({error.strerror})"
    print(why)
    sys.exit(1 if why else 0)
