"""The facts behind a rendered deployment: one version of the registry, pinned by number and digest, and how it is to be
served.

Only the version's small files are read. An alias is looked up once: what is rendered says a number, since none of the
targets can follow an alias with the checks that our own server has.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemma_ops.config import Privacy, RunConfig, ServeConfig
from gemma_ops.errors import ConfigError
from gemma_ops.family.formats import FORMATS, GGUF
from gemma_ops.family.sizes import SIZES
from gemma_ops.offline.addresses import is_loopback
from gemma_ops.planning.devices import GIB
from gemma_ops.planning.kv_cache import kv_bytes
from gemma_ops.planning.serving_bytes import serving_bytes
from gemma_ops.privacy.classes import class_of
from gemma_ops.serving.choosing import choose_format
from gemma_ops.verdicts import VERDICT, Verdict

PORT = 8080
EVERYWHERE = "0.0.0.0"  # noqa: S104 - in a container, which has an address of its own
SCRATCH = "/tmp"  # noqa: S108 - a mount of the container
CACHE = "/var/cache/gemma-ops"
"""Folder in which a container keeps what it pulled."""
KEYS = "/etc/gemma-ops/keys"
"""Path of the file of keys in a container."""
DRAIN = 40
"""Seconds until what still answers is killed: ten more than our server lets requests end in."""
_ROOM, _UNKNOWN = 1.25, 0.5
"""Memory asked for beyond what is counted, as a share; GiB of workspace where the model's shape is not known."""
_OWN = {"host", "port", "keys", "format", "engine", "vllm_python", "slots", "context", "replicas", "follow"}
"""Keys of `serve` that a rendering writes by itself."""
_FILES = ("certificate", "certificate_key", "routing", "routing_log")


