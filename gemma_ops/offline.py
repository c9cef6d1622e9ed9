"""Offline: no socket beyond this machine is opened, by any verb, whoever asks for one.

`offline: true` in a configuration or `GEMMA_OPS_OFFLINE=1` in the environment. Three layers, so that none has to be
perfect: a configuration that needs something remote is refused before any work, naming the key; libraries are told
through their own variables not to ask; and an audit hook of the interpreter refuses what is tried all the same, also
through a socket made or a function imported before. A hook can't be taken out again, and it sees every Python socket.
Native code that opens sockets by itself it does not see: there the second layer must do (offline, the Hub's library
never calls its Rust downloader).

A child process inherits the variable, and `gemma_ops/__init__.py` puts the guard up there before anything else runs.
Socket files, kernel sockets and loopback stay open: llama.cpp answers on a socket file, and an emulator or an inference
server of your own may well stand on 127.0.0.1. Proxies are dropped, since one on loopback leads out.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gemma_ops.errors import BoundaryError, ConfigError

if TYPE_CHECKING:
    from gemma_ops.config import RunConfig

VARIABLE = "GEMMA_OPS_OFFLINE"
ENVIRONMENT = {
    VARIABLE: "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",  # MLflow takes no other spelling for yes
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",  # by default a download from the internet
    "RAY_USAGE_STATS_ENABLED": "0",
}
_NO = ("", "0", "false", "no", "off")
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "ws_proxy", "wss_proxy")
_SPEC = re.compile(r"(gemini|openai):(\S+)")
"""Targets that are asked over a network, as `evaluate.targets` and its like spell them."""
_FAMILIES = {getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG") if hasattr(socket, name)}
"""Kinds of sockets that never leave the machine."""
_up = False


def active() -> bool:
    """Whether this process is offline. Any value of the variable but an explicit no means yes."""
    return os.environ.get(VARIABLE, "").strip().lower() not in _NO


def enforce() -> None:
    """Take this process, and every child it starts from now on, offline. Safe to repeat; there is no way back."""
    global _up  # noqa: PLW0603
    os.environ.update(ENVIRONMENT)
    for name in [name for name in os.environ if name.lower() in _PROXIES]:
        del os.environ[name]
    constants: Any = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # imported before, with what the environment said then
        constants.HF_HUB_OFFLINE = True
    if not _up:
        _up = True
        sys.addaudithook(_watch)
        for name in ("connect", "connect_ex", "sendto", "sendmsg"):
            setattr(socket.socket, name, _before_lookup(getattr(socket.socket, name)))


def check(config: RunConfig) -> None:
    """Refuse a configuration that can't run offline. Raises ConfigError with every key that asks for something remote."""
    problems = list(_remote(config))
    if problems:
        raise ConfigError(
            "offline, and the configuration asks for something beyond this machine:\n  " + "\n  ".join(problems),
            f"change the keys above, or go online: offline=false and {VARIABLE} unset",
        )


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own: 127.0.0.0/8, ::1, localhost and names below it."""
    name = host.strip("[]").rstrip(".").lower()
    if name in ("", "localhost") or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False  # a name: looking it up would already ask somebody
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback or address.is_unspecified)


def _before_lookup(method: Callable[..., Any]) -> Callable[..., Any]:
    """A socket's method that looks at the address first: CPython resolves a name in C, and only then audits."""

    @wraps(method)
    def call(self: socket.socket, *arguments: Any) -> Any:
        for address in arguments:
            # Only an address is a tuple with a port; buffers and ancillary data are not.
            if (
                self.family not in _FAMILIES
                and isinstance(address, tuple)
                and len(address) > 1
                and isinstance(address[1], int)
            ):
                _refuse_unless_ours(address[0])
        return method(self, *arguments)

    return call


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook; called for every audited event of the interpreter, so it leaves at once for all others."""
    if not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        sock, address = arguments
        if sock.family not in _FAMILIES and address is not None:
            _refuse_unless_ours(address[0] if isinstance(address, tuple) else address)
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        _refuse_unless_ours(arguments[0])
    elif event == "socket.getnameinfo":
        _refuse_unless_ours(arguments[0][0])


def _refuse_unless_ours(host: Any) -> None:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str("" if host is None else host)
    if not is_loopback(name):
        raise BoundaryError(
            f"offline: something asked for {name}, which is not this machine",
            f"name only what lies here (127.0.0.1 for a server of your own), or go online: offline=false and {VARIABLE} unset",
        )


def _remote(config: RunConfig) -> Iterator[str]:
    """One line for each key that needs a network."""
    models = {"model.base": config.model.base, "synth.teacher": config.synth.teacher, "synth.judge": config.synth.judge}
    for key, name in models.items():
        revision = config.model.revision if key == "model.base" else None
        if name and _is_hub_id(name) and not _cached(name, revision):
            yield f"{key}: {name} is neither a folder here nor in the Hub's cache; download it before, or give a folder"
    if config.data.hub:
        yield f"data.hub: {config.data.hub} is read from the Hub; save it before (save_to_disk) and set data.path"
    mlflow = config.machine.mlflow or ""
    host = urlsplit(mlflow).hostname if "://" in mlflow and not mlflow.startswith("sqlite:") else None
    if host and not is_loopback(host):
        yield f"machine.mlflow: {host} is another machine; use a folder, or null"
    address = config.machine.gemini.base_url
    for key, text in _texts(config.model_dump(mode="json", include={"evaluate", "synth"}), ""):
        spec = _SPEC.fullmatch(text)
        if not spec:
            continue
        place = spec.group(2) if spec.group(1) == "openai" else address or "https://gemini"
        if not is_loopback(urlsplit(place).hostname or place):
            way = "" if spec.group(1) == "openai" else ", unless machine.gemini.base_url is the emulator's"
            yield f"{key}: {text} is asked over the network{way}"


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every text of a tree with its dotted key; lists go by the key that holds them. Gates only name targets again."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name != "gates":
                yield from _texts(item, f"{key}.{name}" if key else name)


def _is_hub_id(name: str) -> bool:
    return "/" in name and ":" not in name and not Path(name).expanduser().is_dir()


def _cached(repo: str, revision: str | None) -> bool:
    """Whether the Hub's cache on disk holds a snapshot of a model: the folders are read, so that no library is needed."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser() / f"models--{repo.replace('/', '--')}"
    name = revision or "main"
    ref = folder / "refs" / name
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name
    return (folder / "snapshots" / commit / "config.json").exists()
