"""A version as `deploy render` sees it, without a registry."""

from __future__ import annotations

from gemma_ops.serving.render import Deployed

BODY = {
    "name": "Support_nano", "version": "3", "form": "q8_0", "sha256": "5a" * 32, "digest": "d1" * 32, "thinking": "off",
    "answers": "any", "verdict": "pass", "base": "google/gemma-4-E4B-it", "size": "E4B", "rank": 16,
    "sampling": (("temperature", 1.0), ("top_k", 64), ("top_p", 0.95)), "slots": 4, "context": 8192, "replicas": 2,
    "workers": 8, "memory": 9e9, "disk": 8e9,
    "image": "registry.example/gemma-ops:1.0", "mlflow": "https://mlflow.example", "keys": None,
    "sets": ("serve.queue=32",), "trusts": False, "made_by": "VERSION",
}  # fmt: skip


def a_version(**changes):
    return Deployed(**BODY | changes)