@dataclass(frozen=True)
class Deployed:
    """The facts that a deployment's text is made of."""

    name: str
    version: str
    form: str
    """Format that is served, as `FORMATS` names it."""
    sha256: str
    """SHA-256 of the served file; of a checkpoint or an adapter, the digest of the step's artifact that it is."""
    digest: str
    """Digest of the version's manifest."""
    thinking: str
    """Mode of thinking, `off`, `on` or `mixed`; empty where nothing recorded it."""
    answers: Privacy
    """Privacy class of its answers: of the rows that it learned from, or what a person has released them to."""
    verdict: str
    base: str
    size: str | None
    """Size of the base, such as `E4B`."""
    rank: int | None
    """Rank of its adapter."""
    sampling: tuple[tuple[str, Any], ...]
    """Settings of `generation_config.json`."""
    slots: int
    context: int
    replicas: int
    workers: int
    memory: float
    """Bytes that one replica takes."""
    disk: float
    """Bytes of what is pulled."""
    image: str | None
    mlflow: str
    keys: str | None
    sets: tuple[str, ...]
    """Other values that the configuration gives `serve`, for our own server."""
    trusts: bool
    """Whether this machine accepts only what a trusted key signed."""
    made_by: str

    @property
    def source(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def title(self) -> str:
        """Return a name that Kubernetes and systemd take."""
        plain = re.sub(r"[^a-z0-9-]+", "-", self.name.lower()).strip("-")
        return (plain if plain[:1].isalpha() else f"model-{plain}")[:50].strip("-")

    @property
    def gib(self) -> int:
        """Return the memory to ask for, in GiB."""
        return max(1, math.ceil(_ROOM * self.memory / GIB))

    @property
    def disk_gib(self) -> int:
        """Return the disk to ask for, in GiB: what is pulled lies in the cache and in the copy."""
        return max(1, math.ceil(2.2 * self.disk / GIB))

    def labels(self) -> dict[str, str]:
        """Return labels that tell what runs; values as Kubernetes takes them."""
        return {
            "app.kubernetes.io/name": self.title,
            "app.kubernetes.io/version": self.version,
            "app.kubernetes.io/managed-by": "gemma-ops",
            "gemma-ops.dev/format": self.form,
            "gemma-ops.dev/privacy": self.answers,
        }

    def facts(self) -> dict[str, str]:
        """Return the annotations of pods: the digests too, which labels are too short for."""
        return {
            "gemma-ops.dev/source": self.source,
            "gemma-ops.dev/sha256": self.sha256,
            "gemma-ops.dev/manifest": self.digest,
            "gemma-ops.dev/thinking": self.thinking or "not recorded",
            "gemma-ops.dev/verdict": self.verdict or "none",
        }

    def about(self) -> list[str]:
        """Return lines for the head of what is rendered."""
        facts = {name.rpartition("/")[2]: value for name, value in self.facts().items()}
        think = facts["thinking"]
        lines = [
            f"{self.name} version {self.version}, {self.form}, verdict {facts['verdict']}, thinking {think}",
            f"sha256 of what is served {self.sha256}; manifest {self.digest}",
            f"made by gemma-ops {self.made_by} deploy render; another version is rendered anew: no alias is followed",
        ]
        if self.answers == "local_only":
            lines.append(
                "privacy: local_only. It learned rows that may not leave your machines: neither may its answers"
            )
        if self.form == "merged":
            lines.append("vLLM has no canary: ask the questions of the version's canary.json before it takes traffic")
        if self.trusts:
            lines.append(
                "signatures are checked here, and not there: bring the keys, and add --set machine.trusted_keys=…"
            )
        return lines

    def pull(self, folder: str) -> list[str]:
        """Return the command that brings its bytes, each compared with the manifest."""
        return ["gemma-ops", "pull", self.source, "--to", folder, "--only", self.form, *self._registry()]

    def _registry(self) -> list[str]:
        return ["--set", f"machine.mlflow={self.mlflow}"] if self.mlflow else []

    def serve(self, *, host: str, keys: str, port: int = PORT, replicas: int | None = None) -> list[str]:
        """Return our own server's command."""
        sets = [
            f"serve.host={host}", f"serve.port={port}", f"serve.keys={keys}", f"serve.format={self.form}",
            f"serve.slots={self.slots}", f"serve.context={self.context}", f"serve.replicas={replicas or self.replicas}",
            f"machine.workers={self.workers}", f"machine.mlflow={self.mlflow}", *self.sets,
        ]  # fmt: skip
        return ["gemma-ops", "serve", self.source, *(word for item in sets for word in ("--set", item))]


def deployed(asked: str, config: RunConfig, *, wants: Sequence[str]) -> Deployed:
    """Collect what is known of a version. `wants` are the formats that the target runs, the better ones first.

    Raises ConfigError for a source that is no version, for one that lacks these formats, for an image that is not
    pinned, and for settings that can't go along; and what pulling raises.
    """
    from gemma_ops import __version__
    from gemma_ops.registry.fetching import is_small, is_version, pull_version

    if ".gguf@" in asked or not is_version(asked):
        raise ConfigError(
            f"{asked!r} is no registered version, and what is rendered brings its bytes from the registry",
            "register it (gemma-ops run CONFIG), and name NAME/VERSION or NAME@ALIAS",
        )
    _check_image(config.launch.image)
    small = pull_version(config.machine, asked, wanted=is_small)
    subject = small.manifest["subject"]
    verdict = Verdict.read(small.folder / VERDICT) if VERDICT in subject["files"] else None
    form = _form(asked, subject, verdict, config, wants)
    shelf = f"{FORMATS[form].shelf}/"
    weights = sum(file["bytes"] for path, file in subject["files"].items() if path.startswith(shelf))
    settings = config.serve
    place = FORMATS[form].place
    return Deployed(
        name=small.name, version=small.version, form=form,
        sha256=str(subject["files"][place]["sha256"] if form in GGUF else subject[form]["digest"]),
        digest=str(small.manifest["digest"]), thinking=str((subject.get("prompting") or {}).get("thinking", "")),
        answers=class_of((subject.get("privacy") or {}).get("answers")),
        verdict=verdict.verdict if verdict else "", base=str(subject["base"]["id"]), size=subject["base"].get("size"),
        rank=(subject.get("adapter") or {}).get("rank"), sampling=_sampling(small.folder),
        slots=settings.slots, context=settings.context, replicas=settings.replicas,
        workers=config.machine.workers or 4, memory=_memory(subject, verdict, weights, config),
        disk=weights + sum(file["bytes"] for path, file in subject["files"].items() if is_small(path)),
        image=config.launch.image, mlflow=config.machine.mlflow or "", keys=settings.keys,
        sets=_further(settings), trusts=bool(config.machine.trusted_keys), made_by=__version__,
    )  # fmt: skip


def reached_from_elsewhere(job: Deployed, what: str) -> list[str]:
    """Return what a person must know about the registry's address, for containers that are to reach it. Raises
    ConfigError for a folder."""
    if not job.mlflow.startswith(("http://", "https://")):
        raise ConfigError(
            f"{what} can't read the registry in {job.mlflow or 'this folder'}",
            "name a tracking server that it reaches: --set machine.mlflow=https://…",
        )
    if is_loopback(urlsplit(job.mlflow).hostname or ""):
        return [f"{job.mlflow} is this machine's own address: write the one that the containers reach it at"]
    return []


def needed_image(job: Deployed) -> str:
    """Return the image with gemma-ops. Raises ConfigError where none is named."""
    if not job.image:
        raise ConfigError(
            "the container needs an image with gemma-ops in it", "--set launch.image=registry/image:tag, or @sha256:…"
        )
    return job.image


def _further(settings: ServeConfig) -> tuple[str, ...]:
    """Return what a configuration says of the server beyond what a rendering writes. Raises ConfigError for an alias
    next to the version, and for files that lie on this machine."""
    if settings.challenger:
        raise ConfigError("serve.challenger follows an alias, and what is rendered follows none", "leave it out")
    usual, said = ServeConfig().model_dump(mode="json"), settings.model_dump(mode="json")
    found = {key: value for key, value in said.items() if value != usual[key] and key not in _OWN}
    lost = [key for key in _FILES if key in found and found[key] != "default"]
    if lost:
        raise ConfigError(
            f"serve.{lost[0]} is a file on this machine",
            "leave it out here, and add it to what is rendered where the file is there",
        )
    return tuple(f"serve.{key}={json.dumps(value)}" for key, value in found.items())


def _check_image(image: str | None) -> None:
    tag = (image or ":").rpartition("/")[2].partition("@")[0].partition(":")[2]
    if image and "@sha256:" not in image and tag in ("", "latest"):
        raise ConfigError(f"launch.image {image} may be another one tomorrow", "name a tag that stays, or @sha256:…")


def _form(asked: str, subject: Any, verdict: Verdict | None, config: RunConfig, wants: Sequence[str]) -> str:
    """Return the format that is served, of those that the target runs."""
    files = subject["files"]
    there = [name for name in wants if FORMATS[name].place in files]
    if not there:
        raise ConfigError(
            f"{asked} has no {' or '.join(wants)}, which this target needs",
            f"register it: --set register.artifacts=[{wants[0]}], with the step that makes it, "
            f"`{FORMATS[wants[0]].step}`",
        )
    return choose_format(config.serve, there, verdict, asked)


def _memory(subject: Any, verdict: Verdict | None, weights: float, config: RunConfig) -> float:
    """Return the bytes of one replica: as the plan counts them for a known size, else by what the evaluation
    recorded."""
    size, settings = SIZES.get(str(subject["base"].get("size")).upper()), config.serve
    if size:
        kept = settings.window_cache
        return serving_bytes(
            size.shape, weights, slots=settings.slots, context=settings.context, windowed=kept, cache=settings.kv_cache
        ).total
    layers = [(None, one.bytes_per_token) for one in (verdict.kv if verdict else ())]
    return weights + settings.slots * kv_bytes(layers, settings.context) + _UNKNOWN * GIB


def _sampling(folder: Path) -> tuple[tuple[str, Any], ...]:
    """Return the sampling settings of `generation_config.json`, wherever the version keeps it."""
    for place in ("tokenizer", "merged"):
        path = folder / place / "generation_config.json"
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            return tuple((name, found[name]) for name in ("temperature", "top_k", "top_p") if name in found)
    return ()
