"""KServe's LLMInferenceService (serving.kserve.io/v1alpha1): vLLM on the merged checkpoint, which a Job has put into a
claim.

The fields are those of the resource's definition in KServe's repository of August 2026, and of its v1alpha2 too:
`spec.model.uri` and `name`, `spec.replicas`, `spec.router` with objects left empty for what the controller makes by
itself, and `spec.template`, a pod whose container `main` is laid over the controller's own.
"""

from __future__ import annotations

from typing import Any

from gemma_ops.serving.render import vllm
from gemma_ops.serving.render.kubernetes import POD_SECURITY, pulling
from gemma_ops.serving.render.rendering import SCRATCH, Deployed, reached_from_elsewhere
from gemma_ops.training.launch.render.render_text import yaml_document

_CLAIM = "gemma-ops-models"
_AT = "/models"


def kserve(job: Deployed) -> str:
    """Return the Job that fills the claim, and the service. Raises ConfigError without an image, and for a registry
    that no pod reaches."""
    notes = reached_from_elsewhere(job, "a pod")
    place, labels = f"{job.title}-{job.version}", job.labels()
    template = {
        "containers": [
            {
                "name": "main",
                "image": vllm.IMAGE,
                "env": [
                    {"name": "VLLM_ADDITIONAL_ARGS", "value": _arguments(job)},
                    *({"name": name, "value": value} for name, value in vllm.QUIET.items()),
                ],
                "resources": {
                    "requests": {"cpu": str(job.workers), "memory": f"{job.gib}Gi"},
                    "limits": {"memory": f"{2 * job.gib}Gi", "nvidia.com/gpu": "1"},
                },
            }
        ],
    }
    service = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": {"name": job.title, "labels": labels, "annotations": job.facts()},
        "spec": {
            "model": {"uri": f"pvc://{_CLAIM}/{place}/merged", "name": job.name},
            "replicas": job.replicas,
            "router": {"route": {}, "gateway": {}, "scheduler": {}},
            "template": template,
        },
    }
    about = [
        *job.about(),
        *notes,
        f"the claim {_CLAIM} (ReadWriteMany where pods run on several machines; {job.disk_gib} GiB a version) is yours",
        "apply the Job, wait for it (kubectl wait --for=condition=complete), then the service",
        f"no key is asked for here: that is the gateway's work; canary.json lies in {place}",
    ]
    return yaml_document(about, _filling(job, place)) + "---\n" + yaml_document([], service)


def _filling(job: Deployed, place: str) -> dict[str, Any]:
    container = pulling(job)
    container["command"] = job.pull(f"{_AT}/{place}")
    container["volumeMounts"] = [
        {"name": "models", "mountPath": _AT},
        {"name": "cache", "mountPath": container["env"][0]["value"]},
        {"name": "tmp", "mountPath": SCRATCH},
    ]
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": _CLAIM}},
            {"name": "cache", "emptyDir": {"sizeLimit": f"{job.disk_gib}Gi"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"pull-{place}", "labels": job.labels(), "annotations": job.facts()},
        "spec": {"backoffLimit": 2, "template": {"metadata": {"labels": job.labels()}, "spec": pod}},
    }


def _arguments(job: Deployed) -> str:
    """Return vLLM's flags beyond those that the controller gives: the folder, name, host and port are its own."""
    words = vllm.vllm_command(job, "")
    return " ".join(f"'{word}'" if word.startswith("{") else word for word in words[words.index("--dtype") :])
