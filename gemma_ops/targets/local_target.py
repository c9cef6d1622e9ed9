"""The opening of any local target: of this run's models, of a folder, of a GGUF file."""

from __future__ import annotations

from pathlib import Path

from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError
from gemma_ops.family.formats import QUANTIZED
from gemma_ops.targets.checkpoint_target import CheckpointTarget
from gemma_ops.targets.made_target import LocalTarget, open_made
from gemma_ops.targets.quantized_target import Quantized
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.spec import TargetSpec
from gemma_ops.targets.target import AskingMode

_USUAL = AskingMode()


def open_local(
    spec: TargetSpec,
    machine: MachineConfig,
    models: RunModels,
    *,
    asked: AskingMode = _USUAL,
) -> LocalTarget:
    """Open the local target of a specification. Raises ConfigError when this run has no model for it."""
    if spec.kind == "quantized":
        tokenizer, quantized = models.tuned or models.base, models.quantized
        if quantized is None or tokenizer is None:
            raise _absent(spec.name, "quantize")
        file = _made(spec.name, quantized)
        return open_made(spec.name, spec.name, file, tokenizer, machine, made_by=quantized, asked=asked)
    if spec.kind == "gguf":
        file, folder = Path(spec.place).expanduser(), Path(spec.tokenizer).expanduser()
        if not file.is_file():
            raise ConfigError(f"target {spec.name}: {file} does not exist", "correct the path after `gguf:`")
        return Quantized(spec.name, file, _folder(spec.name, folder), machine, asked=asked)
    if spec.kind == "folder":
        return CheckpointTarget(spec.name, _folder(spec.name, Path(spec.place).expanduser()), machine, asked=asked)
    path = models.base if spec.kind == "base" else models.tuned
    if path is None:
        raise _absent(spec.name, "train" if spec.kind == "tuned" else "fetch")
    return CheckpointTarget(spec.name, path, machine, asked=asked)


def _made(name: str, quantized: Path) -> Path:
    file = quantized / QUANTIZED[name].path
    if not file.is_file():
        made = [form.name for form in QUANTIZED.values() if (quantized / form.path).is_file()]
        raise ConfigError(
            f"target {name}: {file} does not exist",
            f"add {name} to quantize.formats, or evaluate one of: {', '.join(made) or 'none'}",
        )
    return file


def _folder(name: str, folder: Path) -> Path:
    from gemma_ops.modeling.checkpoint_source import checkpoint

    if not (checkpoint(folder) / "config.json").is_file():
        raise ConfigError(f"target {name}: {folder} holds no checkpoint", "give a folder with config.json and weights")
    return folder


def _absent(name: str, step: str) -> ConfigError:
    return ConfigError(
        f"target {name}: this run has no model for it (its recipe runs no `{step}` step before)",
        "take it out: --set 'evaluate.targets=[base]', or use a recipe that makes it",
    )
