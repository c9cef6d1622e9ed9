"""Checks of an evaluation that are made before a model is touched. No numpy here: a run asks this at its start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gemma_ops.config import EvaluateConfig, GateConfig, GeminiConfig
from gemma_ops.config.policy import CHAMPION
from gemma_ops.errors import ConfigError, OpsError
from gemma_ops.targets.spec import parse_target
from gemma_ops.tasks.task import Task, load_all, validate_tasks


def load_checked(
    settings: EvaluateConfig, folders: tuple[Path, ...], source: Path | None, run: Path | None = None
) -> list[Task]:
    """Return the tasks with the rows that count, after every check. A question takes the strictest class of the text
    that it holds, as far as the tasks and the folder of the run know it. Raises ConfigError and DataError."""
    from gemma_ops.judging.tightening import private_texts, tighten_tasks  # numpy

    if not folders:
        raise ConfigError("evaluate.tasks names no task", "add one: --set 'evaluate.tasks=[support_desk]'")
    check_targets(settings)
    every = list(load_all(folders, source))
    loaded = [task.first(settings.rows) for task in tighten_tasks(every, private_texts(run, every))]
    check_gates(settings, loaded)
    check_shown_tasks(settings, loaded)
    for task in loaded:
        validate_tasks(task)
    return loaded


def check_targets(settings: EvaluateConfig) -> None:
    """Refuse an evaluation without targets, or with one named twice. Raises ConfigError."""
    if not settings.targets:
        raise ConfigError("evaluate.targets is empty", "name at least one: --set 'evaluate.targets=[base]'")
    if len(set(settings.targets)) < len(settings.targets):
        raise ConfigError("evaluate.targets names a target twice", "name each once")


def check_gates(settings: EvaluateConfig, tasks: Sequence[Task]) -> None:
    """Refuse gates that ask about what will not be measured, before anything is answered. Raises ConfigError."""
    for index in range(len(settings.gates)):
        check_gate(index, settings, tasks)


def check_shown_tasks(settings: EvaluateConfig, tasks: Sequence[Task], *, mmproj: str = "auto") -> None:
    """Refuse targets that only read text, and judges, where a task shows images or sounds. Raises ConfigError.

    Whether a checkpoint has towers, or a GGUF file an mmproj file, is known when it is there (`ask_targets.readable`);
    `mmproj` is the run's `quantize.mmproj`.
    """
    for task in tasks:
        if not task.shows:
            continue
        what = f"task {task.name} shows {' and '.join(sorted(task.shows))}"
        for name in settings.targets:
            kind = parse_target(name).kind
            if kind == "quantized" and mmproj == "none":
                raise ConfigError(
                    f"{what}, and quantize.mmproj=none leaves target {name} without towers",
                    f"leave {name} out, or have the towers written: --set quantize.mmproj=bf16",
                )
            if kind not in ("base", "tuned", "folder", "quantized", "gguf"):
                raise ConfigError(
                    f"{what}, and target {name} is asked in text only",
                    f"leave {name} out: checkpoints answer here (base, tuned, or a folder), and GGUF files with an "
                    f"mmproj file",
                )
        if settings.judge.judges:
            raise ConfigError(
                f"{what}, which judges are not shown", "score it with a metric: --set evaluate.judge.judges=[]"
            )


def check_gate(index: int, settings: EvaluateConfig, tasks: Sequence[Task]) -> None:
    """Refuse a gate that asks about what will not be measured, before anything is answered."""
    gate, where = settings.gates[index], f"evaluate.gates.{index}"
    names = [task.name for task in tasks]
    if gate.task is None and len(tasks) > 1:
        raise ConfigError(
            f"{where} names no task, and there are {len(tasks)}", f"add `task:` with one of {', '.join(names)}"
        )
    task = next((task for task in tasks if gate.task in (None, task.name)), None)
    if task is None:
        raise ConfigError(f"{where}: there is no task {gate.task!r} here", f"use one of {', '.join(names)}")
    if gate.metric.startswith("judge.") and _of_judges(gate.metric):
        _check_judged(gate, settings, where)
    elif gate.metric not in task.figures and gate.test != "at_most":
        raise ConfigError(
            f"{where}: task {task.name} has no metric {gate.metric!r}", f"use one of {', '.join(task.figures)}"
        )
    # The champion answers wherever there is one.
    for key, target in (("target", gate.target), ("versus", gate.versus)):
        if target is not None and target not in (*settings.targets, CHAMPION):
            raise ConfigError(
                f"{where}.{key}: {target!r} is not among evaluate.targets",
                f"add it there, or use one of {', '.join(settings.targets)}",
            )


def refusals(settings: GeminiConfig) -> list[OpsError]:
    """Return what keeps everything from being sent to Gemini, as it stands: offline, no key, the region, the terms
    (last: long)."""
    from gemma_ops.gemini import boundary, notice, service_access

    found: list[OpsError] = []
    for check in (
        service_access.check_offline,
        service_access.check_credentials,
        boundary.check_region,
        notice.check_accepted,
    ):
        try:
            check(settings)
        except OpsError as error:
            found.append(error)
    return found


def _of_judges(metric: str) -> bool:
    from gemma_ops.judging.judged import METRICS

    return metric in METRICS


def _check_judged(gate: GateConfig, settings: EvaluateConfig, where: str) -> None:
    """Refuse a gate on judges that the configured comparisons don't answer. Raises ConfigError."""
    from gemma_ops.judging.judged import PASSED, WIN_RATE

    judge = settings.judge
    if not judge.judges:
        raise ConfigError(f"{where} asks for {gate.metric}, and no judge is named", "name one in evaluate.judge.judges")
    rivals: tuple[str | None, ...] = (None,)
    tests: tuple[str, ...]
    targets: tuple[str, ...]
    if judge.mode == "pairwise":
        metric, tests, targets, rivals = WIN_RATE, ("superior", "noninferior"), (judge.first,), judge.versus
    else:
        metric, tests, targets = PASSED, ("at_least",), (judge.first, *judge.versus)
    if gate.metric != metric or gate.test not in tests or gate.target not in targets or gate.versus not in rivals:
        asked = f" against {', '.join(map(str, rivals))}" if judge.mode == "pairwise" else ""
        raise ConfigError(
            f"{where}: {judge.mode} judges don't answer {gate.metric} ({gate.test}) of {gate.target}",
            f"ask for {metric} ({' or '.join(tests)}) of {', '.join(targets)}{asked}, or change evaluate.judge",
        )
