"""Checks before the first step: what would end a run later is reported before a teacher is paid and a model trained.

Only what steps read that are still to be made is checked, and everything that is found is reported at once. Nothing is
loaded or sent, and what is checked is what the steps themselves would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gemma_ops.config import RunConfig
from gemma_ops.errors import BoundaryError, BudgetError, ConfigError, ModelError, OpsError
from gemma_ops.evaluation import evaluation_checks
from gemma_ops.export.coarse_files import check_coarse
from gemma_ops.family.formats import REFERENCE
from gemma_ops.planning.training_plan import resolve_base
from gemma_ops.privacy.classes import answers_class
from gemma_ops.recipes import first_rows, inputs
from gemma_ops.recipes.finding import Recipe
from gemma_ops.runs.artifact import MANIFEST
from gemma_ops.targets.spec import QUANTIZED, TargetSpec, parse_target
from gemma_ops.tasks.task import Task, load_all, validate_tasks
from gemma_ops.toolenvs.format_tools import missing_tools


def check_ahead(config: RunConfig, recipe: Recipe, *, until: str | None = None, redo: Iterable[str] = ()) -> None:
    """Raise what a later step would: the error itself when there is one, a ConfigError that lists them otherwise. A
    recipe whose steps are only known when it runs is not checked."""
    if (known := recipe.steps) is None:
        return
    order = list(known)
    wanted = order[: order.index(until) + 1] if until in order else order
    made = Path(config.machine.runs) / config.name
    ahead = {step for step in wanted if step in redo or not (made / step / MANIFEST).is_file()}
    found = _Findings(config, known)
    if "synthesize" in ahead:
        found.synthesis()
    if "train" in ahead:
        found.training(merges="merge" in ahead, reads="prepare" in ahead)
    if "quantize" in ahead:
        found.quantization()
        found.problems += missing_tools(config.quantize, config.machine)
    if "evaluate" in ahead:
        found.evaluation()
    if "register" in ahead:
        found.registration()
    found.door()
    found.tell()


class _Findings:
    """Problems so far, and the Gemini models that will be asked."""

    def __init__(self, config: RunConfig, steps: dict[str, frozenset[str] | None]) -> None:
        self.config, self.steps = config, steps
        self.problems: list[OpsError] = []
        self.gemini: list[TargetSpec] = []

    @contextmanager
    def also(self) -> Iterator[None]:
        """Note what is raised inside, and go on."""
        try:
            yield
        except OpsError as error:
            if all(known.what != error.what for known in self.problems):
                self.problems.append(error)

    def add(self, what: str, fix: str) -> None:
        with self.also():
            raise ConfigError(what, fix)

    def synthesis(self) -> None:
        from gemma_ops.synth import synthesis_inputs, teacher_model

        settings = self.config.synth
        if teacher_model(settings) is None:
            self._target(settings.teacher, "synth.teacher", "synthesize", ("base",))
        if settings.judge:
            self._target(settings.judge, "synth.judge", "synthesize", ("base",))
        with self.also():
            synthesis_inputs(settings)
        from gemma_ops.synth import methods as synths
        from gemma_ops.synth import plan_requests

        given = {"documents": settings.documents, "seeds": settings.seeds, "tools": settings.tools}
        wanted = [name for name, count in plan_requests.counts(settings).items() if count]
        if not wanted:
            self.add("synth.count asks for no rows", "for example --set synth.count.document_qa=200")
        for name in wanted:
            needs = synths.METHODS[name].from_what
            if needs in given and given[needs] is None:
                self.add(f"synth.count.{name} needs synth.{needs}", f"give a path: --set synth.{needs}=…")

    def training(self, *, merges: bool, reads: bool) -> None:
        from gemma_ops.training.launch import launch_checks

        train, inputs = self.config.train, self.steps["train"]
        for problem in launch_checks.launch_problems(train, self.config.launch, self.config.machine):
            with self.also():
                raise problem
        if train.method == "distill" and inputs is not None and "teacher" not in inputs:
            self.add(
                f"the recipe {self.config.recipe} has no teacher for its step train, and train.method distill "
                f"needs one",
                "use the recipe lora, or give the step `teacher=` as it does",
            )
        if train.method == "reward" and merges:
            self.add(
                "a reward model is not a language model to merge and serve",
                "stop after the training: gemma-ops train, or run --until train",
            )
        if reads and self.config.data.path and "synthesize" not in self.steps:
            with self.also():
                first_rows.check_first_rows(self.config, Path(self.config.data.path).expanduser())

    def evaluation(self) -> None:
        settings = self.config.evaluate
        judge = settings.judge
        with self.also():
            evaluation_checks.check_targets(settings)
        answering = [self._target(name, "evaluate.targets", "evaluate") for name in settings.targets]
        judging = [self._target(name, "evaluate.judge.judges", "evaluate") for name in judge.judges]
        if judge.judges:
            for key, names in (("first", (judge.first,)), ("versus", judge.versus)):
                for name in names:
                    if name not in settings.targets:
                        self.add(
                            f"evaluate.judge.{key}: {name!r} is not among evaluate.targets",
                            f"add it there, or use one of {', '.join(settings.targets)}",
                        )
            with self.also():
                inputs.calibration(self.config)
        with self.also():
            source = inputs.questions_read(self.config)
            folders = inputs.tasks(self.config)
            tasks = [task.first(settings.rows) for task in load_all(folders, source.path if source else None)]
            for index in range(len(settings.gates)):
                with self.also():
                    evaluation_checks.check_gate(index, settings, tasks)
            with self.also():
                evaluation_checks.check_shown_tasks(settings, tasks, mmproj=self.config.quantize.mmproj)
            for task in tasks:
                with self.also():
                    validate_tasks(task)
                if settings.hidden == "refuse":
                    self._shown(task, answering, "or skip those rows: evaluate.hidden=skip")
                self._shown(task.first(judge.rows), judging, "or name another judge")
        self._judged(judging)
        if any(gate.metric == "usd_per_1k" for gate in settings.gates):
            from gemma_ops.evaluation import answer_cost

            places = {name: {"place": "elsewhere"} for name in settings.targets if ":" in name}
            with self.also():
                answer_cost.check_cost(
                    settings.gates, {"targets": places, "machine": answer_cost.hour(self.config.machine)}
                )

    def _judged(self, judging: Sequence[TargetSpec | None]) -> None:
        """Check that no judge sees answers that it may not, because of the rows their model will learn from. Rows may
        be stricter than `data.privacy`; what only they say is reported when they have been read."""
        judge = self.config.evaluate.judge
        made = [name for name in (judge.first, *judge.versus) if name in ("tuned", *QUANTIZED)]
        if not made or "train" not in self.steps:
            return
        learned = self.config.data.privacy
        answers = answers_class(learned, self.config.release)
        for spec in judging:
            if spec is not None and spec.kind == "gemini" and answers not in self._sees(spec):
                with self.also():
                    raise BoundaryError(
                        f"{made[0]} will learn from rows of class {learned} (data.privacy), so its answers are "
                        f"{answers}, and the judge {spec.name} may not see them",
                        "take a judge on this machine, set data.privacy if the rows may leave, or have a person "
                        "release the answers: release.to=any and release.reason=…",
                    )

    def _sees(self, spec: TargetSpec) -> frozenset[str]:
        from gemma_ops.targets.gemini_target import seen_by

        return seen_by(spec.model, self.config.machine.gemini)

    def quantization(self) -> None:
        size = None
        with suppress(ModelError):  # which the step `fetch` tells
            _, size = resolve_base(self.config.model.base)
        with self.also():
            check_coarse(self.config.quantize, size.key if size else None)

    def registration(self) -> None:
        formats, inputs = self.config.quantize.formats, self.steps["register"]
        if "quantize" not in self.steps or (inputs is not None and "quantized" not in inputs):
            return
        for name in self.config.register_.artifacts:
            if name in QUANTIZED and name not in (REFERENCE, *formats):
                self.add(
                    f"register.artifacts names {name}, and quantize.formats makes only "
                    f"{', '.join(formats) or REFERENCE}",
                    f"add {name} to quantize.formats, or take it out: --set 'register.artifacts=[…]'",
                )

    def door(self) -> None:
        """Check what must be there before anything is sent to Gemini, if anything will be."""
        if not self.gemini:
            return
        from gemma_ops.gemini.models import model_facts

        settings = self.config.machine.gemini
        costly = next((spec.model for spec in self.gemini if model_facts(spec.model).paid_tier), None)
        if costly and settings.budget_usd is None:
            with self.also():
                raise BudgetError(
                    f"requests to {costly} cost money, and this run has no budget",
                    "set machine.gemini.budget_usd to the most that this run may spend",
                )
        self.problems += evaluation_checks.refusals(settings)

    def tell(self) -> None:
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            each = "\n".join(f"  {error.what}\n    try: {error.fix}" for error in self.problems)
            raise ConfigError(
                f"{len(self.problems)} problems would end this run later, so nothing was started:\n{each}",
                "correct them and start again",
            )

    def _target(self, name: str, where: str, step: str, own: Sequence[str] = ()) -> TargetSpec | None:
        """Return the specification behind a name, if it can be what it is to be."""
        with self.also():
            spec = parse_target(name)
            if spec.kind == "gemini":
                self._gemini(spec, where)
            elif spec.kind == "openai":
                from gemma_ops.targets import open_target

                open_target(name, self.config.machine, run=self.config.name, use="evaluate").close()
            elif spec.place:
                self._file(spec, where)
            else:
                self._own(spec, where, step, own)
            return spec
        return None

    def _gemini(self, spec: TargetSpec, where: str) -> None:
        from gemma_ops.gemini.models import model_facts

        known = model_facts(spec.model)
        if not known.takes(spec.thinking):
            raise ConfigError(
                f"{where}: {spec.model} has no thinking level {spec.thinking!r}",
                f"leave it out, or use one of {', '.join(known.thinking) or 'none: its levels are not known'}",
            )
        self.gemini.append(spec)

    def _file(self, spec: TargetSpec, where: str) -> None:
        """Check that a folder or file is there, or below this run's own folder, where it may be yet to come."""
        run = (Path(self.config.machine.runs) / self.config.name).absolute()
        for text in filter(None, (spec.place, spec.tokenizer)):
            path = Path(text).expanduser().absolute()
            if not path.exists() and run not in path.parents:
                raise ConfigError(f"{where}: {spec.name}: {text} does not exist", "correct the path")

    def _own(self, spec: TargetSpec, where: str, step: str, own: Sequence[str]) -> None:
        """Check that this run makes a model, and gives it to the step that is to use it."""
        given = own or self.steps[step]
        key = "quantized" if spec.name in QUANTIZED else spec.name
        if given is not None and key not in given:
            raise ConfigError(
                f"{where}: the recipe {self.config.recipe} has no {spec.name} for its step {step}",
                f"take {spec.name} out, or use a recipe that makes it",
            )
        formats = self.config.quantize.formats
        if key == "quantized" and "quantize" in self.steps and spec.name not in ("bf16", *formats):
            raise ConfigError(
                f"{where}: quantize.formats makes no {spec.name}, only {', '.join(formats) or REFERENCE}",
                f"add {spec.name} to quantize.formats, or take it out of {where}",
            )

    def _shown(self, task: Task, specs: Sequence[TargetSpec | None], otherwise: str) -> None:
        """Check rows that a Gemini model may not see, where that would end the run."""
        for spec in specs:
            if spec is None or spec.kind != "gemini":
                continue
            sees = self._sees(spec)
            hidden = [row for row in task.rows if row.privacy not in sees]
            if hidden:
                with self.also():
                    raise BoundaryError(
                        f"{len(hidden):,} of {len(task.rows):,} rows of task {task.name} are {hidden[0].privacy}, and "
                        f"{spec.name} may not see them (the first: {hidden[0].id})",
                        f"relax `privacy` of these rows if they may leave the machine, {otherwise}",
                    )
