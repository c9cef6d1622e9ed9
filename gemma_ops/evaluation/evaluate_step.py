"""The step `evaluate`: ask every target every question, grade, decide, and write it all down.

What is written: `answers.jsonl` and `scores.jsonl` (evidence), `judge/` (what judges said, where any is named),
`verdict.json` (what it says), `routing.json` (which questions to keep here, when a service answered too), `canary.json`
(what a server must answer before it may serve), `probes.jsonl` (which training rows came back), `report.html`,
`summary.md` and `junit.xml` (for people and for CI). A killed evaluation goes on from the last finished batch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemma_ops import __version__
from gemma_ops.answer import Prompt
from gemma_ops.config import EvaluateConfig, MachineConfig
from gemma_ops.config.policy import CHAMPION
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation import (
    answer_cost,
    ask_targets,
    canary_rows,
    elsewhere,
    junit,
    looks,
    make_verdict,
    policy_gates,
    probes,
    provenance,
    report_html,
    routing_table,
    verdict_summary,
)
from gemma_ops.evaluation.evaluation_checks import check_gates, check_targets, load_checked
from gemma_ops.family.formats import QUANTIZED
from gemma_ops.judging import judge_evaluation
from gemma_ops.judging.judge_material import Side
from gemma_ops.judging.judged import JudgedComparison, figures
from gemma_ops.privacy.classes import HERE, class_of, release_of
from gemma_ops.runs.durable import write_json, write_text
from gemma_ops.targets import open_target
from gemma_ops.targets.run_models import RunModels
from gemma_ops.targets.target import LOCAL, Target, learned_by
from gemma_ops.tasks import conditions, grades, stored_answers
from gemma_ops.tasks.conditions import ConditionsFile
from gemma_ops.tasks.grades import Graded
from gemma_ops.tasks.question_copies import join_copies
from gemma_ops.tasks.stored_answers import AnswerFile
from gemma_ops.tasks.task import Task
from gemma_ops.verdicts import CANARY, ROUTING, VERDICT, Look, SafetyFacts, TargetFacts, Verdict
from gemma_ops.verdicts.measurements import ValueSpan


def evaluate(
    out: Path,
    settings: EvaluateConfig,
    machine: MachineConfig,
    *,
    base: Path | None = None,
    tuned: Path | None = None,
    quantized: Path | None = None,
    data: Path | None = None,
    source: Path | None = None,
    calibration: Path | None = None,
    champion: Path | None = None,
    tasks: tuple[Path, ...],
) -> dict[str, float]:
    """Evaluate `settings.targets` on `tasks`. See `gemma_ops.evaluation.evaluate` for inputs, files and errors."""
    models, run = RunModels(base, tuned, quantized, champion), ask_targets.run_name(out)

    def opening(name: str) -> Target:
        asked = ask_targets.asking_mode(name, settings, models)
        return open_target(name, machine, run=run, use="evaluate", models=models, asked=asked)

    def can(name: str) -> bool:
        made = {"base": base, "tuned": tuned, CHAMPION: champion}
        file = quantized / QUANTIZED[name].path if quantized and name in QUANTIZED else None
        return file.is_file() if file else made.get(name) is not None

    loaded, asked = load_checked(settings, tasks, source, out.parent), policy_gates.read_standard(champion, base)
    settings = policy_gates.hold_to_standard(settings, asked, loaded, can)
    check_targets(settings)
    check_gates(settings, loaded)
    targets = [opening(name) for name in settings.targets]
    facts = provenance.collect_provenance(targets, machine, models, data=data)
    facts |= policy_gates.standard_facts(asked)
    answer_cost.check_cost(settings.gates, facts)
    stored_answers.take_kept_answers(out)
    release = release_of(machine)
    sides = {
        target.name: Side.of_model(target.name, target.identity, target.family, learned_by(target), release)
        for target in targets
    }

    def judging(graded: Sequence[Graded]) -> list[JudgedComparison]:
        return judge_evaluation(
            out / stored_answers.JUDGED, settings.judge, settings, machine, graded, sides, run=run, data=data,
            models=models
        )  # fmt: skip

    return run_evaluation(
        out,
        settings,
        loaded,
        targets,
        facts,
        batch=machine.eval_batch,
        judging=judging if settings.judge.judges else None,
        known=policy_gates.registered_looks(champion),
        probing=lambda: probes.probe_model(
            out, settings.probes, settings.targets, opening, data=data, base=base is not None, batch=machine.eval_batch
        ),
    )


def regrade(
    out: Path,
    settings: EvaluateConfig,
    machine: MachineConfig,
    *,
    answers: Path,
    source: Path | None = None,
    tasks: tuple[Path, ...],
) -> dict[str, float]:
    """Grade the stored answers of an earlier evaluation again, with the tasks as they are now. No model is loaded, and
    no judge is asked: gates on judges only report.

    Raises DataError when a question has changed or is new, since then there is no answer to grade.
    """
    loaded = load_checked(settings, tasks, source)
    before = Verdict.read(answers / VERDICT)
    shutil.copyfile(answers / "answers.jsonl", out / "answers.jsonl")
    for name in (conditions.FILE, CANARY, probes.FILE):
        if (answers / name).is_file():
            shutil.copyfile(answers / name, out / name)
    targets = [_Recorded(name, before.targets) for name in settings.targets]
    kept = ("run", "model", "targets", "machine", "gemini", "data", "release", "standard", "safety", "kv", "canary")
    facts = {key: fact for key, fact in before.to_json().items() if key in kept}
    # One row a batch, so that what is missing is counted row by row.
    return run_evaluation(out, settings, loaded, targets, facts, batch=1)


def run_evaluation(
    out: Path,
    settings: EvaluateConfig,
    tasks: Sequence[Task],
    targets: Sequence[Target],
    facts: dict[str, Any],
    *,
    batch: int,
    judging: Callable[[Sequence[Graded]], list[JudgedComparison]] | None = None,
    known: Sequence[Look] = (),
    probing: Callable[[], SafetyFacts | None] | None = None,
) -> dict[str, float]:
    """Answer what isn't answered, grade everything, have it judged, write the files, return the metrics."""
    stored, timed = AnswerFile(out / stored_answers.FILE), ConditionsFile(out / conditions.FILE)
    ask_targets.readable(targets, tasks)
    if settings.control_tokens == "refuse":
        ask_targets.refuse_control_questions(targets, tasks)
    if settings.hidden == "refuse":
        ask_targets.check_targets(targets, tasks)
    for target in targets:
        ask_targets.ask_targets(target, tasks, stored, timed, batch)
    tasks = [join_copies(task) for task in tasks]
    found = [(target, task, ask_targets.complete(target, task, stored)) for target in targets for task in tasks]
    stored.finish(answer.key for *_, part in found for answer in part if answer.end != "hidden")
    facts = {"run": ask_targets.run_name(out), "made_by": f"gemma-ops {__version__}", **facts}
    facts |= _asked(timed, targets, tasks)
    graded = [grades.grade_answers(task, target.name, part) for target, task, part in found]
    graded.sort(key=lambda item: [task.name for task in tasks].index(item.task.name))
    write_text(out / grades.FILE, "".join(grades.grade_lines(graded)))
    if kept := canary_rows.canary_record(found):
        write_json(out / CANARY, kept, indent=1)
        facts |= {"canary": canary_rows.recorded_answers(kept)}
    if probing and (safety := probing()):
        facts |= {"safety": safety}
    judged = judging(graded) if judging else []
    record = looks.look_place(out)
    standing = looks.take_look(graded, settings, facts, looks.known_looks(out, known)) if settings.gates else None
    body = make_verdict.build_verdict(graded, settings, facts, judged, standing)
    if standing is not None:
        looks.record_look(record, standing, body.verdict)
    shown = elsewhere.for_others(body, tasks) if elsewhere.hides(tasks) else None
    if shown:
        (out / elsewhere.FOLDER).mkdir(exist_ok=True)
        write_text(out / elsewhere.FOLDER / "summary.md", verdict_summary.summary_markdown(shown))
        write_text(out / elsewhere.FOLDER / VERDICT, shown.text())
        if shown.routing:
            write_text(out / elsewhere.FOLDER / ROUTING, shown.routing.text())
    writers: dict[str, Callable[[], str]] = {
        "report.html": lambda: report_html.report_page(body, graded),
        "summary.md": lambda: verdict_summary.summary_markdown(body),
        "junit.xml": lambda: junit.junit_xml(body),
        **({ROUTING: body.routing.text} if body.routing else {}),
        # Last, since whoever finds a verdict may rely on the rest.
        VERDICT: body.text,
    }
    for name, make in writers.items():
        write_text(out / name, make())
    return evaluation_metrics(body)


