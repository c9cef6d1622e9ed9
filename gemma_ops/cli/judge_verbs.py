"""Verbs for judges: `judge run` compares answers, `judge calibrate` compares judges with people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemma_ops.cli.options import Json, Sets, load_config

if TYPE_CHECKING:
    from gemma_ops.config import JudgeConfig, RunConfig
    from gemma_ops.judging.pairs import AnswerPairs
    from gemma_ops.targets.target import Target
    from gemma_ops.tasks.task import Task

app = typer.Typer()
judge_app = typer.Typer(help="Let models judge answers, and find out how far to believe them.", no_args_is_help=True)
app.add_typer(judge_app, name="judge")

SomeConfigs = Annotated[
    list[str] | None,
    typer.Argument(help="Configuration files, merged left to right: paths or shipped names.", show_default=False),
]
First = Annotated[
    str | None,
    typer.Option(
        help="Target of the run whose answers are judged, or a jsonl file of answers: a row has id, prompt (or "
        "messages), answer, and optionally privacy (local_only unless said), reference, cluster, family, end.",
        show_default=False,
    ),
]
Second = Annotated[
    str | None, typer.Option(help="The other target, or jsonl file; two files are paired by id.", show_default=False)
]
Judges = Annotated[
    list[str] | None,
    typer.Option("--judge", metavar="TARGET", help="A judge; give several for a panel.", show_default=False),
]
Rubric = Annotated[
    Path | None,
    typer.Option(help="Markdown that says what a good answer is; by default the task's.", show_default=False),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write into.", show_default=False)]


@judge_app.command("run")
def judge_run(
    configs: SomeConfigs = None,
    first: First = None,
    second: Second = None,
    judges: Judges = None,
    rubric: Rubric = None,
    out: Out = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Compare two sets of answers, in both orders, with canaries, by one judge or a panel."""
    from gemma_ops.cli import console
    from gemma_ops.judging import judge_run as pipeline
    from gemma_ops.judging import report_judge
    from gemma_ops.runs.durable import write_text

    config = load_config(configs or [], sets, targets=judges or ())
    settings, comparisons = _comparisons(config, first, second, judges, rubric)
    folder = out or Path(config.machine.runs) / config.name / "judge"
    with _shown(folder):
        found = pipeline.judge_all(
            folder,
            comparisons,
            _open(config, settings),
            settings,
            config.evaluate,
            batch=config.machine.eval_batch,
            teachers=_teachers(config),
            release=config.release,
        )
    for judged, one in zip(found, comparisons, strict=True):
        write_text(folder / one.folder / "judge.html", report_judge.judge_page(judged.body))
    if as_json:
        console.print_json([judged.body for judged in found])
        return
    for judged, one in zip(found, comparisons, strict=True):
        for line in judged.summary():
            print(line)
        print(f"report: {folder / one.folder / 'judge.html'}")


