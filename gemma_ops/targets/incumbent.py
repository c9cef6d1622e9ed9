"""The target `champion`: the version that stands at the alias now, pulled and verified by the step `champion`."""

from __future__ import annotations

import json
from pathlib import Path

from gemma_ops.config import MachineConfig
from gemma_ops.config.policy import CHAMPION, CHAMPION_MODEL, STANDARD, PromotionStandard
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.family.formats import DEFAULT_FORMATS, FORMATS
from gemma_ops.privacy.classes import stricter
from gemma_ops.runs import digest
from gemma_ops.targets.checkpoint_target import CheckpointTarget
from gemma_ops.targets.made_target import LocalTarget, open_made
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.spec import QUANTIZED
from gemma_ops.targets.target import AskingMode


def standard_in(folder: Path) -> PromotionStandard:
    """Return what the step `champion` has written into its folder. Raises DataError for a damaged file."""
    try:
        return PromotionStandard.model_validate(json.loads((folder / STANDARD).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:  # pydantic's are ValueErrors too
        raise DataError(
            f"{folder / STANDARD} can't be read: {str(error).splitlines()[0]}", "make it again: --redo champion"
        ) from error


def open_champion(machine: MachineConfig, models: RunModels, *, asked: AskingMode) -> LocalTarget:
    """Open the champion as it answers: a GGUF file by llama.cpp, else a checkpoint by transformers.

    A version registered without its tokenizer takes that of the base. Raises ConfigError where there is no champion.
    """
    folder, base = models.champion, models.base
    known = standard_in(folder) if folder else PromotionStandard()
    facts = known.champion
    if folder is None or facts is None:
        raise ConfigError(
            f"target {CHAMPION}: there is none to compare with ({known.why_none or 'this recipe asks no registry'})",
            "take it out, or use a recipe with the step `champion`, such as lora",
        )
    model, tokenizer = folder / CHAMPION_MODEL, folder / "tokenizer"
    if facts.form in QUANTIZED:
        words = tokenizer if (tokenizer / "tokenizer.json").is_file() else base
        if words is None:
            raise ConfigError(
                f"target {CHAMPION}: version {facts.version} of {facts.name} brings no tokenizer, and this run has "
                f"no base",
                "register the version again, which adds it",
            )
        file = model / FORMATS[facts.form].file
        target: LocalTarget = open_made(CHAMPION, facts.form, file, words, machine, asked=asked)
    elif facts.form == "merged":
        target = CheckpointTarget(CHAMPION, model, machine, asked=asked)
    elif base is not None:
        target = CheckpointTarget(CHAMPION, base, machine, asked=asked, changed=model)
    else:
        raise ConfigError(
            f"target {CHAMPION}: version {facts.version} of {facts.name} answers on its base only, and this run "
            f"has none",
            f"register versions with {DEFAULT_FORMATS[0]} or merged among register.artifacts",
        )
    # By what was registered: the same version is the same model wherever it was pulled to.
    target.identity = asked.identity(digest.of_json([facts.manifest, facts.form]))
    # Its files may lie without the record of what they learned from, and an adapter's base knows nothing of it.
    target.learned = stricter(target.learned, facts.learned)
    return target
