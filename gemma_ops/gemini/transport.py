"""HTTP clients that send what they are given to one place, and nowhere else.

What goes to this machine goes to a literal loopback address that was looked up once: a name can't lead elsewhere later,
and a proxy of the environment is left aside. What goes elsewhere may pass a proxy, which is for the way out. No client
follows a redirect: it would carry the body, and often the key, to an address that nobody named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx2

from gemma_ops.errors import BoundaryError
from gemma_ops.offline.addresses import loopback_addresses


class PinnedTransport(httpx2.BaseTransport):
    """Sends to given addresses, the first that answers, whatever name a request has."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses
        self._inner = httpx2.HTTPTransport(retries=0)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; raises what the last address raised when none can be connected to."""
        name, refused = request.url.host, None
        for address in self._addresses:
            request.url = request.url.copy_with(host=address)
            request.extensions = {**request.extensions, "sni_hostname": name}
            try:
                return self._inner.handle_request(request)
            except httpx2.ConnectError as error:
                refused = error
        raise refused or httpx2.ConnectError(f"{name} has no address on this machine")

    def close(self) -> None:
        self._inner.close()


def client_arguments(url: str, hosts: Callable[[str], bool] | None = None) -> dict[str, Any]:
    """Return arguments that make an `httpx2.Client` keep to the place at `url`; `hosts` says which others belong to it.

    Raises BoundaryError from a request when the server redirects, or names another host for what follows.
    """
    parts = urlsplit(url)
    place = parts.hostname or ""
    addresses = loopback_addresses(place)
    default = {"http": 80, "https": 443}
    port = parts.port or default.get(parts.scheme)

    def stay(request: httpx2.Request) -> None:
        host = request.url.host.strip("[]")
        same = host in (place, *addresses) and (request.url.port or default.get(request.url.scheme)) == port
        if not same and not (hosts and hosts(host)):
            raise BoundaryError(
                f"{place} redirects a request to {request.url.netloc.decode()}, which nobody named; it was not sent",
                "give the address of a server that takes requests itself",
            )

    arguments: dict[str, Any] = {
        "follow_redirects": False,
        "event_hooks": {"request": [stay], "response": [_refuse_redirect]},
    }
    if addresses:
        arguments |= {"transport": PinnedTransport(addresses), "trust_env": False}
    return arguments


def _refuse_redirect(response: httpx2.Response) -> None:
    if not 300 <= response.status_code < 400:
        return
    target = urlsplit(response.headers.get("location", ""))
    place = f"{target.scheme}://{target.netloc}" if target.netloc else "another address"
    raise BoundaryError(
        f"{response.request.url.host} answers {response.status_code}, which sends requests on to {place}; that is "
        f"never followed",
        "give the address that answers itself, if it may see the rows",
    )
