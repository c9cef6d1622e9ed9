"""KubeRay's RayService (ray.io/v1) of the application in `serving.rayserve`: whole servers as replicas, on pods of one
each.

The version stands in the cluster's own description too: a new one makes KubeRay bring up a second cluster next to the
first, whose traffic moves only once every canary there has sung. Where one fails, the first cluster serves on.
"""

from __future__ import annotations

from typing import Any

import yaml

from gemma_ops.family.formats import GGUF
from gemma_ops.serving.render.kubernetes import POD_SECURITY, pulling
from gemma_ops.serving.render.rendering import CACHE, EVERYWHERE, KEYS, Deployed, needed_image, reached_from_elsewhere
from gemma_ops.training.launch.render.render_text import yaml_document

WANTS = tuple(GGUF)
RAY = "2.60.0"
"""Version of Ray that the application was tried with."""


def rayservice(job: Deployed) -> str:
    """Return the RayService. Raises ConfigError without an image, and for a registry that no pod reaches."""
    notes = reached_from_elsewhere(job, "a pod")
    head = _pod(job, name="ray-head", cpus=1, memory=4, pulls=False)
    worker = _pod(job, name="ray-worker", cpus=job.workers, memory=job.gib + 1, pulls=True)
    cluster: dict[str, Any] = {
        "rayVersion": RAY,
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": EVERYWHERE, "num-cpus": "0"},  # KubeRay asks it there
            "template": head,
        },
        "workerGroupSpecs": [
            {
                "groupName": "servers",
                "replicas": job.replicas,
                "minReplicas": job.replicas,
                "maxReplicas": job.replicas,
                "rayStartParams": {"num-cpus": str(job.workers)},
                "template": worker,
            }
        ],
    }
    service = {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": job.title, "labels": job.labels(), "annotations": job.facts()},
        "spec": {
            "upgradeStrategy": {"type": "NewCluster"},
            "serveConfigV2": yaml.safe_dump(_serve_config(job), sort_keys=False, width=10_000),
            "rayClusterConfig": cluster,
        },
    }
    about = [
        *job.about(),
        *notes,
        f"the image needs gemma-ops[gguf,ray] with ray {RAY}",
        f"kubectl create secret generic {job.title} --from-file=keys={job.keys or './keys'}   # SHA-256s of keys",
        (
            f"KubeRay makes the Service {job.title}-serve-svc, port 8000; keys' rates and budgets hold for each "
            f"replica by itself"
        ),
    ]
    return yaml_document(about, service)


def _serve_config(job: Deployed) -> dict[str, Any]:
    words = job.serve(host=EVERYWHERE, keys=KEYS)
    sets = [word for word in words[3:] if word != "--set" and not word.startswith(("serve.host=", "serve.port="))]
    return {
        "http_options": {"host": EVERYWHERE, "port": 8000},
        "applications": [
            {
                "name": f"{job.title}-{job.version}",
                "route_prefix": "/",
                "import_path": "gemma_ops.serving.rayserve:app",
                "args": {"source": job.source, "sets": [f"name={job.title}", *sets]},
            }
        ],
    }


def _pod(job: Deployed, *, name: str, cpus: int, memory: int, pulls: bool) -> dict[str, Any]:
    """Return a pod of the cluster. The front runs on any of them, so each holds the keys."""
    mounts = [
        {"name": "cache", "mountPath": CACHE},
        {"name": "keys", "mountPath": KEYS.rpartition("/")[0], "readOnly": True},
    ]
    container = {
        "name": name,
        "image": needed_image(job),
        "env": [
            *pulling(job)["env"],
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            {"name": "GEMMA_OPS_VERSION", "value": job.source},
        ],
        "resources": {"requests": {"cpu": str(cpus), "memory": f"{memory}Gi"}, "limits": {"memory": f"{memory}Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    first = pulling(job)
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        **({"initContainers": [first]} if pulls else {}),
        "containers": [container],
        "volumes": [
            {"name": "cache", "emptyDir": {"sizeLimit": f"{job.disk_gib}Gi"}},
            *([{"name": "tmp", "emptyDir": {}}] if pulls else []),
            {"name": "keys", "secret": {"secretName": job.title, "items": [{"key": "keys", "path": "keys"}]}},
        ],
    }
    return {"metadata": {"labels": job.labels(), "annotations": job.facts()}, "spec": spec}
