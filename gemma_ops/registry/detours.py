"""Ways by which a request would pass others than the server that was named: proxies of the environment, and redirects."""

from __future__ import annotations

import os
import urllib.request
from typing import Any


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A server that sends requests on is not the one that was named: its reply counts as an error."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing."""


def opener(*, proxies: bool) -> urllib.request.OpenerDirector:
    """Opens addresses without following redirects, and through the proxies of the environment only where asked to."""
    return urllib.request.build_opener(NoRedirect, *([] if proxies else [urllib.request.ProxyHandler({})]))


def spare_proxies(host: str) -> None:
    """Keep what goes to a server on this machine from the environment's proxies, in every library: they are for the way out."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if "*" not in known and host not in known:
            os.environ[name] = ",".join([*known, host])
