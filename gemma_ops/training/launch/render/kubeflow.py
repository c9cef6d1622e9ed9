"""A Kubeflow TrainJob (Trainer v2, trainer.kubeflow.org/v1alpha1) on the runtime `torch-distributed`.

The runtime's own torchrun is not used: the pods run gemma-ops, which starts torchrun when data and base are there. Of
what the runtime tells a pod, its number and the first pod's name are read (`PET_NODE_RANK`, `PET_MASTER_ADDR`).
"""

from __future__ import annotations

from typing import Any

from gemma_ops.errors import ConfigError
from gemma_ops.training.launch.render.render_text import yaml_document
from gemma_ops.training.launch.render.resources import Rendering

_MANAGER = "gemma-ops.dev/render"
_AT, _SHM = "/workspace", "/dev/shm"  # noqa: S108 - mounts of the pod


def kubeflow(job: Rendering) -> str:
    """Return the TrainJob's YAML. Raises ConfigError without an image."""
    if not job.image:
        raise ConfigError("a TrainJob runs in a container image", "--set launch.image=<registry/image with gemma-ops>")
    runs = f"machine.runs={_AT}/runs"
    head = [f"export HF_HOME={_AT}/.cache/huggingface"]  # what is fetched once is there for every pod, and the next
    head += ['export GEMMA_OPS_HEAD="$PET_MASTER_ADDR"'] if job.nodes > 1 else []
    script = "\n".join(["set -e", f"cd {_AT}", *head, *job.everywhere("$PET_NODE_RANK", runs)]) + "\n"
    trainer: dict[str, Any] = {
        "image": job.image,
        "command": ["bash", "-c", script],
        "numNodes": job.nodes,
        "numProcPerNode": job.processes,
        "resourcesPerNode": {
            "requests": {"cpu": job.cpus, "memory": f"{job.memory}Gi", "nvidia.com/gpu": job.processes},
            "limits": {"memory": f"{job.memory}Gi", "nvidia.com/gpu": job.processes},
        },
    }
    if job.secrets:
        trainer["env"] = [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": "gemma-ops", "key": name}}} for name in job.secrets
        ]
    pod = {
        "volumes": [
            {"name": "workspace", "persistentVolumeClaim": {"claimName": job.volume}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},  # NCCL's; a pod's own is 64 MiB
        ],
        "containers": [
            {
                "name": "node",
                "volumeMounts": [{"name": "workspace", "mountPath": _AT}, {"name": "shm", "mountPath": _SHM}],
            }
        ],
    }
    replicas = [{"name": "node", "template": {"spec": {"template": {"spec": pod}}}}]
    body = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": f"gemma-ops-{job.name}".lower().replace("_", "-").replace(".", "-")},
        "spec": {
            "runtimeRef": {"name": "torch-distributed"},
            "activeDeadlineSeconds": job.hours * 3600,
            "trainer": trainer,
            "runtimePatches": [
                {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": replicas}}}}
            ],
        },
    }
    shared = "ReadWriteMany, since several pods share it" if job.nodes > 1 else "ReadWriteOnce is enough"
    about = [
        *job.about(),
        f"the claim {job.volume!r} ({shared}; {job.disk} GB) holds this configuration, data and runs at {_AT}",
        *([f"secret `gemma-ops` with the keys {', '.join(job.secrets)}"] if job.secrets else []),
        "GPUs of this kind: add a nodeSelector on nvidia.com/gpu.product if the cluster has several",
    ]
    return yaml_document(about, body)
