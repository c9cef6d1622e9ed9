"""The command that starts a job's processes, and their environment. Nothing is started here."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from gemma_ops.config import LaunchConfig
from gemma_ops.offline.addresses import is_loopback
from gemma_ops.training.launch import watch

_WORKER, _RAY = "gemma_ops.training.launch.worker", "gemma_ops.training.launch.raydriver"
_OTHERS = (
    "ACCELERATE_",
    "FSDP_",
    "PET_",
    "TORCHELASTIC_",
    "RANK",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "WORLD_SIZE",
    "MASTER_",
)
"""Prefixes of variables by which somebody else's launcher would reach into our processes."""


def launch_command(launch: LaunchConfig, file: Path, name: str) -> list[str]:
    """Return the command line for the job in `file`; `name` is what the agents of several machines know each other
    by."""
    if launch.engine == "ray":
        return [sys.executable, "-m", _RAY, str(file)]
    return [sys.executable, *torchrun_command(launch, name), "-m", _WORKER, str(file)]


def torchrun_command(launch: LaunchConfig, name: str) -> list[str]:
    """Return torchrun's own arguments. On one machine its processes meet on the loopback address, at a free port."""
    return [
        "-m",
        "torch.distributed.run",
        f"--nnodes={launch.nodes}",
        f"--nproc-per-node={launch.processes}",
        f"--max-restarts={launch.restarts}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={'127.0.0.1:0' if launch.nodes == 1 else launch.rendezvous}",
        f"--rdzv-id={name}",
        *(["--local-addr=127.0.0.1"] if _here_alone(launch) else []),
    ]


def _here_alone(launch: LaunchConfig) -> bool:
    """True if all processes are on this machine: then a host name that leads nowhere must not matter."""
    if launch.rendezvous is None or (launch.engine == "torchrun" and launch.nodes == 1):
        return launch.nodes == 1
    host = launch.rendezvous.rpartition(":")[0]
    return bool(host) and is_loopback(host)


def environment(launch: LaunchConfig, threads: int | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment that the processes inherit. `threads` are those of this machine that its processes share;
    None is every core."""
    kept = {key: value for key, value in given.items() if not key.startswith(_OTHERS)}
    own = max(1, (threads or os.cpu_count() or 1) // launch.processes)
    if threads is None and given.get("OMP_NUM_THREADS", "").isdigit():
        own = int(given["OMP_NUM_THREADS"])  # somebody has decided
    quiet = {
        "OMP_NUM_THREADS": str(own),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # torch 2.13 keeps one store for all lives of the workers: new ones would look for the dead at the addresses
        # left in it, and wait for an hour. So each life gets a store of its own, held by its first worker.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "PYTHONSAFEPATH": "1",  # a folder called `datasets` where the run was started is not a library
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    paths = _import_paths(kept.pop("PYTHONPATH", None))
    if paths:
        kept["PYTHONPATH"] = os.pathsep.join(paths)
    if _here_alone(launch) and sys.platform == "linux":
        quiet["GLOO_SOCKET_IFNAME"] = "lo"
    return {**kept, **quiet, **watch.marked_environment()}


def _import_paths(given: str | None) -> list[str]:
    """Return where the processes find this very code: they start by module name, from wherever the run was started."""
    root = str(Path(__file__).parents[3])
    paths = [path for path in (given or "").split(os.pathsep) if path]
    installed = root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    return paths if installed or root in paths else [root, *paths]
