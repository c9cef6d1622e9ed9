"""vLLM's command line and environment: what is served, within the memory that was planned.

Names are those of vLLM 0.32 (vllm/entrypoints/launchers/cli_args.py, vllm/engine/arg_utils.py, vllm/envs.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gemma_ops.modeling.checkpoint_source import read_model_config
from gemma_ops.planning.devices import GIB
from gemma_ops.planning.serving_bytes import ServingBytes
from gemma_ops.serving.served_drafter import ServedDrafter

WEIGHTS_NAME = "weights"
ADAPTER_NAME = "adapter"
"""Name by which requests address the checkpoint, or the adapter on it."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM has kernels for (vllm/config/lora.py)."""
_MOST = 0.95
"""Largest share of a GPU's memory that is asked for."""
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
_HELD = {"backend": "guidance"}
"""Backend that holds replies to schemas and grammars: llguidance, as in llama.cpp, which takes the same spacing of
JSON."""


def vllm_arguments(
    folder: Path,
    *,
    changed: Path | None,
    slots: int,
    context: int,
    memory: ServingBytes,
    gpu: float | None,
    drafter: ServedDrafter | None = None,
) -> list[str]:
    """Return the arguments for a checkpoint, with the adapter in `changed` if there is one, and a drafter. `memory` is
    what was planned, `gpu` the bytes of the GPU; None on the CPU."""
    given = [
        "--model", str(folder), "--served-model-name", WEIGHTS_NAME, "--dtype", "bfloat16",
        "--max-model-len", str(context), "--max-num-seqs", str(slots), "--logprobs-mode", "raw_logprobs",
        "--structured-outputs-config", json.dumps(_HELD), "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log", *_text_only(read_model_config(folder)),
    ]  # fmt: skip
    if gpu is None:
        given.append("--enforce-eager")  # else it wants a compiler, and a minute
    else:
        given += ["--gpu-memory-utilization", f"{min(_MOST, math.ceil(100 * memory.total / gpu) / 100):.2f}"]
    if drafter is not None:
        drafted = {"method": "mtp", "model": str(drafter.place), "num_speculative_tokens": drafter.tokens}
        given += ["--speculative-config", json.dumps(drafted)]
    if changed is not None:
        given += ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(_rank(changed))]
        given += ["--lora-modules", f"{ADAPTER_NAME}={changed}"]
    return given


def vllm_variables(memory: ServingBytes, *, gpu: float | None, threads: int | None) -> dict[str, str]:
    """Return environment variables: no word leaves the machine, and on the CPU the cache takes what was planned, in
    whole GiB."""
    found = dict(_QUIET)
    if gpu is None:
        found["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, math.ceil(memory.cache / GIB)))
        if threads:
            found |= {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return found


def _text_only(config: dict[str, Any]) -> list[str]:
    """Return arguments that leave towers out; a checkpoint that has none is loaded as the text class, since the other
    looks for them."""
    if config.get("vision_config"):
        return ["--language-model-only"]
    named = (config.get("architectures") or [""])[0]
    text = named.replace("ForConditionalGeneration", "ForCausalLM")
    return ["--hf-overrides", json.dumps({"architectures": [text]})] if text != named else []


def _rank(changed: Path) -> int:
    """Return the least rank that vLLM has and an adapter fits in; its greatest where none is large enough."""
    body = json.loads((changed / "adapter_config.json").read_text(encoding="utf-8"))
    wanted = max([int(body["r"]), *map(int, (body.get("rank_pattern") or {}).values())])
    return next((rank for rank in _RANKS if rank >= wanted), _RANKS[-1])
