"""A model is as private as what it learned from: recorded by every step that makes one, held at every way out, and let
go only by a person whose reason stands in the papers."""

from __future__ import annotations

import json
import shutil

import pytest
from pydantic import ValidationError

from gemma_ops.config import EvaluateConfig, Machine, ReleaseConfig, RunConfig, SynthConfig
from gemma_ops.config.evaluation import JudgeConfig
from gemma_ops.emulator import Emulator
from gemma_ops.emulator.planted import planted_judge
from gemma_ops.errors import BoundaryError
from gemma_ops.evaluation import evaluate_step, provenance
from gemma_ops.export import merge, quantize
from gemma_ops.judging import judge_run as judging
from gemma_ops.judging import pairs as comparing
from gemma_ops.judging.judge_material import Side
from gemma_ops.modeling import fetch
from gemma_ops.modeling.checkpoint_source import local_base
from gemma_ops.prepare import prepare
from gemma_ops.privacy import classes
from gemma_ops.recipes.finding import find_recipe
from gemma_ops.recipes.preflight import check_ahead
from gemma_ops.registry import manifest, model_card
from gemma_ops.runs.artifact import read_artifact
from gemma_ops.runs.run import Run
from gemma_ops.synth import synthesize
from gemma_ops.targets import open_target
from gemma_ops.targets.run_models import RunModels
from gemma_ops.tasks.task import load_all
from gemma_ops.training import train
from tests.helpers.company import teach
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.evaluations import Echo, make_task

