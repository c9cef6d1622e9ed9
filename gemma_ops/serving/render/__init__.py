"""Deployments as text: Kubernetes, Docker Compose, systemd, KServe, a RayService, vLLM, and Ollama's Modelfile.

rendering.py   what is known of a version, and what every target refuses
the others     a file a target: pure functions of a `Deployed`; nothing is started, no secret is read
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gemma_ops.serving.render import compose, kserve, kubernetes, ollama, rayservice, systemd, vllm
from gemma_ops.serving.render.rendering import Deployed, deployed


@dataclass(frozen=True)
class Form:
    """A target of rendering: the function that makes its text, its file name, and the formats it runs, the better ones
    first."""

    text: Callable[[Deployed], str]
    file: str
    wants: tuple[str, ...]


FORMS = {
    "kubernetes": Form(kubernetes.kubernetes, "kubernetes.yaml", kubernetes.WANTS),
    "compose": Form(compose.render_compose, "compose.yaml", compose.WANTS),
    "systemd": Form(systemd.systemd, "gemma-ops-{title}.service", systemd.WANTS),
    "rayservice": Form(rayservice.rayservice, "rayservice.yaml", rayservice.WANTS),
    "kserve": Form(kserve.kserve, "kserve.yaml", vllm.MERGED),
    "vllm": Form(vllm.vllm, "serve.sh", vllm.MERGED),
    "vllm-lora": Form(vllm.vllm_lora, "serve.sh", vllm.ADAPTER),
    "ollama": Form(ollama.ollama, "Modelfile", ollama.WANTS),
}
"""Targets that `gemma-ops deploy render --as` takes."""

__all__ = ["FORMS", "Deployed", "Form", "deployed"]
