"""API keys: a file with a name and the SHA-256 of a key on each line. The keys themselves stand nowhere.

printf %s "$KEY" | sha256sum        makes the second word of a line such as: team-a 9f86d081…
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from pathlib import Path

from starlette.requests import Request

from gemma_ops.errors import ConfigError
from gemma_ops.wire.ask import RefusalError

_LINE = re.compile(r"(?P<name>\S+)\s+(?P<digest>[0-9a-f]{64})")


class Keys:
    """The keys that may ask. Without a file everybody may, which is for this machine only."""

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self._known = known
        """SHA-256 in hex to name."""

    @classmethod
    def read(cls, path: Path | None) -> Keys:
        """Raise ConfigError for a file that is not there, or a line that is no name with a digest."""
        if path is None:
            return cls()
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"serve.keys: {path} can't be read: {error.strerror}", "correct the path") from error
        known: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line.strip())
            if found is None:
                raise ConfigError(
                    f"serve.keys: {path}:{number} is no name with a SHA-256 in hex",
                    'make one: printf %s "$KEY" | sha256sum',
                )
            known[found["digest"]] = found["name"]
        if not known:
            raise ConfigError(f"serve.keys: {path} holds no key", "put a line with a name and a SHA-256 into it")
        return cls(known)

    @property
    def needed(self) -> bool:
        return self._known is not None

    def check(self, request: Request) -> str:
        """The name of the key of a request. Raises RefusalError without a known one."""
        if self._known is None:
            return ""
        bearer = request.headers.get("authorization", "")
        given = bearer[7:] if bearer.lower().startswith("bearer ") else ""
        given = given or request.headers.get("x-goog-api-key", "") or request.query_params.get("key", "")
        digest = hashlib.sha256(given.encode()).hexdigest()
        for known, name in self._known.items():
            if hmac.compare_digest(known, digest):
                return name
        raise RefusalError("a key that this server knows is needed", status=401, code="invalid_api_key")


def is_this_machine(host: str) -> bool:
    """Whether only this machine is meant by, or reached at, a host. 0.0.0.0 is every address there is."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
