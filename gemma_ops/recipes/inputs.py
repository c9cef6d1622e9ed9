"""Inputs of recipes besides the folders of their own steps: rows, tasks, calibrations, and the policy that a
configuration asks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gemma_ops.config import DataConfig, RunConfig, shipped
from gemma_ops.config.policy import PolicyTask, PromotionPolicy, make_policy
from gemma_ops.errors import ConfigError, MachineError
from gemma_ops.runs.artifact import Reads


def data_source(settings: DataConfig) -> Path | None:
    """Return the local file or folder of the training rows; None for a Hub data set.

    Raises ConfigError when neither is given or the path doesn't exist.
    """
    if settings.hub:
        return None
    if not settings.path:
        raise ConfigError(
            "data.path is not set", "say where the rows are: --set data.path=rows.jsonl, or data.hub for a Hub data set"
        )
    path = Path(settings.path).expanduser()
    if not path.exists():
        raise ConfigError(
            f"data.path {settings.path!r} does not exist",
            "give a file or folder; a relative path in a configuration counts from its folder, one in --set from the "
            "current one",
        )
    return path


def rows_read(config: RunConfig) -> Reads | None:
    """Return `data.path` as an input of `prepare`: only the files it reads count, among them those of tasks it compares
    with."""
    source = data_source(config.data)
    if source is None:
        return None
    from gemma_ops.data.named_files import named
    from gemma_ops.data.row_files import is_datasets_folder, source_files

    files = list(source.rglob("*")) if is_datasets_folder(source) else source_files(source)
    chosen = tuple(dict.fromkeys(path for path in (*files, *_questions(source, every_task(config))) if path.is_file()))
    return Reads(source, chosen, named(chosen))


def questions_read(config: RunConfig) -> Reads | None:
    """Return the folder where tasks whose questions aren't shipped find them, as an input of `evaluate`; None if none
    does."""
    from gemma_ops.evaluation import needs_source

    chosen = [task for task in tasks(config) if needs_source(task)]
    if not chosen:
        return None
    source = data_source(config.data)
    if source is None:
        raise ConfigError(
            f"the task in {chosen[0]} reads its questions from the data folder, and data.hub has none",
            "set data.path to a folder that holds them",
        )
    from gemma_ops.data.named_files import named

    files = _questions(source, tuple(chosen))
    return Reads(source.parent if source.is_file() else source, files, named(files))


def _questions(source: Path, folders: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return files next to the training rows that tasks read their questions from, where they are there."""
    from gemma_ops.tasks.task_file import read_task_file

    beside = source.parent if source.is_file() else source
    names = [read_task_file(folder / "task.yaml").data.from_source for folder in folders]
    return tuple(beside / name for name in names if name and (beside / name).is_file())


def needs(module: str, extra: str, what: str) -> None:
    """Refuse before any work is done when an optional package that a later step uses is absent. Raises MachineError."""
    if importlib.util.find_spec(module) is None:
        raise MachineError(f"{what} needs the package {module}", f"pip install 'gemma-ops[{extra}]'")


def tasks(config: RunConfig) -> tuple[Path, ...]:
    """Return the folders of the configuration's evaluation tasks."""
    if not config.evaluate.tasks:
        raise ConfigError(
            "evaluate.tasks is empty",
            "name a task under eval/ or give a path to one; eval/README.md shows how to write one",
        )
    return tuple(shipped.find_shipped("eval", name) for name in config.evaluate.tasks)


def configured_policy(config: RunConfig) -> PromotionPolicy | None:
    """Return what a configuration asks of versions: its gates, the content of its tasks and how many questions; None
    without a gate."""
    from gemma_ops.evaluation.evaluation_checks import check_gates
    from gemma_ops.tasks.task import load_all

    if not config.evaluate.gates:
        return None
    source = questions_read(config)
    loaded = [task.first(config.evaluate.rows) for task in load_all(tasks(config), source.path if source else None)]
    check_gates(config.evaluate, loaded)
    asked = {
        task.name: PolicyTask(digest=task.digest, rows=len(task.rows), primary=task.file.primary) for task in loaded
    }
    return make_policy(config.evaluate.gates, asked, config.evaluate.confidence, config.register_.asks)


def calibration(config: RunConfig) -> Path | None:
    """Return the calibration of the judges, as an input of `evaluate`: its content decides what they may decide."""
    if not config.evaluate.judge.calibration:
        return None
    path = Path(config.evaluate.judge.calibration)
    if not path.is_file():
        raise ConfigError(
            f"evaluate.judge.calibration {str(path)!r} does not exist", "make it with `gemma-ops judge calibrate`"
        )
    return path


def every_task(config: RunConfig) -> tuple[Path, ...]:
    """Return the configuration's tasks and all shipped ones: training rows must overlap with none of them."""
    named = tasks(config) if config.evaluate.tasks else ()  # none is needed to train or to quantize
    folders = {
        path.resolve(): path
        for path in (*named, *(shipped.find_shipped("eval", name) for name in shipped.shipped("eval")))
    }
    return tuple(sorted(folders.values(), key=lambda path: path.name))


def doubts(config: RunConfig) -> list[str]:
    """Return gates that the tasks' rows can't decide, said before anything is computed."""
    from gemma_ops.gates.detectable import advice
    from gemma_ops.tasks.task import load_task

    if not config.evaluate.gates or not config.evaluate.tasks:
        return []
    source = questions_read(config)
    loaded = [load_task(folder, source.path if source else None) for folder in tasks(config)]
    rows = {task.name: min(len(task.rows), config.evaluate.rows or len(task.rows)) for task in loaded}
    return [line.removeprefix("warning: ") for line in advice(rows, config.evaluate) if line.startswith("warning:")]