@judge_app.command("calibrate")
def judge_calibrate(
    configs: SomeConfigs = None,
    labels: Annotated[
        Path,
        typer.Option(
            help="Human labels, a jsonl file: item (the id of an answer), label (first, second or tie; for answers "
            "alone pass or fail, with side: second for the other side's), and optionally again, a second "
            "person's label.",
            show_default=False,
        ),
    ] = ...,  # type: ignore[assignment]
    first: First = None,
    second: Second = None,
    judges: Judges = None,
    rubric: Rubric = None,
    task: Annotated[
        str | None, typer.Option(help="Which task was labelled, where there are several.", show_default=False)
    ] = None,
    out: Out = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Compare judges with human labels, and keep what is found in calibration.json."""
    from dataclasses import asdict

    from gemma_ops.cli import console
    from gemma_ops.errors import ConfigError
    from gemma_ops.judging import calibrate, calibration, judge_run
    from gemma_ops.judging import rubric as rubrics
    from gemma_ops.judging.calibration_text import calibration_lines

    config = load_config(configs or [], sets, targets=judges or ())
    settings, comparisons = _comparisons(config, first, second, judges, rubric)
    chosen = [one for one in comparisons if task in (None, one.task)]
    if len(chosen) != 1:
        known = ", ".join(one.task for one in comparisons)
        raise ConfigError(f"labels belong to one task, and {len(chosen)} are given", f"add --task with one of {known}")
    one = chosen[0]
    read = calibrate.read_labels(labels, settings.mode, one.pairs)
    folder = out or Path(config.machine.runs) / config.name / "judge" / "calibration"
    opened = _open(config, settings)
    try:
        with _shown(folder):
            found = calibrate.calibrate(
                folder,
                one.pairs,
                read,
                opened,
                rubrics.parse_rubric(one.rubric),
                settings,
                first=one.first,
                second=one.second,
                batch=config.machine.eval_batch,
                confidence=config.evaluate.confidence,
                seed=config.evaluate.seed,
                teachers=_teachers(config),
            )
    finally:
        judge_run.close(opened)
    path = folder / calibrate.FILE
    calibration.write_calibration(path, found)
    if as_json:
        console.print_json(asdict(found))
        return
    for line in calibration_lines(found, path):
        print(line)


def _comparisons(
    config: RunConfig, first: str | None, second: str | None, judges: Sequence[str] | None, rubric: Path | None
) -> tuple[JudgeConfig, list[AnswerPairs]]:
    """Return the judge settings with what the command line says, and the answers it names."""
    from dataclasses import replace

    from gemma_ops.cli import console
    from gemma_ops.errors import ConfigError
    from gemma_ops.judging import pairs
    from gemma_ops.judging.tightening import private_texts, tighten_pairs, tighten_tasks
    from gemma_ops.recipes import inputs
    from gemma_ops.tasks.task import load_all

    settings = config.evaluate.judge
    settings = settings.model_copy(update={"judges": tuple(judges)}) if judges else settings
    first = first or settings.first
    rivals: list[str | None] = [second] if second else list(settings.versus)
    if settings.mode == "pointwise" and not rivals:
        rivals = [None]
    if not first.endswith(".jsonl") and ((second or "").endswith(".jsonl") or not config.evaluate.tasks):
        raise ConfigError(
            "nothing says what to judge",
            "give two files: --first MINE.jsonl --second OTHER.jsonl (the second only for pairs); or the "
            "configuration of a finished evaluation",
        )
    run = Path(config.machine.runs) / config.name
    tasks: list[Task] = []
    if first.endswith(".jsonl"):
        rival = Path(second) if second else None
        found = [pairs.of_files(Path(first), rival)]
    else:
        source = inputs.questions_read(config)
        every = list(load_all(inputs.tasks(config), source.path if source else None))
        tasks = tighten_tasks(every, private_texts(run, every))
        evaluated = run / "evaluate"
        found = [one for rival in rivals for one in pairs.of_run(evaluated, tasks, first, rival, config.release)]
    private = private_texts(run, tasks)
    found = [replace(one, pairs=tighten_pairs(one.pairs, private)) for one in found]
    for line in (line for one in found for line in one.apart):
        console.err().print(line, markup=False)
    if rubric:
        text = _text(rubric)
        found = [replace(one, rubric=text) for one in found]
    return settings, found


def _open(config: RunConfig, settings: JudgeConfig) -> list[Target]:
    from gemma_ops.judging import judge_run
    from gemma_ops.targets.run_models import RunModels

    steps = {name: folder for name in ("fetch", "merge", "quantize") if (folder := _step(config, name))}
    models = RunModels(steps.get("fetch"), steps.get("merge"), steps.get("quantize"))
    return judge_run.open_judges(settings.judges, config.machine, run=config.name, models=models)


def _teachers(config: RunConfig) -> tuple[str, ...]:
    from gemma_ops.judging.judge_lineage import teachers

    return teachers(_step(config, "prepare"))


def _step(config: RunConfig, name: str) -> Path | None:
    folder = Path(config.machine.runs) / config.name / name
    return folder if folder.is_dir() else None


def _text(path: Path) -> str:
    from gemma_ops.errors import ConfigError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}", "give a Markdown file in UTF-8") from error


def _shown(folder: Path) -> Any:
    """Return a log of the judging, and on a terminal print one line per judge."""
    from gemma_ops.cli import console
    from gemma_ops.runs import journal

    def show(step: str, record: dict[str, Any]) -> None:
        if record.get("event") == "judging":
            console.err().print(f"  {record['target']}: {record['total'] - record['done']:,} verdicts to ask for")

    return journal.writing(folder / "logs", "judge", show)
