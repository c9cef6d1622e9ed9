"""Resources that a rendered job asks of a cluster: GPUs, memory, disk and hours, as `gemma-ops plan` says, and the
command it runs."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from gemma_ops.config import RunConfig
from gemma_ops.errors import ConfigError
from gemma_ops.family.formats import DEFAULT_FORMATS, GGUF, REFERENCE
from gemma_ops.planning import devices, training_plan
from gemma_ops.planning.devices import GIB, Device
from gemma_ops.planning.training_plan import TrainingPlan

_PORT = 29500
_HEAD = "GEMMA_OPS_HEAD"
"""Shell variable with the address of the first machine, in rendered jobs."""
_SHARDED = ("weights", "adapter")
"""Kinds of memory that FSDP spreads over the processes."""
_CPUS, _LEAST_MEMORY, _SYSTEM_DISK = 8, 32, 40
"""Cores for each GPU; GiB of main memory at least; GB for system and packages."""
_COPIES = math.ceil(2 + sum(GGUF[name].bits for name in (REFERENCE, *DEFAULT_FORMATS)) / 16)
"""bf16 sizes of a model on disk in a whole run: fetched, merged, and as GGUF in the default formats."""
_MARGIN = 3.0
"""Factor on the hours that the plan expects, whose speed is right within a factor of about two."""


@dataclass(frozen=True)
class Rendering:
    """The facts that a job's text is made of."""

    name: str
    configs: tuple[str, ...]
    sets: tuple[str, ...]
    verb: str
    nodes: int
    processes: int
    gpu: Device
    fits: str
    """The plan's verdict on one process on this GPU: `yes`, `tight` or `no`."""
    cpus: int
    """CPU cores of a machine."""
    memory: int
    """Main memory of a machine, in GiB."""
    disk: int
    """Disk of a machine, in GB."""
    hours: int
    secrets: tuple[str, ...]
    """Names of environment variables that hold secrets the run needs."""
    image: str | None
    volume: str
    version: str

    def command(self, verb: str, *sets: str) -> str:
        """Return a command line of gemma-ops with this job's configuration and settings."""
        given = [f"--set {shlex.quote(item)}" for item in self.sets]
        return " ".join(
            ["gemma-ops", verb, *map(shlex.quote, self.configs), *given, *[f"--set {item}" for item in sets]]
        )

    def train(self, engine: str = "torchrun", *more: str) -> str:
        """Return the command of the first machine."""
        return self.command(self.verb, *self._launch(engine), *more)

    def join(self, *more: str) -> str:
        """Return the command of the other machines."""
        return self.command("launch join", *self._launch("torchrun"), *more)

    def everywhere(self, rank: str, *more: str) -> list[str]:
        """Return shell lines that run on every machine; `rank` is the shell's word for a machine's number, from 0."""
        if self.nodes == 1:
            return [self.train("torchrun", *more)]
        return [
            f'if [ "{rank}" = 0 ]; then',
            f"  {self.train('torchrun', *more)}",
            "else",
            f"  {self.join(*more)}",
            "fi",
        ]

    def _launch(self, engine: str) -> list[str]:
        keys = [f"launch.engine={engine}", f"launch.processes={self.processes}"]
        if self.nodes > 1:
            meeting = "auto" if engine == "ray" else f'"${_HEAD}":{_PORT}'
            keys += [f"launch.nodes={self.nodes}", f"launch.rendezvous={meeting}"]
        elif engine == "ray":
            keys.append("launch.rendezvous=auto")
        return keys

    def about(self) -> list[str]:
        """Return two lines for the head of a job: what it was made from."""
        verdict = {"yes": "fits", "tight": "may just fit", "no": "does NOT fit"}[self.fits]
        return [
            (
                f"{self.name}: {self.nodes} x {self.processes} {self.gpu.name}; one process {verdict}, says "
                f"`gemma-ops plan`"
            ),
            (
                f"made by gemma-ops {self.version} launch render; a killed job that is started again goes on from its "
                f"checkpoint"
            ),
        ]


