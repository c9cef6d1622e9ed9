"""The offline guard: no verb opens a socket beyond this machine, whoever asks for one.

`offline: true` in a configuration or `GEMMA_OPS_OFFLINE=1` in the environment. Four layers, so that none has to be
perfect: a configuration that needs something remote is refused before any work, naming the key; libraries are told
through their own variables not to ask; an audit hook of the interpreter refuses what is tried all the same, also
through a socket made or a function imported before; and where the system allows it, the command and all its children
run in a network that holds only loopback (`namespace`), so that the kernel refuses native code and child processes too.

Without the last one, native code that opens sockets by itself is not seen: there the second layer must do (offline, the
Hub's library never calls its Rust downloader). `held_by` says which of the two holds. A run that uses a server on this
machine's own loopback address stays outside, since that server is not in the other network.

A child process inherits the variable, and `gemma_ops/__init__.py` puts the guard up there before anything else runs.
Socket files, kernel sockets and loopback stay open: llama.cpp answers on a socket file, and an emulator or an inference
server of your own may well stand on 127.0.0.1. Proxies are dropped, since one on loopback leads out.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gemma_ops.errors import BoundaryError, ConfigError
from gemma_ops.offline import namespace
from gemma_ops.offline.addresses import database_hosts, is_loopback, loopback_addresses

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
"""Pattern of targets that are asked over a network, as `evaluate.targets` and similar keys spell them."""
_FAMILIES = {getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG") if hasattr(socket, name)}
"""Kinds of sockets that never leave the machine."""
_up = False
_why = "the process was started from Python, or by somebody else's launcher"


def active() -> bool:
    """True if this process is offline. Any value of the variable but an explicit no means yes."""
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


def confine(config: RunConfig, targets: Sequence[str] = (), *, listens: bool = False) -> None:
    """Move this offline command into a network with only loopback, where that can be done; `held_by` says whether it
    was.

    `targets` are named next to the configuration; a command that `listens` stays where it can be reached. Only for a
    process that is ours alone: whoever imports the package keeps the network that it has.
    """
    global _why  # noqa: PLW0603
    asked = [target for target in targets if _SPEC.fullmatch(target)]
    if served := next(iter((*_served_here(config), *asked)), ""):
        _why = f"{served} is a server on this machine, which could not be reached from there"
    elif listens:
        _why = "this command is itself a server, which could not be reached in there"
    else:
        _why = namespace.namespace_refused() or namespace.enter()


def held_by() -> str:
    """Return what refuses connections beyond this machine, in words; empty where nothing does."""
    if not active():
        return ""
    if namespace.inside_namespace():
        return "the kernel: this command and its children run in a network that holds only loopback"
    return f"a guard in Python, which native code and other programs bypass: {_why}"


def prospects() -> str:
    """Return what holds, or would hold, a command to this machine; for `doctor`."""
    why = "" if namespace.inside_namespace() else namespace.namespace_refused()
    how = (
        "the kernel refuses, in a network that holds only loopback (unless a run uses a server on this machine)"
        if not why
        else f"a guard in Python only, which native code and other programs bypass: {why}"
    )
    return f"{'on' if active() else 'off; asked for'}: {how}"


def check_offline(config: RunConfig) -> None:
    """Refuse a configuration that can't run offline. Raises ConfigError with every key that asks for something
    remote."""
    problems = list(_remote(config))
    if problems:
        raise ConfigError(
            "offline, and the configuration asks for something beyond this machine:\n  " + "\n  ".join(problems),
            f"change the keys above, or go online: offline=false and {VARIABLE} unset",
        )


def _before_lookup(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a socket's method so that it looks at the address first."""

    @wraps(method)
    def call(self: socket.socket, *arguments: Any) -> Any:
        given = list(arguments)
        for number, address in enumerate(given):
            # Only an address is a tuple with a port; buffers and ancillary data are not.
            if (
                self.family not in _FAMILIES
                and isinstance(address, tuple)
                and len(address) > 1
                and isinstance(address[1], int)
            ):
                _refuse_unless_ours(address[0])
                given[number] = (_pinned(self.family, address[0]), *address[1:])
        return method(self, *given)

    return call


