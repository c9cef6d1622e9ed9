"""Which addresses are this machine's own, and which other machines a database's address leads to."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping
from urllib.parse import parse_qs, unquote, urlsplit

from gemma_ops.errors import BoundaryError

_HOSTS, _SERVICES = ("host", "hostaddr"), ("service", "servicefile", "odbc_connect", "read_default_file", "dsn")
"""Parts of a database's address that name a host, and parts that name a file or service which does."""


def is_loopback(host: str) -> bool:
    """True if an address is this machine's own: 127.0.0.0/8, ::1, the unspecified one, or the name localhost.

    Names below localhost are not: who looks them up may be told any address (`loopback_addresses` looks).
    """
    name = _bare(host)
    if name in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False  # a name: looking it up would already ask somebody
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback or address.is_unspecified)


def loopback_addresses(host: str) -> tuple[str, ...]:
    """Return the literal loopback addresses behind a host, to connect to instead of its name; empty for another
    machine.

    Only literal addresses, `localhost` and names below it can be this machine, and a name only if every address that it
    resolves to is a loopback address. Offline, names below localhost can't be looked up, since that may ask a server.
    """
    name = _bare(host)
    if name == "localhost" or name.endswith(".localhost"):
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, BoundaryError):
            return ("127.0.0.1", "::1") if name == "localhost" else ()  # RFC 6761: it needs no looking up
        addresses = tuple(dict.fromkeys(str(item[4][0]) for item in found))
        return addresses if all(map(is_loopback, addresses)) else ()
    if not name or not is_loopback(name):
        return ()
    return ("127.0.0.1" if name == "0.0.0.0" else "::1" if name == "::" else name,)  # noqa: S104


def database_hosts(uri: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the other machines that a database's address leads to, as far as it can be told; empty for a file or a
    local socket.

    PostgreSQL takes several hosts, takes them in the query too, and from the environment where the address names none.
    A service or a file of options may name any host, so it counts as one.
    """
    scheme = uri.partition("://")[0].partition("+")[0]
    if scheme == "sqlite":
        return []
    parts = urlsplit(uri)
    query = parse_qs(parts.query)
    named = [name for name in _SERVICES if query.get(name)]
    hosts = [part.rpartition(":")[0] if ":" in part.rpartition("]")[2] else part for part in _netloc(parts.netloc)]
    hosts += [host for key in _HOSTS for value in query.get(key, ()) for host in value.split(",")]
    if scheme == "postgresql" and not any(hosts) and not named:
        hosts = [host for key in ("PGHOST", "PGHOSTADDR") for host in environment.get(key, "").split(",")]
        named = [key for key in ("PGSERVICE",) if environment.get(key)]
    sockets = [unquote(host).startswith(("/", "@")) for host in hosts]
    found = [host for host, local in zip(hosts, sockets, strict=True) if not local and not is_loopback(host)]
    return found + [f"whatever {name} names" for name in named]


def _netloc(netloc: str) -> list[str]:
    return netloc.rpartition("@")[2].split(",")


def _bare(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()
