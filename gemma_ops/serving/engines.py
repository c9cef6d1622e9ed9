"""The engine of a source, ready to be started, and the memory that it may take."""

from __future__ import annotations

from importlib.metadata import version

from gemma_ops import devices
from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.processes import free_memory
from gemma_ops.serving.choosing import choose_engine
from gemma_ops.serving.engine import Engine
from gemma_ops.serving.llamacpp import LlamaCpp
from gemma_ops.serving.source import Source
from gemma_ops.serving.transformers_engine import TransformersEngine


def make_engine(source: Source, machine: MachineConfig, settings: ServeConfig) -> Engine:
    """What runs a source. Raises ConfigError where the engine that is asked for can't, and MachineError where it is not
    installed."""
    slots, context, threads = settings.slots, settings.context, machine.workers
    if choose_engine(source.format, settings) == "llama.cpp":
        return LlamaCpp(source.file, slots=slots, context=context, threads=threads, defaults=source.defaults)
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
    """Bytes that its engine may take now: of this machine's memory, or of a GPU where the engine computes there."""
    free, engine = free_memory(), choose_engine(source.format, settings)
    gpu = None if engine == "llama.cpp" or machine.device == "cpu" else devices.free_gpu_memory()
    if gpu is None or (engine == "transformers" and version("torch").endswith("+cpu")):
        return free
    return gpu if engine == "vLLM" or machine.device == "cuda" else max(gpu, free)