def _asked(timed: ConditionsFile, targets: Sequence[Target], tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the `date` of the first question, and `asked`: the conditions of every target's answers to every task."""
    who = {(target.name, target.identity) for target in targets}
    used = [
        one
        for one in timed.known.values()
        if (one.target, one.identity) in who and one.task in {task.name for task in tasks}
    ]
    if used:
        timed.finish(one.key for one in used)
    shown = {
        (target.name, task.name): len(ask_targets.visible_rows(target, task)) for target in targets for task in tasks
    }
    found = conditions.asked_facts(used, targets, tasks, shown)
    return {"date": conditions.date_of(found), "asked": found}


def evaluation_metrics(verdict: Verdict) -> dict[str, float]:
    """Return flat figures for the run and for MLflow: `task/target/metric`, with `/low` and `/high`; differences;
    speed."""
    flat: dict[str, float] = {}

    def interval(name: str, found: ValueSpan) -> None:
        flat.update(zip((name, f"{name}/low", f"{name}/high"), found, strict=True))

    for result in verdict.results:
        prefix = f"{result.task}/{result.target}"
        for name, figure in result.metrics.items():
            if figure.span:
                interval(f"{prefix}/{name}", figure.span)
        flat |= {f"{prefix}/{name}": value for name, value in result.speed.to_json().items() if value is not None}
        dollars = result.cost
        if dollars.usd_per_1k is not None:
            flat[f"{prefix}/usd_per_1k"] = dollars.usd_per_1k
            ends = {"low": dollars.low, "high": dollars.high}
            flat |= {f"{prefix}/usd_per_1k/{end}": value for end, value in ends.items() if value is not None}
        flat[f"{prefix}/cut"] = float(result.ends.get("length", 0))
        flat[f"{prefix}/failed"] = float(result.failed)
        if result.hidden:
            flat[f"{prefix}/hidden"] = float(result.hidden)
    for item in verdict.differences:
        interval(f"{item.task}/{item.target}-{item.versus}/{item.metric}", item.span)
    for judged in verdict.judged:
        for name, rate in figures(judged).items():
            interval(f"{judged['task']}/{name}", (rate["value"], rate["low"], rate["high"]))
    for table in verdict.routing.tables if verdict.routing else ():
        prefix = f"{table.task}/routing/{table.local.name}-{table.remote.name}"
        lines = table.slice_lines or table.lines
        flat |= {
            f"{prefix}/{kind}": float(sum(line.decision == kind for line in lines)) for kind in routing_table.KINDS
        }
    return flat


class _Recorded:
    """A target of an earlier evaluation: its answers are there, and it can give no new ones."""

    def __init__(self, name: str, known: Mapping[str, TargetFacts]) -> None:
        if name not in known:
            raise ConfigError(f"target {name} did not answer in that evaluation", f"use some of: {', '.join(known)}")
        facts = known[name]
        self.name, self.identity = name, facts.identity
        self.sees = LOCAL if facts.sees is None else frozenset(facts.sees)
        self.place, self.lockstep = HERE, False
        self.reads = frozenset({"text", "image", "audio"})  # it answered
        self.family = facts.family
        self.learned = class_of(facts.learned)

    def answer(
        self, batches: Sequence[Sequence[Prompt]], *, max_new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Any:
        count = sum(map(len, batches))
        raise DataError(
            f"{count} question{'s have' if count > 1 else ' has'} no stored answer of {self.name}: the task's "
            f"questions changed",
            "evaluate again instead of grading again",
        )

    def close(self) -> None:
        """Do nothing: there is nothing to free."""
