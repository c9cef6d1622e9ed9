"""A Kubernetes Deployment with its Service: our own server for GGUF files, vLLM for a merged checkpoint.

An init container brings the bytes; the pod is ready once the canary has sung (`/ready`), and has time to answer what it
took when it ends. Secrets are named, never made: keys of clients, and the registry's user.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.family.formats import GGUF
from gemma_ops.serving.render import vllm
from gemma_ops.serving.render.rendering import (
    CACHE,
    DRAIN,
    EVERYWHERE,
    KEYS,
    PORT,
    SCRATCH,
    Deployed,
    needed_image,
    reached_from_elsewhere,
)
from gemma_ops.training.launch.render.render_text import yaml_document

WANTS = (*GGUF, "merged")
_USER = 10_001
_REGISTRY = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""Environment variables that name the registry's user, where it asks for one."""
SEALED: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""Security settings of a container: it may do nothing but its work."""
POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def kubernetes(job: Deployed) -> str:
    """Return both documents. Raises ConfigError without an image, and for a registry that no pod reaches."""
    notes = reached_from_elsewhere(job, "a pod")
    own = job.form in GGUF
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": DRAIN,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "initContainers": [pulling(job)],
        "containers": [_server(job) if own else _vllm(job)],
        "volumes": _volumes(job, own=own),
    }
    labels = job.labels()
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": job.title, "labels": labels},
        "spec": {
            "replicas": job.replicas,
            "selector": {"matchLabels": {"app.kubernetes.io/name": job.title}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels, "annotations": job.facts()}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.title, "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "selector": {"app.kubernetes.io/name": job.title},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }
    about = [*job.about(), *notes, *_secrets(job, own=own)]
    return yaml_document(about, deployment) + "---\n" + yaml_document([], service)


def pulling(job: Deployed) -> dict[str, Any]:
    """Return the init container that brings the bytes, each compared with the manifest: one that differs ends the
    pod."""
    return {
        "name": "pull",
        "image": needed_image(job),
        "workingDir": SCRATCH,
        "command": job.pull(f"{CACHE}/{job.title}-{job.version}"),
        "env": [
            {"name": "GEMMA_OPS_CACHE", "value": CACHE},
            {"name": "HOME", "value": SCRATCH},
            *(_from_secret(name) for name in _REGISTRY),
        ],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "securityContext": SEALED,
        "volumeMounts": [{"name": "cache", "mountPath": CACHE}, {"name": "tmp", "mountPath": SCRATCH}],
    }


def _server(job: Deployed) -> dict[str, Any]:
    memory = f"{job.gib}Gi"
    return {
        "name": "server",
        "image": needed_image(job),
        "workingDir": SCRATCH,
        "command": job.serve(host=EVERYWHERE, keys=KEYS, replicas=1),
        "env": [
            {"name": "GEMMA_OPS_CACHE", "value": CACHE},
            {"name": "HOME", "value": SCRATCH},
            *(_from_secret(name) for name in _REGISTRY),
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {"requests": {"cpu": str(job.workers), "memory": memory}, "limits": {"memory": memory}},
        "startupProbe": _probe("/ready", 5, 120),
        "readinessProbe": _probe("/ready", 5, 2),
        "livenessProbe": _probe("/health", 10, 6),
        "securityContext": SEALED,
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE},
            {"name": "tmp", "mountPath": SCRATCH},
            {"name": "keys", "mountPath": KEYS.rpartition("/")[0], "readOnly": True},
        ],
    }


def _vllm(job: Deployed) -> dict[str, Any]:
    return {
        "name": "server",
        "image": vllm.IMAGE,
        "command": vllm.vllm_command(job, f"{CACHE}/{job.title}-{job.version}/merged"),
        "env": [
            {"name": "VLLM_API_KEY", "valueFrom": {"secretKeyRef": {"name": job.title, "key": "api-key"}}},
            *({"name": name, "value": value} for name, value in vllm.QUIET.items()),
            {"name": "HOME", "value": SCRATCH},
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {
            "requests": {"cpu": str(job.workers), "memory": f"{job.gib}Gi"},
            "limits": {"memory": f"{2 * job.gib}Gi", "nvidia.com/gpu": 1},
        },
        "startupProbe": _probe("/health", 10, 120),
        "readinessProbe": _probe("/health", 5, 2),
        "livenessProbe": _probe("/health", 10, 6),
        "securityContext": SEALED | {"readOnlyRootFilesystem": False},  # NVIDIA's hook writes there
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE, "readOnly": True},
            {"name": "tmp", "mountPath": SCRATCH},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }


def _volumes(job: Deployed, *, own: bool) -> list[dict[str, Any]]:
    last: dict[str, Any] = {
        "name": "keys",
        "secret": {"secretName": job.title, "items": [{"key": "keys", "path": "keys"}]},
    }
    return [
        {"name": "cache", "emptyDir": {"sizeLimit": f"{job.disk_gib}Gi"}},
        {"name": "tmp", "emptyDir": {}},
        last if own else {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]


def _from_secret(name: str) -> dict[str, Any]:
    secret = {"name": "gemma-ops-registry", "key": name, "optional": True}
    return {"name": name, "valueFrom": {"secretKeyRef": secret}}


def _probe(path: str, every: int, failures: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": every, "failureThreshold": failures}


def _secrets(job: Deployed, *, own: bool) -> list[str]:
    made = f"kubectl create secret generic {job.title}"
    keys = f"{made} --from-file=keys={job.keys or './keys'}" if own else f"{made} --from-literal=api-key=…"
    what = "SHA-256s of the clients' keys" if own else "the key that clients send; vLLM answers whoever sends it"
    user = " ".join(f"--from-literal={name}=…" for name in _REGISTRY)
    asks = f"kubectl create secret generic gemma-ops-registry {user}   # where the registry asks for a user"
    return [f"{keys}   # {what}", asks]
