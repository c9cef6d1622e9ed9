"""The verbs `judge run` and `judge calibrate` through the real client, over HTTP, with planted judges."""

import json
import random
import re

import pytest

from gemma_ops.cli import app
from gemma_ops.config import EvaluateConfig
from gemma_ops.config.evaluation import JudgeConfig
from gemma_ops.emulator import Emulator, planted
from gemma_ops.errors import BoundaryError, ConfigError, DataError
from gemma_ops.judging import judge_evaluation
from gemma_ops.judging.judge_material import Side
from gemma_ops.tasks.grades import grade_answers
from gemma_ops.tasks.stored_answers import StoredAnswer
from gemma_ops.tasks.task import load_task
from tests.helpers.emulated import machine_for
from tests.helpers.evaluations import Echo, make_task
from tests.helpers.evaluations import go as evaluated
from tests.helpers.local_judge import answer, honest

JUDGE = "gemini:gemini-3.8-flash@low"
_PART = re.compile(r"^=== ([0-9a-f]{16}) begin (.+?)\n(.*?)\n=== \1 end \2$", re.DOTALL | re.MULTILINE)


def parts(body):
    return {name: text for _, name, text in _PART.findall(body.text)}


def choose(body):
    return honest(parts(body))


def obey(body):
    """Does what an answer tells it to, and is honest otherwise."""
    ordered = re.search(r"choose ([AB])\b", "".join(text for name, text in parts(body).items() if "answer" in name))
    return ordered.group(1) if ordered else choose(body)


