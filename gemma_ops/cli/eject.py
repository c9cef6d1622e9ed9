"""`gemma-ops init`: copy a shipped configuration, its recipe and its tasks to where a person can edit them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from gemma_ops.config import shipped
from gemma_ops.config.loading import read_run_config
from gemma_ops.errors import ConfigError, MachineError


def eject(configs: Sequence[str], folder: Path, *, force: bool = False) -> list[Path]:
    """Copy into `configs/`, `recipes/` and `eval/` below `folder`, and return what was written.

    The copies are found before the shipped ones when a command runs from `folder`, but only the shipped ones are
    copied: `force` restores them. Raises ConfigError, before anything is copied, when a file is there already and
    `force` is off, or when `folder` is where the shipped ones lie.
    """
    pairs: list[tuple[Path, Path]] = []
    for name in configs:
        source = shipped.find_shipped("configs", name, ".yaml", local=False)
        config = read_run_config([source])
        pairs.append((source, folder / "configs" / source.name))
        recipe = shipped.find_shipped("recipes", config.recipe, ".py", local=False)
        pairs.append((recipe, folder / "recipes" / recipe.name))
        for task in config.evaluate.tasks:
            path = shipped.find_shipped("eval", task, local=False)
            pairs.append((path, folder / "eval" / path.name))
    there = [target for _, target in dict.fromkeys(pairs) if target.exists()]
    if there and not force:
        raise ConfigError(f"{there[0]} is there already", "add --force to overwrite it, or --to another folder")
    for source, target in dict.fromkeys(pairs):
        if target.exists() and target.samefile(source):
            raise ConfigError(f"{target} is the shipped one itself", "give another folder with --to")
    try:
        for source, target in dict.fromkeys(pairs):
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
    except OSError as error:
        raise MachineError(
            f"{error.filename or folder} can't be written: {error.strerror or error}", "give another folder with --to"
        ) from error
    return [target for _, target in dict.fromkeys(pairs)]
