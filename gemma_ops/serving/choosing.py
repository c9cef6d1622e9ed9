"""The choice of the format that is served, and of the engine that runs it, by the table of formats."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_ops.config import ServeConfig
from gemma_ops.errors import ConfigError
from gemma_ops.family.formats import FORMATS, PACKED, REFERENCE, Engine
from gemma_ops.verdicts import Verdict

_NOT_OURS = ("vLLM", "LiteRT-LM")
"""Engines that have to be installed elsewhere, or run on another device."""
_ANSWERED_AS = {"adapter": ("adapter", "tuned")}
"""Other names of a requested format where it was made: a full fine-tune leaves tensors for an adapter."""


def choose_format(settings: ServeConfig, made: Sequence[str], verdict: Verdict | None, asked: str) -> str:
    """Return the format that is served: the one asked for, else, of those that the engine runs, the GGUF file whose
    primary metrics are the highest on average over the verdict's tasks, else the first of `made`. Raises ConfigError
    where it was not made."""
    able = [name for name in made if _runs_here(name, settings)]
    if not made:
        raise ConfigError(
            f"{asked} has no GGUF file and no checkpoint",
            "quantize or merge it: gemma-ops run CONFIG, with quantize.formats and register.artifacts",
        )
    if settings.format != "auto":
        wanted = next((name for name in _ANSWERED_AS.get(settings.format, (settings.format,)) if name in made), None)
        if wanted is None:
            raise ConfigError(
                f"{asked} has no {settings.format}", f"serve one of: {', '.join(made)}, with --set serve.format=…"
            )
        return wanted
    if not able:
        runs = ", ".join(f"{name} ({' or '.join(FORMATS[name].engines)})" for name in made)
        raise ConfigError(f"{asked} has nothing that {settings.engine} runs", f"it has {runs}: --set serve.engine=auto")
    return _best(able, verdict)


def choose_engine(form: str, settings: ServeConfig) -> Engine:
    """Return the engine that runs a format; a format without a name is a GGUF file's. Raises ConfigError where the one
    that is asked for can't run it, or is not there."""
    runs = FORMATS[form or REFERENCE].engines
    if settings.engine == "auto":
        if (form == "merged" or form in PACKED) and settings.vllm_python is not None and "vLLM" in runs:
            return "vLLM"
        if runs[0] not in _NOT_OURS:
            return runs[0]
    if runs == ("LiteRT-LM",):
        raise ConfigError(
            f"{form} is run by LiteRT-LM, on the device itself, and not by a server",
            "copy it there (gemma-ops pull), or serve another format: --set serve.format=…",
        )
    asked = runs[0].lower() if settings.engine == "auto" else settings.engine
    found = next((engine for engine in runs if engine.lower() == asked), None)
    if found is None:
        raise ConfigError(
            f"{settings.engine} can't run {form or 'a GGUF file'}: {' or '.join(runs)} can",
            "--set serve.engine=auto, or serve another format: --set serve.format=…",
        )
    if found == "vLLM" and settings.vllm_python is None:
        raise ConfigError(
            f"vLLM is to run {form or 'it'}, and serve.vllm_python doesn't say where vLLM is installed",
            "install vLLM into an environment of its own, and set serve.vllm_python to its Python",
        )
    return found


def _runs_here(name: str, settings: ServeConfig) -> bool:
    """True if an engine that can be started runs a format: the one asked for, else one that needs nothing more."""
    runs = FORMATS[name].engines
    if settings.engine != "auto":
        return settings.engine in map(str.lower, runs)
    return any(engine not in _NOT_OURS or (engine == "vLLM" and settings.vllm_python is not None) for engine in runs)


def _best(made: Sequence[str], verdict: Verdict | None) -> str:
    """Return the format that answered best, else the first."""
    found: dict[str, list[float]] = {}
    for result in verdict.results if verdict else ():
        figure = result.metrics.get(verdict.tasks[result.task].primary) if verdict else None
        if result.target in made and figure and figure.value is not None:
            found.setdefault(result.target, []).append(float(figure.value))
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return max(means, key=lambda name: (means[name], -made.index(name))) if means else made[0]
