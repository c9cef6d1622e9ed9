"""llama.cpp's own server as a process: `python -m gemma_ops.modeling.llamacpp_server`.

It reads its settings as one JSON line, says in one JSON line that it answers or what is wrong, and ends when its input
ends: so it never outlives whoever started it, and since it has no way to stop, that is also how it is stopped. It
listens on a socket file, so that no port is opened.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ServerSettings:
    """Settings that a llama.cpp server is started with."""

    model: str
    """The GGUF file."""
    socket: str
    """Socket file that the server makes."""
    slots: int
    """Prompts that the server answers at once."""
    context: int
    """Tokens that a prompt and its reply may take together, in each slot."""
    threads: int
    windowed: bool = False
    """Whether the KV cache of sliding layers holds their window only."""
    projector: str = ""
    """The mmproj file, for prompts that show something; empty for text alone."""
    image_tokens: int = 0
    """Most soft tokens of an image (`max_soft_tokens`); 0 where the model sees none."""
    drafter: str = ""
    """The drafter's GGUF file; empty for one token at a time."""
    drafted: int = 0
    """Tokens that the drafter says before the model checks them."""
    cache: str = "f16"
    """Type of keys and values."""


class SocketConnection(http.client.HTTPConnection):
    """HTTP connection over a socket file; a reply has no time limit."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def asked_server(path: str, method: str, request: str, body: Any = None) -> Any:
    """Return what a server on the socket file `path` answers, from JSON. Raises OSError where nobody answers, and
    ValueError for an answer that is no JSON."""
    connection = SocketConnection(path)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, request, content, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())
    except http.client.HTTPException as error:
        raise ValueError(f"it broke off: {error}") from error
    finally:
        connection.close()


def tokenized(path: str, text: str) -> list[int]:
    """Return the ids that llama.cpp's own tokenizer gives a text, special tokens recognised, without a `<bos>` put
    before it."""
    body = {"content": text, "add_special": False, "parse_special": True}
    return list(asked_server(path, "POST", "/tokenize", body)["tokens"])


def open_server(library: Any, settings: ServerSettings) -> Any:
    """Start a server of `library` (xllamacpp) and return it. Raises RuntimeError for a file that llama.cpp refuses.

    llama.cpp divides its context among slots, so it is asked for all of them. Sliding layers keep their whole cache, so
    that a prefix can be read again, unless they are `windowed`.
    """
    params = library.CommonParams()
    params.model.path = settings.model
    params.n_ctx = settings.context * settings.slots
    params.n_parallel = settings.slots
    params.hostnames = [settings.socket]
    params.verbosity = -1
    params.warmup = False
    params.ui = False
    params.fit_params = False
    params.cache_ram_mib = 0
    params.swa_full = not settings.windowed
    params.cache_type_k = params.cache_type_v = getattr(library.ggml_type, f"GGML_TYPE_{settings.cache.upper()}")
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.threads
    if settings.projector:
        params.mmproj.path = settings.projector
        params.image_min_tokens = 1
        if settings.image_tokens:
            params.image_max_tokens = settings.image_tokens
            # The tokens of an image see each other, so they are read at once.
            params.n_ubatch = max(params.n_ubatch, settings.image_tokens)
    if settings.drafter:
        params.speculative.types = [library.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
        draft = params.speculative.draft
        draft.mparams.path, draft.n_max = settings.drafter, settings.drafted
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = settings.threads
    server = library.Server(params)
    # llama.cpp answers before its work loop runs, and a server freed before then never ends. `/slots` is answered by
    # that loop, so after it the server may be freed at any time.
    asked_server(settings.socket, "GET", "/slots")
    return server


def llamacpp_main() -> None:
    """Serve until the input ends."""
    settings = ServerSettings(**json.loads(sys.stdin.readline()))
    try:
        import xllamacpp

        server = open_server(xllamacpp, settings)
    except (ImportError, RuntimeError, OSError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        os._exit(1)
    print(json.dumps({"ready": asdict(settings)}), flush=True)
    sys.stdin.read()
    del server
    os._exit(0)


if __name__ == "__main__":
    llamacpp_main()
