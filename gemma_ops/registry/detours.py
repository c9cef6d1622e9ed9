"""Protection against proxies and redirects, by which a request would reach other servers than the one that was
named."""

from __future__ import annotations

import os
import urllib.request
from typing import Any


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Handler that treats a redirect as an error: the server it leads to is not the one that was named."""

    def redirect_request(self, *_: Any) -> None:
        """Refuse to follow a redirect."""


def opener(*, proxies: bool) -> urllib.request.OpenerDirector:
    """Return an opener that follows no redirects, and uses the environment's proxies only where asked to."""
    return urllib.request.build_opener(NoRedirect, *([] if proxies else [urllib.request.ProxyHandler({})]))


def spare_proxies(host: str) -> None:
    """Exempt this machine's own servers from the environment's proxies, in every library: proxies are for connections
    to elsewhere."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if "*" not in known and host not in known:
            os.environ[name] = ",".join([*known, host])