def _pinned(family: int, host: Any) -> Any:
    """Return the literal loopback address for the name localhost; anything else as it is."""
    if not isinstance(host, str) or host.rstrip(".").lower() != "localhost":
        return host
    six = family == socket.AF_INET6
    found = [address for address in loopback_addresses(host) if (":" in address) == six]
    return found[0] if found else ("::1" if six else "127.0.0.1")


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Check one audited event of the interpreter; it returns at once for all events that open no socket."""
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
            f"name only what is on this machine (127.0.0.1 for a server of your own), or go online: offline=false and "
            f"{VARIABLE} unset",
        )


def _remote(config: RunConfig) -> Iterator[str]:
    """Yield one line for each key that needs a network."""
    models = {"model.base": config.model.base, "synth.teacher": config.synth.teacher, "synth.judge": config.synth.judge}
    models["train.distill.teacher"] = config.train.distill.teacher
    for key, name in models.items():
        revision = config.model.revision if key == "model.base" else None
        if name and _is_hub_id(name) and not _cached(name, revision):
            yield f"{key}: {name} is neither a folder here nor in the Hub's cache; download it before, or give a folder"
    if config.data.hub:
        yield f"data.hub: {config.data.hub} is read from the Hub; save it before (save_to_disk) and set data.path"
    mlflow = config.machine.mlflow or ""
    if mlflow.startswith(("http://", "https://")):
        hosts = [host] if not is_loopback(host := urlsplit(mlflow).hostname or "") else []
    else:
        hosts = database_hosts(mlflow) if "://" in mlflow else []
    if hosts:
        yield f"machine.mlflow: {', '.join(hosts)} is another machine; use a folder, or null"
    meeting = config.launch.rendezvous
    if meeting and config.launch.engine != "local" and not is_loopback(_host(meeting)):
        yield f"launch.rendezvous: {meeting} is not an address of this machine; use one machine, or 127.0.0.1"
    for key, text, place in _asked(config):
        if not is_loopback(urlsplit(place).hostname or place):
            way = ", unless machine.gemini.base_url is the emulator's" if text.startswith("gemini:") else ""
            yield f"{key}: {text} is asked over the network{way}"


def _served_here(config: RunConfig) -> Iterator[str]:
    """Yield the keys that name a server on this machine: it would not be there in another network."""
    mlflow = config.machine.mlflow or ""
    if "://" in mlflow and not mlflow.startswith("sqlite:"):
        yield "machine.mlflow"
    if config.launch.rendezvous and config.launch.engine != "local":
        yield "launch.rendezvous"
    if config.machine.gemini.base_url:
        yield "machine.gemini.base_url"
    yield from (key for key, *_ in _asked(config))
    yield from ("machine.endpoints" for _ in config.machine.endpoints)


def _asked(config: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Yield every target that is asked over HTTP."""
    for key, text in _texts(config.model_dump(mode="json", include={"evaluate", "synth"}), ""):
        spec = _SPEC.fullmatch(text)
        if spec:
            gemini = config.machine.gemini.base_url or "https://gemini"
            yield key, text, spec.group(2) if spec.group(1) == "openai" else gemini


def _host(address: str) -> str:
    """Return the host of `host:port` or `ray://host:port`; a word such as `auto` counts as a host of another
    machine."""
    return urlsplit(address if "://" in address else f"//{address}").hostname or address


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a tree with its dotted key; list items go by the key that holds them. Gates only name targets
    again."""
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
    """True if the Hub's cache on disk holds a snapshot of a model: the folders are read, so that no library is
    needed."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    folder = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser() / f"models--{repo.replace('/', '--')}"
    name = revision or "main"
    ref = folder / "refs" / name
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else name
    return (folder / "snapshots" / commit / "config.json").exists()
