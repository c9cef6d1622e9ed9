"""Docker Compose: one service brings the bytes and ends, the other serves them once they are there."""

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
_ASK = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}{path}', timeout=4)"


def render_compose(job: Deployed) -> str:
    """Return `compose.yaml`. Raises ConfigError without an image, and for a registry that no container reaches."""
    notes = reached_from_elsewhere(job, "a container")
    own = job.form in GGUF
    registry = {"MLFLOW_TRACKING_USERNAME": "${MLFLOW_TRACKING_USERNAME:-}",
                "MLFLOW_TRACKING_PASSWORD": "${MLFLOW_TRACKING_PASSWORD:-}"}  # fmt: skip
    pull = _sealed(job, needed_image(job), job.pull(f"{CACHE}/{job.title}-{job.version}")) | {
        "environment": {"GEMMA_OPS_CACHE": CACHE, "HOME": SCRATCH, **registry},
        "restart": "no",
    }
    body: dict[str, Any] = {
        "name": f"{job.title}-{job.version}",
        "services": {"pull": pull, "server": _own(job, registry) if own else _vllm(job)},
        "volumes": {"cache": {}},
    }
    if own:
        body["secrets"] = {"keys": {"file": job.keys or "./keys"}}
    clients = "their keys' SHA-256s stand in the file of `secrets`" if own else "they send the key in VLLM_API_KEY"
    return yaml_document([*job.about(), *notes, f"clients: http://127.0.0.1:{PORT}; {clients}"], body)


def _own(job: Deployed, registry: dict[str, str]) -> dict[str, Any]:
    return _served(job, needed_image(job), job.serve(host=EVERYWHERE, keys=KEYS), "/ready") | {
        "environment": {"GEMMA_OPS_CACHE": CACHE, "HOME": SCRATCH, **registry},
        "secrets": [{"source": "keys", "target": KEYS}],
    }


def _vllm(job: Deployed) -> dict[str, Any]:
    words = vllm.vllm_command(job, f"{CACHE}/{job.title}-{job.version}/merged")
    served = _served(job, vllm.IMAGE, words, "/health")
    served["deploy"]["resources"]["reservations"] = {
        "devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    }
    key = "${VLLM_API_KEY:?the key that clients send}"
    return served | {
        "entrypoint": [],
        "read_only": False,  # NVIDIA's hook writes there
        "shm_size": "2gb",
        "environment": {"VLLM_API_KEY": key, **vllm.QUIET, "HOME": SCRATCH},
    }


def _served(job: Deployed, image: str, words: list[str], path: str) -> dict[str, Any]:
    return _sealed(job, image, words) | {
        "restart": "unless-stopped",
        "depends_on": {"pull": {"condition": "service_completed_successfully"}},
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "stop_grace_period": f"{DRAIN}s",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _ASK.format(port=PORT, path=path)],
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "20m",
        },
        "deploy": {"resources": {"limits": {"memory": f"{job.gib * job.replicas}G"}}},
    }


def _sealed(job: Deployed, image: str, words: list[str]) -> dict[str, Any]:
    return {
        "image": image,
        "command": words,
        "labels": job.labels() | job.facts(),
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "working_dir": SCRATCH,
        "tmpfs": [SCRATCH],
        "volumes": [f"cache:{CACHE}"],
    }
