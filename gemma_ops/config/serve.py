"""The section of serving: how a version is served. Never part of a fingerprint: what is served was made before."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from gemma_ops.config.section import ConfigSection, Privacy
from gemma_ops.family.formats import COARSE_CACHES, FINE_CACHE, CacheName, VersionFormat


class ChallengerConfig(ConfigSection):
    """A version beside the one that serves."""

    alias: str = "challenger"
    """The alias of the same registered model that it follows."""
    share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the requests, from 0 to 1, that it answers."""
    shadow: bool = False
    """Whether it is asked what the version that serves was asked, when it has a slot free, and both answers are kept
    for `gemma-ops serve --compare`; nobody sees its answer."""
    pairs: str = "serving"
    """Folder in which a shadow keeps what was asked with both answers, a private file for each model."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.share > 0) == self.shadow:
            raise ValueError("give a challenger either a share of the requests (share: 0.1) or copies (shadow: true)")
        return self


class ServeConfig(ConfigSection):
    """The server, its engine, and what it takes."""

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs `serve.keys`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """0 takes a free one."""
    format: Literal["auto"] | VersionFormat = "auto"
    """The format that is served; `auto` takes the best quantized file by its verdict, else the merged checkpoint, else
    the adapter on its base."""
    engine: Literal["auto", "llama.cpp", "transformers", "vllm"] = "auto"
    """What runs the weights; `auto` takes llama.cpp for GGUF files, for a merged checkpoint vLLM where
    `serve.vllm_python` names one, else transformers."""
    drafter: Literal["auto", "on", "off"] = "auto"
    """Whether the version's drafter says tokens ahead, in llama.cpp and vLLM; `auto` where it was measured with this
    file and is recommended."""
    vllm_python: str | None = None
    """The Python of the environment that vLLM is installed in, one of its own (`/opt/vllm/bin/python`); null has no
    vLLM."""
    replicas: Annotated[int, Field(ge=1)] = 1
    """Engines of the same file on this machine, each with its slots, that answer as one: if one dies, the others go
    on."""
    slots: Annotated[int, Field(ge=1)] = 4
    """Requests that are answered at once."""
    context: Annotated[int, Field(ge=64)] = 4096
    """Tokens that a prompt and its reply may take together."""
    window_cache: bool = False
    """Whether llama.cpp keeps no more of sliding layers than their window: less memory, but the beginning that prompts
    share is read anew for each."""
    kv_cache: CacheName = "f16"
    """Type of keys and values in llama.cpp's cache: `q8_0` takes about half the memory."""
    max_tokens: Annotated[int, Field(ge=1)] = 1024
    """Tokens of a reply where the client doesn't say; thoughts come on top."""
    queue: Annotated[int, Field(ge=0)] = 64
    """Requests that may wait; more are told to come back (429)."""
    seconds: Annotated[float, Field(gt=0)] = 600.0
    """The longest that one reply may take."""
    limit_mb: Annotated[float, Field(gt=0)] = 16.0
    """The largest request."""
    keys: str | None = None
    """File with a name and the SHA-256 of a key on each line, and what the key may (`rate=60` requests a minute,
    `privacy=local_only`, `budget=5` dollars a day at Gemini); null takes every request, on this machine only."""
    certificate: str | None = None
    """PEM file with the server's certificate and those between it and its root: speaks HTTPS."""
    certificate_key: str | None = None
    """PEM file with the certificate's private key, where that is another file."""
    also_called: tuple[str, ...] = ()
    """Further model names that clients may ask for, such as the one they asked a service for."""
    canary: Literal["required", "reported"] = "required"
    """Whether an engine that doesn't answer as the evaluation recorded is refused, or only told."""
    follow: Annotated[float, Field(ge=0)] = 10.0
    """Seconds between two looks at the alias that is served: a version that it moves to takes over. 0 never looks."""
    challenger: ChallengerConfig | None = None
    """A version that is tried beside the one that serves."""
    routing: str | None = None
    """A routing policy (a file, or `default`): requests for the model `auto` are answered here or by Gemini as it
    says; null routes nothing."""
    privacy: Privacy = "any"
    """The laxest class that a client may declare for a request to `auto`; one whose class neither it nor its key
    declares is `local_only`."""
    routing_log: str | None = None
    """File that every routing decision is written to, without content; null takes `routing.jsonl` in `machine.runs`."""
    traces: Literal["off", "metadata", "full"] = "off"
    """What MLflow keeps of each request: version, lane, tokens, latency and dollars, and with `full` what was asked and
    said. An MLflow elsewhere never gets content that is `local_only` or in which something personal is found."""
    mirror: Annotated[float, Field(ge=0)] = 60.0
    """Seconds between two writes of counts by version and lane to MLflow, for what is registered there; 0 never
    writes."""

    @field_validator("kv_cache", mode="before")
    @classmethod
    def _fine_cache(cls, value: object) -> object:
        if value in COARSE_CACHES:
            raise ValueError(
                f"serve.kv_cache {value} is refused: answers of Gemma 4 with 4-bit keys and values were found to be "
                f"garbage; {FINE_CACHE} takes half the memory and loses nothing that was measured"
            )
        return value
