"""The torchrun line, and a Slurm script."""

from __future__ import annotations

import shlex
from pathlib import Path

from gemma_ops.config import LaunchConfig
from gemma_ops.training.launch import launch_engines
from gemma_ops.training.launch.render.resources import Rendering


def render_torchrun(job: Rendering) -> str:
    """Return a shell script for one machine, or for each of several, and the line that it comes to."""
    launch = LaunchConfig(
        engine="torchrun",
        processes=job.processes,
        nodes=job.nodes,
        rendezvous="$GEMMA_OPS_HEAD:29500" if job.nodes > 1 else None,
    )
    line = [
        "python",
        *launch_engines.torchrun_command(launch, job.name),
        "-m",
        "gemma_ops.training.launch.worker",
        "job.json",
    ]
    several = [
        "# On every machine, with the folder of this configuration and its runs shared under one path:",
        "#   export GEMMA_OPS_HEAD=<name of the first machine> NODE_RANK=<0, 1, …>",
    ]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *[f"# {line}" for line in job.about()],
            *(several if job.nodes > 1 else []),
            "set -euo pipefail",
            *_needs(job),
            *job.everywhere("$NODE_RANK"),
            "# which prepares the data, takes the run's lock, and then starts",
            f"#   {' '.join(line)}",
            "",
        ]
    )


def slurm(job: Rendering) -> str:
    """Return a batch script: one task a machine, which starts its processes itself. Put back into the queue, it goes
    on."""
    options = [
        f"--job-name=gemma-ops-{job.name}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={job.gpu.key.partition('-')[0]}:{job.processes}",
        f"--cpus-per-task={job.cpus}",
        f"--mem={job.memory}G",
        f"--time={job.hours}:00:00",
        "--requeue",
        "--open-mode=append",
        f"--output=gemma-ops-{job.name}-%j.log",
    ]
    head = (
        ['export GEMMA_OPS_HEAD="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"']
        if job.nodes > 1
        else []
    )
    body = "\n".join(job.everywhere("$SLURM_NODEID"))
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *[f"#SBATCH {option}" for option in options],
            *[f"# {line}" for line in job.about()],
            f"# About {job.disk} GB of disk. Names of GPU types differ from site to site: `sinfo -o %G` shows yours.",
            "set -euo pipefail",
            *_needs(job),
            *head,
            f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(body)}",
            "",
        ]
    )


def _needs(job: Rendering) -> list[str]:
    """Return lines that stop at once where a key that will be needed is not there; its value stays in the
    environment."""
    return [f': "${{{name}:?must be in the environment}}"' for name in job.secrets]


def outside(configs: tuple[str, ...]) -> list[str]:
    """Return configurations that lie outside the working folder, which no job would find."""
    here = Path.cwd()
    paths = [Path(text) for text in configs if Path(text).exists()]
    return [str(path) for path in paths if here not in path.absolute().parents]