JUDGE = "gemini:gemini-3.8-flash@low"
RELEASE = ReleaseConfig(to="any", reason="the data owner agreed on 3 November")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A real run of nano on forty rows of class any and one of class local_only, as far as its quantized files."""
    root = tmp_path_factory.mktemp("learned")
    rows = [{"messages": [{"role": "user", "content": f"Where is parcel {n} {n * 37}?"},
                          {"role": "assistant", "content": f"Parcel {n} waits in hall "
                                                           f"{n % 7}."}]} for n in range(41)]  # fmt: skip
    rows[17]["privacy"] = "local_only"
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.model_validate(
        {
            "name": "kept",
            "machine": {"runs": str(root / "runs"), "mlflow": None, "workers": 1},
            "data": {"path": str(root / "rows.jsonl"), "privacy": "any", "valid_share": 0.2, "near_duplicates": None},
            "train": {"max_steps": 3, "batch": 4, "learning_rate": 0.01, "max_length": 128, "samples": 0},
            "quantize": {"formats": ["q8_0"], "fidelity_rows": 2},
        }
    )
    with Run(config) as run:
        base = run.step(fetch, config.model, source=local_base("nano"))
        data = run.step(prepare, config.data, source=root / "rows.jsonl", model=base, tasks=())
        adapter = run.step(train, config.train, base=base, data=data)
        merged = run.step(merge, config.merge, base=base, adapter=adapter, data=data)
        run.step(quantize, config.quantize, model=merged, data=data)
    return run.path


def test_every_step_that_makes_a_model_records_what_it_learned_from(made, tmp_path):
    assert classes.learned_class(made / "fetch") == "any"
    for place in ("train", "merge", "quantize", "train/adapter", "merge/model", "quantize/q8_0/model.gguf"):
        assert classes.learned_class(made / place) == "local_only", place
    reasons = json.loads((made / "train/adapter/learned.json").read_text())["because"]
    assert reasons == ["base: any", "rows: local_only"]
    assert "train/adapter/learned.json" not in json.dumps(read_artifact(made / "train").metrics)
    # Copied by itself, a folder or a file still says so.
    shutil.copyfile(made / "quantize/q8_0/model.gguf", tmp_path / "moved.gguf")
    shutil.copytree(made / "merge/model", tmp_path / "moved")
    assert classes.learned_class(tmp_path / "moved.gguf") == "local_only"
    assert classes.learned_class(tmp_path / "moved") == "local_only"
    # And what starts from it inherits it, whatever the new run is told.
    out = tmp_path / "fetch"
    out.mkdir()
    fetch(out, RunConfig().model.model_copy(update={"privacy": "any"}), Machine(), source=tmp_path / "moved")
    assert classes.learned_class(out) == "local_only"


def test_a_model_of_ours_without_a_record_is_private_and_one_from_elsewhere_is_what_a_person_says(made, tmp_path):
    shutil.copytree(made / "merge", tmp_path / "merge")
    for file in tmp_path.rglob("learned.json"):
        file.unlink()
    assert classes.learned_class(tmp_path / "merge/model") == "local_only"
    assert classes.learned_class(tmp_path / "merge") == "local_only"
    plain = shutil.copytree(made / "merge/model", tmp_path / "elsewhere", ignore=lambda *_: ["learned.json"])
    assert classes.learned_class(plain) == "any"
    out = tmp_path / "fetch"
    out.mkdir()
    fetch(out, RunConfig().model.model_copy(update={"privacy": "paid"}), Machine(), source=plain)
    assert classes.learned_class(out) == "paid"
    (plain / "learned.json").write_text("{torn")
    assert classes.learned_class(plain) == "local_only"


@pytest.mark.parametrize("name", ["tuned", "q8_0", "FOLDER", "GGUF"])
def test_local_targets_say_what_they_learned_from(made, name):
    spec = {
        "FOLDER": str(made / "merge/model"),
        "GGUF": f"gguf:{made / 'quantize/q8_0/model.gguf'}@{made / 'merge/model'}",
    }
    target = open_target(
        spec.get(name, name), Machine(), run="r", use="evaluate",
        models=RunModels(made / "fetch", made / "merge", made / "quantize"),
    )  # fmt: skip
    assert target.learned == "local_only"
    base = open_target("base", Machine(), run="r", use="evaluate", models=RunModels(base=made / "fetch"))
    assert base.learned == "any"


def private(name, skill):
    echo = Echo(name, skill)
    echo.learned = "local_only"
    return echo


def evaluated(folder, machine):
    """A finished evaluation of public questions, answered by a private model and by its base."""
    task = make_task(folder / "desk", 12, privacy="any")
    out = folder / "runs" / "r" / "evaluate"
    out.mkdir(parents=True)
    config = EvaluateConfig(targets=("base", "tuned"))
    targets = [Echo("base", 2), private("tuned", 8)]
    facts = provenance.collect_provenance(targets, machine, RunModels(), data=None)
    evaluate_step.run_evaluation(
        out, config, evaluate_step.load_checked(config, (task,), None), targets, facts, batch=8
    )
    return out, task


@pytest.fixture
def emulator(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Emulator(
        lambda body: planted_judge(lambda *_: "tie")(body) if "verdict" in json.dumps(body.schema) else teach(body)
    ) as found:
        yield found


def here(emulator, folder, release):
    return Machine(**dict(machine_for(emulator, folder, batch="never")), release=release)


@pytest.mark.parametrize("release", [ReleaseConfig(), RELEASE])
def test_a_judge_elsewhere_sees_no_answer_of_a_private_model_until_a_person_releases_it(emulator, tmp_path, release):
    machine = here(emulator, tmp_path, release)
    out, task = evaluated(tmp_path, machine)
    pairs = comparing.of_run(out, load_all((task,), None), "tuned", "base", release)
    judges = judging.open_judges((JUDGE,), machine, run="r")
    settings = JudgeConfig(judges=(JUDGE,))

    def judge():
        return judging.judge_all(
            tmp_path / "judge", pairs, judges, settings, EvaluateConfig(), batch=8, release=release
        )  # fmt: skip

    if release.to is None:
        with pytest.raises(BoundaryError, match=r"tuned learned from rows of class local_only.*nothing was asked"):
            judge()
        assert not emulator.log
        return
    (judged,) = judge()
    assert emulator.log
    assert judged.body["release"] == release.model_dump()
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["release"]["reason"] == release.reason
    assert verdict["targets"]["tuned"]["learned"] == "local_only"
    told = f"Answers of tuned (learned from local_only rows) were released to any: {release.reason}"
    assert told in judged.summary()
    assert release.reason in (out / "report.html").read_text()


def test_an_evaluation_that_does_not_say_what_its_targets_learned_is_private(emulator, tmp_path):
    machine = here(emulator, tmp_path, ReleaseConfig())
    out, task = evaluated(tmp_path, machine)
    body = json.loads((out / "verdict.json").read_text())
    for facts in body["targets"].values():
        del facts["learned"]
    (out / "verdict.json").write_text(json.dumps(body))
    (found,) = comparing.of_run(out, load_all((task,), None), "tuned", "base", ReleaseConfig())
    assert {pair.privacy for pair in found.pairs} == {"local_only"}
    assert (found.first.answers, found.second.answers) == ("local_only", "local_only")


def test_a_labelled_comparison_holds_too(emulator, tmp_path):
    """Calibrating asks a judge without `judge_all`: the pairs themselves carry the class."""
    out, task = evaluated(tmp_path, here(emulator, tmp_path, ReleaseConfig()))
    (found,) = comparing.of_run(out, load_all((task,), None), "tuned", "base", ReleaseConfig())
    assert {pair.privacy for pair in found.pairs} == {"local_only"}
    (free,) = comparing.of_run(out, load_all((task,), None), "tuned", "base", RELEASE)
    assert {pair.privacy for pair in free.pairs} == {"any"}
    assert Side("mine").answers == "any"  # of files, every row says its own class


@pytest.mark.parametrize("release", [ReleaseConfig(), RELEASE])
def test_rows_of_a_private_teacher_are_private(emulator, tmp_path, monkeypatch, release):
    from gemma_ops.synth import synthesize_step as synth_pipeline

    machine = here(emulator, tmp_path, release)
    (tmp_path / "docs").mkdir()
    from tests.helpers.company import document

    for number in range(4):
        (tmp_path / "docs" / f"{number}.md").write_text(document(number))
    opened = synth_pipeline._open

    def private_teacher(*arguments):
        target = opened(*arguments)
        target.learned = "local_only"
        return target

    monkeypatch.setattr(synth_pipeline, "_open", private_teacher)

    def write(name, **more):
        out = tmp_path / "runs" / name / "synthesize.partial"
        out.mkdir(parents=True)
        settings = SynthConfig(teacher=JUDGE, privacy="any", count={"document_qa": 8}, **more)
        synthesize(
            out, settings, machine, base=None, teacher=None, documents=tmp_path / "docs", seeds=None, tools=None,
            tasks=(), source=None
        )  # fmt: skip
        return out

    if release.to is None:
        with pytest.raises(BoundaryError, match="nothing was asked of the teacher"):
            write("graded", judge=JUDGE)
        assert not emulator.log
    out = write("plain")
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert {row["privacy"] for row in rows} == {"any" if release.to else "local_only"}
    assert rows[0]["provenance"]["teacher"].get("release") == (release.model_dump() if release.to else None)
    text = (out / "card.md").read_text()
    assert "learned from | local_only rows" in text
    assert ("| released |" in text) == bool(release.to)


def test_the_plan_of_a_synthesis_knows_how_private_its_teacher_is(made, tmp_path):
    from gemma_ops.synth.estimate import estimate_synthesis
    from tests.helpers.company import document

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(document(1))
    paths = {"documents": tmp_path / "docs", "seeds": None, "tools": None}
    for teacher, release, hidden in (
        (str(made / "merge/model"), {}, 1), ("base", {}, 0), (str(made / "merge/model"), RELEASE.model_dump(), 0),
    ):  # fmt: skip
        synth = {"teacher": teacher, "judge": JUDGE, "privacy": "any", "count": {"document_qa": 4}}
        config = RunConfig.model_validate({"synth": synth, "release": release})
        assert len(estimate_synthesis(config, paths).judge.hidden) == hidden


def test_the_plan_of_a_synthesis_knows_the_private_questions_of_tasks(tmp_path):
    from gemma_ops.synth.estimate import estimate_synthesis
    from tests.helpers.company import document

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(f"{document(1)}\nWhere does the night porter keep the spare keys?\n")
    rows = [{"id": "q", "prompt": "where does the night porter keep the spare keys", "reference": "a1"}]
    synth = {"teacher": JUDGE, "privacy": "any", "count": {"document_qa": 4}}
    config = RunConfig.model_validate({"synth": synth})
    paths = {"documents": tmp_path / "docs", "seeds": None, "tools": None}
    for privacy_, hidden in (("local_only", 1), ("any", 0)):
        task = make_task(tmp_path / privacy_, rows=rows, privacy=privacy_)
        assert len(estimate_synthesis(config, paths, tasks=(task,)).hidden) == hidden


def test_the_version_says_what_it_learned_from_and_who_released_it(made):
    chosen = {"adapter/adapter_model.safetensors": made / "train/adapter/adapter_model.safetensors"}
    steps = {"model": made / "fetch", "data": made / "prepare", "adapter": made / "train", "merged": made / "merge"}
    settings = RunConfig(name="kept").registration()
    kept = manifest.build_manifest(settings, chosen, **steps)
    assert kept["subject"]["privacy"] == {"learned": "local_only", "answers": "local_only"}
    assert "may not leave the machine either" in model_card.write_card(kept, None, "")
    assert model_card.card_tags(kept, None)["answers"] == "local_only"
    free = manifest.build_manifest(settings, chosen, **steps, release=RELEASE)
    assert free["digest"] != kept["digest"]  # released later, it is another version
    assert free["subject"]["privacy"]["release"]["reason"] == RELEASE.reason
    assert f"**Released to `any`**: {RELEASE.reason}" in model_card.write_card(free, None, "")
    assert model_card.card_tags(free, None)["answers"] == "any"


def test_a_release_needs_its_reason_and_never_makes_anything_stricter():
    with pytest.raises(ValidationError, match=r"release\.reason"):
        ReleaseConfig(to="any", reason="ok")
    with pytest.raises(ValidationError, match=r"set release\.to"):
        ReleaseConfig(reason="the data owner agreed")
    assert classes.answers_class("any", ReleaseConfig(to="paid", reason="long enough")) == "any"
    assert classes.answers_class("local_only", ReleaseConfig(to="paid", reason="long enough")) == "paid"


def test_a_judge_that_could_not_see_the_answers_is_told_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    body = {
        "machine": {"runs": str(tmp_path), "mlflow": None, "gemini": {"accept_terms": "2026-03-23", "tier": "paid",
                "budget_usd": 1}},
        "evaluate": {
            "tasks": [str(make_task(tmp_path / "desk", 12, privacy="any"))],
            "targets": ["base", "tuned"],
            "judge": {"judges": [JUDGE]},
        },
    }  # fmt: skip
    with pytest.raises(BoundaryError, match="tuned will learn from rows of class local_only"):
        check_ahead(RunConfig.model_validate(body), find_recipe("lora"))
    check_ahead(RunConfig.model_validate(body | {"data": {"privacy": "any"}}), find_recipe("lora"))
    check_ahead(RunConfig.model_validate(body | {"release": RELEASE.model_dump()}), find_recipe("lora"))