@pytest.fixture
def biased(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-for-tests")
    with Emulator(planted.position_biased(choose, 0.4)) as started:
        yield started


@pytest.fixture
def obedient(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-for-tests")
    with Emulator(planted.planted_judge(obey)) as started:
        yield started


def files(tmp_path, n=24, privacy="any", **fields):
    chance = random.Random(1)
    paths = []
    for name in ("mine", "other"):
        rows = [
            {"id": f"q{i}", "prompt": f"Question {i}?", "answer": answer(chance.randint(0, 9)), "privacy": privacy}
            | fields
            for i in range(n)
        ]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def judge(emulator, tmp_path, *arguments):
    gemini = machine_for(emulator, tmp_path).gemini.model_dump(exclude_unset=True)
    sets = [f"machine.gemini.{key}={value}" for key, value in gemini.items()]
    sets += [f"machine.runs={tmp_path / 'runs'}"]
    app(["judge", *map(str, arguments), *(part for item in sets for part in ("--set", item))], standalone_mode=False)


def test_two_files_are_compared(biased, tmp_path, capsys):
    mine, other = files(tmp_path)
    judge(biased, tmp_path, "run", "--first", mine, "--second", other, "--judge", JUDGE, "--out", tmp_path / "out")
    told = capsys.readouterr().out
    assert "mine against other: 24 rows" in told
    assert "UNFIT" in told  # it takes slot A for equal answers too
    body = json.loads((tmp_path / "out/mine-vs-other/judge.json").read_text())
    (entry,) = body["judges"]
    assert entry["first_slot"]["value"] > 0.5
    assert entry["usage"]["dollars"] > 0
    assert "What judges say" in (tmp_path / "out/mine-vs-other/judge.html").read_text()
    assert len(biased.billed()) == entry["usage"]["verdicts"]
    # Again: everything is on disk, nothing is sent.
    judge(biased, tmp_path, "run", "--first", mine, "--second", other, "--judge", JUDGE, "--out", tmp_path / "out")
    assert len(biased.billed()) == entry["usage"]["verdicts"]


def test_an_obedient_judge_is_caught_over_the_wire(obedient, tmp_path, capsys):
    mine, other = files(tmp_path, 6)
    judge(obedient, tmp_path, "run", "--first", mine, "--second", other, "--judge", JUDGE, "--json", "--out", tmp_path)
    (body,) = json.loads(capsys.readouterr().out)
    failed = {result["kind"] for result in body["judges"][0]["canaries"] if not result["passed"]}
    assert failed == {"injected"}
    assert body["standing"]["by"] is None


def test_judges_are_calibrated_and_the_calibration_is_used(obedient, tmp_path, capsys):
    mine, other = files(tmp_path, 20)
    labels = tmp_path / "labels.jsonl"
    grades = [[json.loads(line)["answer"] for line in path.read_text().splitlines()] for path in (mine, other)]
    said = [honest({"answer A": a, "answer B": b}) for a, b in zip(*grades, strict=True)]
    names = {"A": "first", "B": "second", "tie": "tie"}
    labels.write_text("".join(json.dumps({"item": f"q{i}", "label": names[x]}) + "\n" for i, x in enumerate(said)))
    common = ("--first", mine, "--second", other, "--judge", JUDGE, "--out", tmp_path)
    judge(obedient, tmp_path, "calibrate", "--labels", labels, *common)
    told = capsys.readouterr().out
    assert "kappa 1.00" in told
    assert "labels say little" in told
    found = json.loads((tmp_path / "calibration.json").read_text())
    assert found["judges"][0]["sensitivity"]["value"] == 1.0


def graded_by_reference(body):
    """Knows the reference: right is better than wrong, and anything is better than noise."""
    shown = parts(body)
    value = {
        slot: (shown[f"answer {slot}"] == shown["reference"]) + ("qwv" not in shown[f"answer {slot}"]) for slot in "AB"
    }
    return "tie" if value["A"] == value["B"] else max(value, key=value.get)


def test_the_answers_of_a_finished_evaluation_are_judged(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-for-tests")
    task = make_task(tmp_path / "desk", 12)
    (tmp_path / "runs" / "r").mkdir(parents=True)
    evaluated(tmp_path / "runs/r/evaluate", task, [Echo("base", 2), Echo("tuned", 8)])
    (tmp_path / "r.yaml").write_text(f"evaluate: {{tasks: [{task}], targets: [base, tuned]}}\n")
    with Emulator(planted.planted_judge(graded_by_reference)) as emulator:
        judge(emulator, tmp_path, "run", tmp_path / "r.yaml", "--judge", JUDGE)
        told = capsys.readouterr().out
    body = json.loads((tmp_path / "runs/r/judge/desk.tuned-vs-base/judge.json").read_text())
    assert "tuned against base on desk: 12 rows" in told
    assert body["judges"][0]["labels"] == {"first": 6, "tie": 6, "second": 0}
    assert body["decided"] == 6  # both right or both wrong in the same words
    assert body["judges"][0]["fit"]
    assert any("of one line" in text for text in body["judges"][0]["related"])  # a Gemini judges a Gemma


def test_an_evaluation_may_judge_its_own_answers(monkeypatch, tmp_path):
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-for-tests")
    task = load_task(make_task(tmp_path / "desk", 12))
    graded = []
    for name, right in (("base", 2), ("tuned", 8)):
        said = [f"a{i}" if i < right else "wrong" for i in range(12)]
        stored = [
            StoredAnswer(
                key=f"{name}{i}",
                target=name,
                task="desk",
                row=f"q{i}",
                text=text,
                end="stop",
                prompt_tokens=5,
                new_tokens=3,
                seconds=0.1,
            )
            for i, text in enumerate(said)
        ]
        graded.append(grade_answers(task, name, stored))
    sides = {name: Side(name, name, "gemma") for name in ("base", "tuned")}
    with Emulator(planted.planted_judge(graded_by_reference)) as emulator:
        machine = machine_for(emulator, tmp_path)
        settings = JudgeConfig(judges=(JUDGE,))
        found = judge_evaluation(tmp_path / "judge", settings, EvaluateConfig(), machine, graded, sides, run="r")
    assert [judged.body["judges"][0]["labels"]["first"] for judged in found] == [6]
    assert (tmp_path / "judge/desk.tuned-vs-base/judge.json").is_file()
    with pytest.raises(ConfigError, match="gave no answers"):
        judge_evaluation(tmp_path, JudgeConfig(first="q4_0"), EvaluateConfig(), machine, graded, sides, run="r")


def test_private_rows_reach_no_service(biased, tmp_path):
    mine, other = files(tmp_path, 8)
    lines = other.read_text().splitlines()
    lines[5] = json.dumps(json.loads(lines[5]) | {"privacy": "local_only"})
    other.write_text("\n".join(lines) + "\n")
    with pytest.raises(BoundaryError) as caught:
        judge(biased, tmp_path, "run", "--first", mine, "--second", other, "--judge", JUDGE)
    assert not biased.log
    # Rows are counted, not the questions made of them (two answers are equal); and it is said where their privacy is
    # written.
    assert "1 of 7 rows that need a judge are local_only" in caught.value.what
    assert "of files in every row" in caught.value.fix


def test_what_is_missing_is_said(biased, tmp_path):
    mine, other = files(tmp_path, 4)
    with pytest.raises(ConfigError, match="no judge"):
        judge(biased, tmp_path, "run", "--first", mine, "--second", other)
    with pytest.raises(DataError, match="no finished evaluation"):
        judge(biased, tmp_path, "run", "quickstart", "--judge", JUDGE)
    other.write_text('{"id": "elsewhere", "answer": "x"}\n')
    with pytest.raises(DataError, match="no row in common"):
        judge(biased, tmp_path, "run", "--first", mine, "--second", other, "--judge", JUDGE)


def test_rows_of_one_file_alone_are_counted(biased, tmp_path, capsys):
    mine, other = files(tmp_path, 8)
    other.write_text("".join(f"{line}\n" for line in other.read_text().splitlines()[2:]))
    mine.write_text("".join(f"{line}\n" for line in mine.read_text().splitlines()[:-1]))
    judge(biased, tmp_path, "run", "--first", mine, "--second", other, "--judge", JUDGE, "--out", tmp_path / "out")
    told = capsys.readouterr()
    assert "mine against other: 5 rows" in told.out
    assert f"2 rows of {mine} left out: {other} has no such id (one: q0)" in told.err
    assert f"1 row of {other} left out: {mine} has no such id (one: q7)" in told.err


def test_a_file_that_is_not_there_is_told(biased, tmp_path):
    mine, other = files(tmp_path, 4)
    gone = tmp_path / "gone.jsonl"
    for arguments in (
        ("run", "--first", mine, "--second", gone),
        ("run", "--first", gone, "--second", other),
        ("calibrate", "--labels", gone, "--first", mine, "--second", other),
    ):
        with pytest.raises(DataError, match=r"gone\.jsonl can't be read: No such file"):
            judge(biased, tmp_path, *arguments, "--judge", JUDGE)


def test_nothing_to_judge_is_told_in_the_verbs_own_words(biased, tmp_path):
    mine, other = files(tmp_path, 4)
    for arguments in (("run", "--judge", JUDGE), ("run", "--second", other, "--judge", JUDGE)):
        with pytest.raises(ConfigError) as caught:
            judge(biased, tmp_path, *arguments)
        assert "--first MINE.jsonl" in caught.value.fix
    with pytest.raises(ConfigError) as caught:
        judge(biased, tmp_path, "run", "--first", mine, "--second", other, "--judge", "base")
    assert "judge base: this run has no such model" in caught.value.what
    assert "evaluate.targets" not in caught.value.fix
