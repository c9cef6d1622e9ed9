"""Where and how fast it runs, what may leave the machine, and what it may cost. Never part of a fingerprint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from gemma_ops.config.endpoints import EndpointConfig
from gemma_ops.config.gemini import GeminiConfig
from gemma_ops.config.launch import LaunchConfig
from gemma_ops.config.release import ReleaseConfig
from gemma_ops.config.section import ConfigSection, Share


class MachineConfig(ConfigSection):
    """Where it runs. Never part of a fingerprint: changing it redoes nothing."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU when there is one."""
    ple: Literal["auto", "device", "host"] = "auto"
    """Where the per-layer embedding table lies (E2B, E4B): `host` looks rows up in main memory, to the same result;
    `auto` takes the host where the device is a GPU."""
    runs: str = "runs"
    """Folder that holds the run folders."""
    mlflow: str | None = "mlflow"
    """A folder (one database and the artifacts in it), an `http(s)://` or database URI, or null for no tracking."""
    experiment: str = "gemma-ops"
    """MLflow experiment."""
    eval_batch: Annotated[int, Field(ge=1)] = 16
    """Prompts answered at a time."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Threads for the CPU; null takes one for a model under 100 MB, which waits longer than it computes, else all
    cores."""
    ledger: str | None = None
    """File that holds what was spent and the answers that were paid for; null takes `gemini.sqlite` in `machine.runs`;
    a rehearsal keeps its own beside it."""
    dollars_per_hour: Annotated[float, Field(ge=0)] | None = None
    """What this machine costs an hour, for dollars per 1,000 items; null takes the device's list price, if it has
    one."""
    utilisation: Annotated[Share, Field(gt=0)] = 0.5
    """Share of its hours the machine would be busy: an idle hour costs as much as a busy one."""
    signing_key: str | None = None
    """Private key that registered versions are signed with: a PEM file of an elliptic curve, or the `pkcs11:` URI of a
    token; passphrase or PIN is read from `GEMMA_OPS_SIGNING_PASSPHRASE`. Null signs nothing."""
    trusted_keys: tuple[str, ...] = ()
    """Public keys, as PEM files; with any, `promote`, `rollback`, `pull` and `serve` take only what one of them
    signed."""
    endpoints: tuple[EndpointConfig, ...] = ()
    """OpenAI-compatible endpoints that need a key, have a price, or may see private rows."""
    gemini: GeminiConfig = GeminiConfig()

    @field_validator("signing_key")
    @classmethod
    def _without_pin(cls, key: str | None) -> str | None:
        if key and key.startswith("pkcs11:") and "pin-value=" in key:
            raise ValueError(
                "machine.signing_key carries the token's PIN: leave pin-value out, and set GEMMA_OPS_SIGNING_PASSPHRASE"
            )
        return key


class Machine(MachineConfig):
    """What a step is told about where it runs: the section `machine`, with `launch` and `release` beside it. A run
    makes it; YAML can't."""

    launch: LaunchConfig = LaunchConfig()
    release: ReleaseConfig = ReleaseConfig()
