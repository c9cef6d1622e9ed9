"""The address and credentials of requests: the only place that builds a client of google-genai.

Nothing is left to the environment but secrets: an address, an API version or a mode set for another program does not
move what is sent here.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gemma_ops.config import GeminiConfig
from gemma_ops.errors import BoundaryError, ConfigError
from gemma_ops.gemini import handshake
from gemma_ops.gemini.transport import client_arguments
from gemma_ops.offline import guard

if TYPE_CHECKING:
    from google.genai import Client

_KEYS = ("GOOGLE_API_KEY", "GEMINI_API_KEY")
_DEVELOPER = "https://generativelanguage.googleapis.com"
_STRAYS = (
    "GOOGLE_GEMINI_BASE_URL", "GOOGLE_VERTEX_BASE_URL", "GOOGLE_GENAI_API_VERSION", "GOOGLE_GENAI_USE_VERTEXAI",
    "GOOGLE_GENAI_USE_ENTERPRISE", "GOOGLE_GENAI_CLIENT_MODE", "GOOGLE_GENAI_REPLAY_ID",
    "GOOGLE_GENAI_REPLAYS_DIRECTORY",
)  # fmt: skip
"""Environment variables by which google-genai would go elsewhere than the configuration says."""


def rehearsal(config: GeminiConfig) -> bool:
    """True if requests go to an emulator of ours on this machine, which proves to be one (see `handshake`): they cost
    nothing and send nothing to anybody. Any other server, on this machine too, counts as the service itself."""
    return bool(config.base_url) and handshake.proves(config.base_url or "")


def endpoint(config: GeminiConfig) -> str:
    """Return the name of who answers, for the store: an answer of an emulator must never stand in for one of Gemini."""
    if rehearsal(config):
        return "rehearsal"
    if config.base_url:
        return config.base_url.rstrip("/")
    return "enterprise" if config.enterprise else "developer"


def check_credentials(config: GeminiConfig) -> None:
    """Raise ConfigError unless there are credentials, and they can be sent."""
    if key := _key():
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                "the key for the Gemini API holds a character that no key has",
                f"copy it again, plain letters and digits, into {' or '.join(reversed(_KEYS))}",
            )
        return
    if config.enterprise:
        if not config.project:
            raise ConfigError(
                "machine.gemini.enterprise needs a Google Cloud project",
                "set machine.gemini.project, or GOOGLE_API_KEY",
            )
        return
    raise ConfigError(
        "no key for the Gemini API in the environment",
        "export GEMINI_API_KEY=… (any word will do for `gemma-ops dev gemini-emulator`)",
    )


def check_offline(config: GeminiConfig) -> None:
    """Raise BoundaryError when the machine is to stay offline and requests would leave it."""
    if rehearsal(config) or not guard.active():
        return
    here = (
        f"; the server at {config.base_url} is not our emulator, and may pass on what it is sent"
        if config.base_url
        else ""
    )
    raise BoundaryError(
        f"offline: nothing may be sent to Gemini{here}",
        "set offline=false and unset GEMMA_OPS_OFFLINE, or rehearse with `gemma-ops dev gemini-emulator`",
    )


def connect_gemini(config: GeminiConfig) -> Client:
    """Make a client with our own timeout and without the library's retries. Opens no connection yet."""
    from google import genai
    from google.genai import types

    for name in _STRAYS:
        os.environ.pop(name, None)
    check_credentials(config)
    address = config.base_url or (None if config.enterprise else _DEVELOPER)
    options = types.HttpOptions(
        base_url=address,
        api_version=None if config.enterprise else "v1",
        timeout=int(config.timeout_seconds * 1000),
        retry_options=types.HttpRetryOptions(attempts=1),
        client_args=client_arguments(address or "", None if config.base_url else _googles),
    )
    if config.enterprise and config.project:
        return genai.Client(
            enterprise=True, project=config.project, location=config.location or "global", http_options=options
        )
    return genai.Client(enterprise=config.enterprise, api_key=_key(), http_options=options)


def _googles(host: str) -> bool:
    """True if a host is Google's own: its API says where uploads go, and a multi-region where the enterprise API is."""
    return host.endswith(".googleapis.com")


def _key() -> str | None:
    return next((value for name in _KEYS if (value := os.environ.get(name, "").strip())), None)
