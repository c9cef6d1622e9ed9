"""vLLM's command for a merged checkpoint, and the folder and command for an adapter at run time.

The merged checkpoint is what to serve. Adapters that vLLM puts on at run time were seen to do nothing with this family
(vllm#41754), or to agree with transformers on 83 % of answers (vllm#47026): what is rendered for them says so.
"""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError
from gemma_ops.serving.render.rendering import EVERYWHERE, PORT, Deployed

VERSION = "0.33.0"
IMAGE = f"vllm/vllm-openai:v{VERSION}"
QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Environment variables with which vLLM contacts nobody."""
LAID = ("adapter_config.json", "adapter_model.safetensors")
"""Files of an adapter's folder, as vLLM reads it."""
MERGED, ADAPTER = ("merged",), ("adapter",)


def vllm_command(job: Deployed, folder: str, *, name: str | None = None, host: str = EVERYWHERE) -> list[str]:
    """Return `vllm serve` of a checkpoint's folder, asked in the mode that the version was trained in."""
    thinks = json.dumps({"enable_thinking": job.thinking == "on"})
    parsers = ["--reasoning-parser", "gemma4", "--tool-call-parser", "gemma4", "--enable-auto-tool-choice"]
    return [
        "vllm", "serve", folder, "--served-model-name", name or job.name, "--host", host, "--port", str(PORT),
        "--dtype", "bfloat16", "--max-model-len", str(job.context), "--max-num-seqs", str(job.slots),
        "--default-chat-template-kwargs", thinks, *parsers,
    ]  # fmt: skip


def vllm(job: Deployed) -> str:
    """Return a script that pulls the merged checkpoint and starts vLLM."""
    folder = f"{job.title}-{job.version}"
    serve = vllm_command(job, f"{folder}/merged", host="127.0.0.1")
    return _script(
        [
            *job.about(),
            f"needs vllm=={VERSION} and, on its GPU, about {job.gib} GiB; clients send the key in VLLM_API_KEY",
        ],
        [
            f"[ -f {folder}/manifest.json ] || {shlex.join(job.pull(folder))}  # it is laid last",
            f"exec {_lines(serve)}",
        ],
    )


def vllm_lora(job: Deployed) -> str:
    """Return the script that puts the adapter into a folder as vLLM's `lora_filesystem_resolver` finds it, and starts
    vLLM on its base. Raises ConfigError for a base that has no repository: vLLM and adapter must name it alike."""
    if "/" not in job.base:
        raise ConfigError(
            f"vLLM finds an adapter by its base's repository, and {job.base} has none", "serve it merged: --as vllm"
        )
    place = f"adapters/{job.title}-{job.version}"
    module = json.dumps({"name": job.name, "path": place, "base_model_name": job.base})
    serve = [
        *vllm_command(job, job.base, name=job.base, host="127.0.0.1"), "--enable-lora", "--max-lora-rank",
        str(_rank(job)),
        "--lora-modules", module,
    ]  # fmt: skip
    about = [
        *job.about(),
        "RUN TIME LoRA of this family was seen to be ignored (vllm#41754) and to differ from the adapter's own answers",
        "(vllm#47026): ask it recorded questions (the version's canary.json) before it takes traffic, or merge it.",
        f"needs vllm=={VERSION}. Another version of the adapter, without a restart: lay it beside this one, then",
        f'  curl 127.0.0.1:{PORT}/v1/load_lora_adapter -H "Authorization: Bearer $VLLM_API_KEY" \\',
        "    -H 'Content-Type: application/json' \\",
        f'    -d \'{{"lora_name": "{job.name}-NEXT", "lora_path": "adapters/{job.title}-NEXT"}}\'',
    ]
    lines = [
        f"if [ ! -f {place}/{LAID[-1]} ]; then",
        f"  {shlex.join(job.pull('pulled'))}",
        f"  mkdir -p {place}.part && cp {' '.join(f'pulled/adapter/{name}' for name in LAID)} {place}.part/",
        f"  rm -rf {place} && mv {place}.part {place}",
        "fi",
        "export VLLM_ALLOW_RUNTIME_LORA_UPDATING=true VLLM_PLUGINS=lora_filesystem_resolver",
        "export VLLM_LORA_RESOLVER_CACHE_DIR=$PWD/adapters",
        f"exec {_lines(serve)}",
    ]
    return _script(about, lines, offline=False)


def lay_adapter(job: Deployed, machine: MachineConfig, folder: Path) -> None:
    """Put the adapter's files, each as registered, where the script and vLLM's resolver look for them."""
    from gemma_ops.registry.fetching import pull_version

    wanted = {f"adapter/{name}" for name in LAID}
    pulled = pull_version(machine, job.source, wanted=lambda path: path in wanted)
    place = folder / "adapters" / f"{job.title}-{job.version}"
    place.mkdir(parents=True, exist_ok=True)
    for name in LAID:
        shutil.copyfile(pulled.folder / "adapter" / name, place / name)


def _rank(job: Deployed) -> int:
    """Return the least rank that vLLM takes and that holds the adapter's."""
    ranks = (8, 16, 32, 64, 128, 256, 320, 512)
    return next((rank for rank in ranks if rank >= (job.rank or 16)), ranks[-1])


def _script(about: list[str], lines: list[str], *, offline: bool = True) -> str:
    quiet = {name: value for name, value in QUIET.items() if offline or name != "HF_HUB_OFFLINE"}
    words = " ".join(f"{name}={value}" for name, value in quiet.items())
    needs = ': "${VLLM_API_KEY:?the key that clients send must be in the environment}"'
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"# {line}" for line in about),
            "set -euo pipefail",
            needs,
            f"export {words}",
            *lines,
            "",
        ]
    )


def _lines(words: list[str]) -> str:
    """Return a command, a flag on each line."""
    lines = [""]
    for word in words:
        if word.startswith("--"):
            lines.append("")
        lines[-1] += f"{' ' if lines[-1] else ''}{shlex.quote(word)}"
    return " \\\n  ".join(lines)
