"""The section of the machine: where and how fast it runs, what may leave it, and what it may cost. Never part of a
fingerprint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gemma_ops.config.gemini import GeminiConfig
from gemma_ops.config.section import ConfigSection, Privacy, Share


class EndpointConfig(ConfigSection):
    """What is known of one endpoint. An endpoint that isn't listed has no key and no prices; on this machine it may see
    every row, elsewhere only rows of class `any`."""

    url: str
    """Its base address, as it stands in a target: `https://llm.example.com/v1`."""
    privacy: Privacy = "any"
    """The strictest class it may see: `local_only` for a server of your own, `paid` where terms protect the rows."""
    learned: Privacy | None = None
    """Strictest class of the rows that its model learned from: `any` for a stock model. Null takes `privacy`: who may
    see private rows may have learned them."""
    api_key_env: str | None = None
    """Environment variable that holds the key; the key itself is never written down."""
    dollars_in: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million prompt tokens; null is unknown, and unknown is told."""
    dollars_out: Annotated[float, Field(ge=0)] | None = None
    """US dollars per million tokens of the reply."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest wait for the next piece of a reply."""
    limit_key: Literal["auto", "max_tokens", "max_completion_tokens"] = "auto"
    """How it wants the longest answer called. `auto` begins with max_tokens and follows a refusal that names the
    other."""
    temperature: Literal["auto", "sent", "left_out"] = "auto"
    """Whether a temperature is sent. `auto` sends 0, and leaves it out where the server refuses it: its answers are
    then drawn at random, and `evaluate.repeats` says how much they differ."""
    think_blocks: Literal["text", "apart"] = "text"
    """Where a reply's leading `<think>…</think>` belongs: to the text that is scored, or stored apart as its
    thought."""


class LaunchConfig(ConfigSection):
    """One process by default; several share each optimizer step and reach the same result up to rounding."""

    engine: Literal["local", "torchrun", "ray"] = "local"
    """Who starts the processes of a training: `local` trains in this one; the others replace workers that die."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes a machine: one a GPU."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Machines, which see the run folder, the base and the data under the same paths."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` holds the model on each process; `fsdp` spreads its parameters over them."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often a killed worker is replaced; training goes on from the last checkpoint."""
    rendezvous: str | None = None
    """Where several machines meet: `host:port` on the first one for `torchrun`, the address of a running cluster for
    `ray`; null is this machine."""
    gpu: str | None = None
    """GPU a rendered job asks for, as `gemma-ops plan --device` spells it; null takes the cheapest on which the plan
    fits."""
    image: str | None = None
    """Container image with gemma-ops in it, for a rendered job or deployment that runs in one."""
    volume: str = "gemma-ops"
    """Claim of the volume with configurations, data and runs that every pod of a rendered TrainJob mounts at
    `/workspace`."""
    hours: Annotated[float, Field(gt=0)] | None = None
    """Time limit of a rendered job; null takes three times what the plan says."""


class ReleaseConfig(ConfigSection):
    """A release of the answers of this run's models. The rows themselves stay what they are: it says that a model
    trained on them may answer before judges and services all the same. Never part of a fingerprint; recorded wherever
    it counts."""

    to: Literal["paid", "any"] | None = None
    """How far answers of models that learned from stricter rows may go; null keeps them where those rows may be."""
    reason: str = ""
    """Who decided it and why; it stands in verdicts, judges' reports, manifests and cards."""

    @model_validator(mode="after")
    def _told(self) -> ReleaseConfig:
        if self.to and len(self.reason.strip()) < 8:
            raise ValueError("release.to needs release.reason: who decided that these models may be shown, and why")
        if self.reason and not self.to:
            raise ValueError("release.reason stands alone: set release.to to paid or any")
        return self


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
    """Threads for the CPU, and processes of `prepare` for more than 2,000 rows; null takes one thread for a model under
    100 MB, which waits longer than it computes, else all cores, and a process a core, at most eight."""
    ledger: str | None = None
    """File that holds what was spent and the answers that were paid for; null takes `gemini.sqlite` in `machine.runs`;
    a rehearsal keeps its own beside it."""
    tools: str | None = None
    """Folder of the tools' environments (`gemma-ops tools install`); null takes `GEMMA_OPS_TOOLS`, else `tools` in the
    cache (`GEMMA_OPS_CACHE`, else `~/.cache/gemma-ops`)."""
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
