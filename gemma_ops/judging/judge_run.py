"""Judging as a whole: open the judges, go through the comparisons, write each into its folder, close the judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from gemma_ops.config import EvaluateConfig, MachineConfig, ReleaseConfig
from gemma_ops.config.evaluation import JudgeConfig
from gemma_ops.errors import BoundaryError, ConfigError
from gemma_ops.judging import calibration, judge_lineage, pairs, panel, rubric
from gemma_ops.judging.judge_material import Side
from gemma_ops.judging.judged import JudgedComparison
from gemma_ops.judging.pairs import AnswerPairs
from gemma_ops.judging.tightening import private_texts, tighten_pairs
from gemma_ops.privacy.classes import release_of
from gemma_ops.targets import open_target
from gemma_ops.targets import spec as specs
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.target import Target
from gemma_ops.tasks.grades import Graded


def judge_evaluation(
    out: Path,
    settings: JudgeConfig,
    evaluation: EvaluateConfig,
    machine: MachineConfig,
    graded: Sequence[Graded],
    sides: Mapping[str, Side],
    *,
    run: str,
    data: Path | None = None,
    models: RunModels | None = None,
) -> list[JudgedComparison]:
    """Judge an evaluation's answers: every task, `settings.first` against each of `settings.versus`.

    `graded` are all targets' answers, `sides` says who each target is, `data` is the artifact of `prepare` (for the
    teachers of the training rows), `models` those of the run. Writes one folder per comparison below `out`. Raises as
    `panel.judge_pairs`.
    """
    rivals = settings.versus if settings.mode == "pairwise" else settings.versus or (None,)
    found = pairs.of_graded(graded, sides, settings.first, rivals)
    private = private_texts(out.parents[1], {item.task.name: item.task for item in graded}.values())
    found = [replace(one, pairs=tighten_pairs(one.pairs, private)) for one in found]
    judges = open_judges(settings.judges, machine, run=run, models=models)
    return judge_all(
        out, found, judges, settings, evaluation, batch=machine.eval_batch, teachers=judge_lineage.teachers(data),
        release=release_of(machine),
    )  # fmt: skip


def open_judges(
    specs: Sequence[str], machine: MachineConfig, *, run: str, models: RunModels | None = None
) -> list[Target]:
    """Open every judge. Nothing is loaded or sent yet, but whatever can be wrong is reported."""
    with ExitStack() as opened:
        found: list[Target] = []
        for spec in dict.fromkeys(specs):
            _check_made(spec, models or RunModels())
            judge = open_target(spec, machine, run=run, use="judge", models=models)
            opened.callback(judge.close)
            found.append(judge)
        opened.pop_all()
    return found


def _check_made(spec: str, models: RunModels) -> None:
    """Raise ConfigError for a judge that is a model of the run, where the run hasn't made it."""
    kind = specs.parse_target(spec).kind
    quantized = models.quantized and (models.tuned or models.base)
    needed = {"base": models.base, "tuned": models.tuned, "quantized": quantized}
    if kind in needed and not needed[kind]:
        raise ConfigError(
            f"judge {spec}: this run has no such model",
            "name a finished run's configuration, or another judge: --judge with gemini:MODEL, openai:URL#MODEL, "
            "gguf:FILE@TOKENIZER, or a checkpoint's folder",
        )


def judge_all(
    out: Path,
    comparisons: Sequence[AnswerPairs],
    judges: Sequence[Target],
    settings: JudgeConfig,
    evaluation: EvaluateConfig,
    *,
    batch: int,
    teachers: Sequence[str] = (),
    release: ReleaseConfig | None = None,
) -> list[JudgedComparison]:
    """Judge every comparison into its own folder below `out`, and close the judges.

    Raises BoundaryError before anything is asked when a judge may not see what one of the sides learned from.
    """
    found = []
    try:
        check_sides(judges, comparisons)
        known = calibration.read_calibration(Path(settings.calibration)) if settings.calibration else None
        for one in comparisons:
            judged = panel.judge_pairs(
                out / one.folder,
                one.pairs,
                judges,
                rubric.parse_rubric(one.rubric, f"the rubric of {one.task or 'this comparison'}"),
                settings,
                first=one.first,
                second=one.second,
                task=one.task,
                batch=batch,
                confidence=evaluation.confidence,
                seed=evaluation.seed,
                teachers=teachers,
                calibration=known,
            )
            if release and any(side.answers != side.learned for side in (one.first, one.second) if side):
                judged.body["release"] = release.model_dump(mode="json")
            judged.write(out / one.folder)
            found.append(judged)
    finally:
        close(judges)
    return found


def check_sides(judges: Sequence[Target], comparisons: Sequence[AnswerPairs]) -> None:
    """Raise BoundaryError when a judge may not see the answers of a model, because of what that model learned from."""
    for judge in judges:
        for side in (side for one in comparisons for side in (one.first, one.second) if side):
            if side.answers not in judge.sees:
                raise BoundaryError(
                    f"{side.name} learned from rows of class {side.learned}, so its answers are {side.answers}, and "
                    f"{judge.name} may not see them; nothing was asked",
                    "take a judge on this machine, or have a person release them: release.to=any and "
                    "release.reason=…, which is written into the verdict, the report and the card",
                )


def close(judges: Sequence[Target]) -> None:
    """Free what the judges hold."""
    for judge in judges:
        judge.close()
