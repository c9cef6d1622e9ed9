"""A SkyPilot task: `sky launch job.yaml`, or `sky jobs launch job.yaml`, which replaces machines that are taken
away."""

from __future__ import annotations

import shlex
from typing import Any

from gemma_ops.training.launch.render.render_text import yaml_document
from gemma_ops.training.launch.render.resources import Rendering

_NAMES = {
    "l4": "L4",
    "a10": "A10",
    "rtx-3090": "RTX3090",
    "rtx-4090": "RTX4090",
    "rtx-5090": "RTX5090",
    "a100-40": "A100",
    "l40s": "L40S",
    "a100-80": "A100-80GB",
    "h100": "H100",
    "rtx-pro-6000": "RTXPRO6000S",
    "h200": "H200",
    "b200": "B200",
    "t4": "T4",
}
"""SkyPilot's names of the GPUs in `devices.DEVICES`."""
_RUNS = "/workspace/runs"


def skypilot(job: Rendering) -> str:
    """Return the task's YAML. The run folder outlives the machine: a bucket for one machine, a shared volume for
    several."""
    resources: dict[str, Any] = {
        "accelerators": f"{_NAMES[job.gpu.key]}:{job.processes}",
        "cpus": f"{job.cpus}+",
        "memory": f"{job.memory}+",
        "disk_size": max(job.disk, 64),
    }
    if job.image:
        resources["image_id"] = f"docker:{job.image}"
    body: dict[str, Any] = {"name": f"gemma-ops-{job.name}", "workdir": ".", "resources": resources}
    if job.nodes > 1:
        body["num_nodes"] = job.nodes
        body["volumes"] = {"/workspace": job.volume}
    else:
        body["file_mounts"] = {_RUNS: {"name": job.volume, "mode": "MOUNT_CACHED"}}
    if job.secrets:
        body["secrets"] = dict.fromkeys(job.secrets)  # null: given on the command line, --secret NAME
    if not job.image:
        body["setup"] = f"pip install {shlex.quote(f'gemma-ops[gpu]=={job.version}')}\n"
    head = []
    if job.nodes > 1:
        head = [
            "export HF_HOME=/workspace/.cache/huggingface",
            'export GEMMA_OPS_HEAD="$(echo "$SKYPILOT_NODE_IPS" | head -n 1)"',
        ]
    lines = ["set -e", *head, *job.everywhere("$SKYPILOT_NODE_RANK", f"machine.runs={_RUNS}")]
    body["run"] = "\n".join(lines) + "\n"
    about = [*job.about(), f"about {job.hours} h at most; stop it when it is done: sky launch --down"]
    about += [f"sky launch … {' '.join(f'--secret {name}' for name in job.secrets)}"] if job.secrets else []
    return yaml_document(about, body)