def rendering(config: RunConfig, configs: Sequence[str], sets: Sequence[str], *, verb: str = "train") -> Rendering:
    """Return what a configuration asks for. `configs` and `sets` are the command line's, for the job's own.

    Raises ConfigError for an unknown GPU.
    """
    from gemma_ops import __version__

    launch = config.launch
    workers = launch.processes * launch.nodes
    shards = workers if launch.strategy == "fsdp" else 1
    gpu, plan, fits = _pick(config, launch.gpu, shards)
    whole = 2 * training_plan.resolve_base(config.model.base)[0].counts().total / GIB
    # Before FSDP cuts a model that is not quantized, every process reads all of it into main memory.
    copies = launch.processes if launch.strategy == "fsdp" and config.train.weights != "nf4" else 1
    return Rendering(
        name=config.name,
        configs=tuple(configs),
        sets=tuple(item for item in sets if not item.startswith("launch.")) + tuple(_kept(sets)),
        verb=verb,
        nodes=launch.nodes,
        processes=launch.processes,
        gpu=gpu,
        fits=fits,
        cpus=_CPUS * launch.processes,
        memory=max(_LEAST_MEMORY, math.ceil(whole * max(1.5, 1.1 * copies) + 16)),
        disk=_SYSTEM_DISK + math.ceil(_COPIES * whole * GIB / 1e9 + 10),
        hours=math.ceil(launch.hours or _hours(plan, workers)),
        secrets=_secrets(config, verb),
        image=launch.image,
        volume=launch.volume,
        version=__version__,
    )


def _kept(sets: Sequence[str]) -> list[str]:
    """Return the settings of `launch` that a job does not set by itself."""
    own = ("launch.engine", "launch.processes", "launch.nodes", "launch.rendezvous")
    shown = ("launch.gpu", "launch.image", "launch.volume", "launch.hours")  # have done their part here
    return [item for item in sets if item.startswith("launch.") and not item.startswith((*own, *shown))]


def _pick(config: RunConfig, key: str | None, shards: int) -> tuple[Device, TrainingPlan, str]:
    """Return the GPU asked for, else the cheapest of a data centre's on which the plan fits, else the largest."""
    if key:
        device = devices.get_device(key)
        if not device.cuda:
            raise ConfigError("launch.gpu is a CPU", "name a GPU, or leave it out")
        plan = training_plan.measure_plan(config, device)
        return device, plan, _fits(plan, shards)
    rented = [device for device in devices.DEVICES.values() if device.bf16 and not device.key.startswith("rtx-")]
    plans = {device.key: training_plan.measure_plan(config, device) for device in rented}
    fitting = [device for device in rented if _fits(plans[device.key], shards) == "yes"]
    chosen = min(fitting, key=lambda device: device.dollars or math.inf) if fitting else rented[-1]
    return chosen, plans[chosen.key], _fits(plans[chosen.key], shards)


def _fits(plan: TrainingPlan, shards: int) -> str:
    """Return the plan's verdict for one of several processes among which FSDP spreads the model.

    A 4-bit model is quantized on the device before it is spread, so it must fit there whole once.
    """
    saved = sum(part.bytes for part in plan.parts if part.kind in _SHARDED) * (1 - 1 / shards)
    quantized = any(part.dtype == "nf4" for part in plan.parts)
    once = sum(part.bytes for part in plan.parts if part.kind == "weights") if quantized else 0.0
    room, need = plan.device.memory * GIB, max(plan.total - saved, once)
    return "yes" if need + plan.spread <= room else "tight" if need <= room else "no"


def _hours(plan: TrainingPlan, workers: int) -> float:
    if plan.per_million or plan.seconds is None:
        return 24.0  # neither steps nor data say how much there is to do
    return max(1.0, _MARGIN * plan.seconds / 3600 / workers)


def _secrets(config: RunConfig, verb: str) -> tuple[str, ...]:
    """Return the variables that hold keys for what the configuration names: the Hub, Gemini, endpoints, a tracking
    server."""
    asked = {"synth"} if verb == "train" else {"synth", "evaluate"}
    text = json.dumps(config.model_dump(mode="json", include=asked))
    wanted = {
        "HF_TOKEN": "/" in config.model.base and not config.model.base.startswith((".", "/", "~")),
        "GEMINI_API_KEY": '"gemini:' in text,
        "MLFLOW_TRACKING_TOKEN": (config.machine.mlflow or "").startswith("http"),
    }
    keys = [endpoint.api_key_env for endpoint in config.machine.endpoints if endpoint.api_key_env]
    return tuple([name for name, needed in wanted.items() if needed] + keys)
