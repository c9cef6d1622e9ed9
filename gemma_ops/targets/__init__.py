"""Targets: local checkpoints, GGUF files, Gemini, and OpenAI-compatible endpoints, all of which answer by one
protocol."""

from __future__ import annotations

from gemma_ops.config import MachineConfig
from gemma_ops.gemini.request import Use
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.target import AskingMode, Target


def open_target(
    spec: str,
    machine: MachineConfig,
    *,
    run: str,
    use: Use,
    models: RunModels | None = None,
    asked: AskingMode | None = None,
) -> Target:
    """Open the target that a specification names; `spec.py` lists the forms.

    `run` and `use` say in the ledger who spends and on what. `models` are those of the run, `asked` says how local
    models are asked. Nothing is loaded or sent yet, but whatever can be wrong is reported: raises ConfigError for a
    target that can't be, BoundaryError and BudgetError from the door to Gemini.
    """
    from gemma_ops.targets import spec as specs

    parsed = specs.parse_target(spec)
    models, asked = models or RunModels(), asked or AskingMode()
    if parsed.kind == "gemini":
        from gemma_ops.targets.gemini_target import GeminiTarget

        return GeminiTarget(parsed, machine, run=run, use=use)
    if parsed.kind == "openai":
        from gemma_ops.targets.endpoint_target import Endpoint

        return Endpoint(parsed, machine, run=run, use=use)
    if parsed.kind == "champion":
        from gemma_ops.targets.incumbent import open_champion

        return open_champion(machine, models, asked=asked)
    from gemma_ops.targets import local_target

    return local_target.open_local(parsed, machine, models, asked=asked)
