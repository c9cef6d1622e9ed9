"""The proof that an emulator of ours is one: a rehearsal costs nothing and sends nothing to anybody, so an address
alone is not enough.

Whoever listens on a loopback port may pass requests on to the real service. So the client sends a random word, and only
a server that answers it under a key which processes of this user on this machine can read is an emulator. Anything else
counts as the service itself, with its terms, its budget and its ledger.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import os
import secrets
import stat
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from gemma_ops.offline.addresses import loopback_addresses

PATH = "/gemma-ops/emulator"
_SECONDS = 2.0
_proven: set[str] = set()


def proves(url: str) -> bool:
    """True if an emulator of ours listens at an address. Nothing but a random word is sent.

    One that proved itself before and is gone now still counts: then nobody is there to be told anything. Whoever
    answers in its place must prove itself again.
    """
    parts = urlsplit(url)
    word = secrets.token_hex(16)
    if parts.scheme != "http" or not (key := _key()):
        return False
    for address in loopback_addresses(parts.hostname or ""):
        connection = http.client.HTTPConnection(address, parts.port or 80, timeout=_SECONDS)
        with contextlib.suppress(ConnectionRefusedError), contextlib.closing(connection):
            if _said(connection, word) == _proof(key, word):
                _proven.add(url)
                return True
            _proven.discard(url)
            return False
    return url in _proven


def _said(connection: http.client.HTTPConnection, word: str) -> str:
    """Return a server's reply to a challenge; nothing where it replies something else than 200. Raises
    ConnectionRefusedError."""
    try:
        connection.request("GET", f"{PATH}?word={word}")
        answer = connection.getresponse()
        said = answer.read(200).decode("ascii", "replace").strip()
    except ConnectionRefusedError:
        raise
    except (OSError, http.client.HTTPException):
        return ""
    return said if answer.status == 200 else ""


def answer_challenge(path: str) -> str | None:
    """Return an emulator's reply to a request for `PATH`; None for any other path, or where no key can be kept."""
    parts = urlsplit(path)
    word = parse_qs(parts.query).get("word", [""])[0]
    key = _key() if parts.path == PATH and word else None
    return _proof(key, word) if key else None


def _proof(key: bytes, word: str) -> str:
    return hmac.new(key, word.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _key() -> bytes | None:
    """Return the key of this user on this machine, made on first use; None where no private file can be kept."""
    folder = Path(tempfile.gettempdir()) / f"gemma-ops-{os.getuid()}"
    file = folder / "emulator.key"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        for place in (folder, file):
            if place.exists() and (place.is_symlink() or not _ours_alone(place)):
                return None
        if not file.exists():
            made = folder / f"emulator.{secrets.token_hex(8)}"
            made.touch(mode=0o600)
            made.write_bytes(secrets.token_bytes(32))
            with contextlib.suppress(FileExistsError):
                os.link(made, file)  # whole or not at all, and never over another's
            made.unlink()
        return file.read_bytes()
    except OSError:
        return None


def _ours_alone(place: Path) -> bool:
    found = place.lstat()
    return found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077
