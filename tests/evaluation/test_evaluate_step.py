"""The step `evaluate`: what it asks, keeps, resumes, refuses and writes. Targets here are stand-ins at the border (the
protocol that any service would implement); one test runs the real checkpoint of nano."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_ops.config import EvaluateConfig, MachineConfig
from gemma_ops.errors import BoundaryError, ConfigError, DataError
from gemma_ops.evaluation import evaluate, evaluate_step, regrade, summary_lines
from gemma_ops.runs import journal
from gemma_ops.tasks import conditions, stored_answers
from gemma_ops.tasks.stored_answers import AnswerFile
from gemma_ops.verdicts import Verdict
from tests.helpers import patience
from tests.helpers.evaluations import SUPERIOR, Echo, go, make_task

ROOT = Path(__file__).parents[2]


def test_files_figures_and_metrics(tmp_path):
    folder = make_task(tmp_path / "t", slices=["half"])
    targets = [Echo("base", 4), Echo("tuned", 36), Echo("q8_0", 35)]
    metrics, verdict = go(tmp_path / "out", folder, targets, gates=[SUPERIOR])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "answers.jsonl", "conditions.jsonl", "scores.jsonl", "verdict.json", "report.html", "summary.md", "junit.xml",
    }  # fmt: skip
    assert metrics["t/base/exact_match"] == 0.1
    assert metrics["t/tuned/exact_match"] == 0.9
    assert metrics["t/tuned/exact_match/low"] < 0.9 < metrics["t/tuned/exact_match/high"]
    assert metrics["t/tuned-base/exact_match"] == 0.8
    assert metrics["t/q8_0-tuned/exact_match"] == -0.025
    assert metrics["t/tuned/new_tokens_per_second"] == 300
    assert all(isinstance(value, float) for value in metrics.values())
    assert verdict["verdict"] == "pass"
    assert verdict["gates"][0]["n"] == 40
    assert [bucket["n"] for bucket in verdict["results"][0]["slices"]["half"]] == [20, 20]
    assert [target.closed for target in targets] == [1, 1, 1]


def test_the_terminal_gets_a_few_plain_lines(tmp_path):
    _, verdict = go(tmp_path / "out", make_task(tmp_path / "t"), [Echo("base", 4), Echo("tuned", 36)], gates=[SUPERIOR])
    text = "\n".join(summary_lines(Verdict.parse(verdict), tmp_path / "out"))
    for part in (
        "t: exact_match on 40 rows",
        "0.900  [0.7",
        "tuned − base  +0.800  [+0.6",
        "verdict: pass: the gate holds",
        "report.html",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) < 200


def test_without_gates_nothing_is_decided(tmp_path):
    _, verdict = go(tmp_path / "out", make_task(tmp_path / "t"), [Echo("base", 4)])
    assert verdict["verdict"] == "ungated"
    assert "skipped" in (tmp_path / "out" / "junit.xml").read_text()


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(conditions, "_now", lambda: "2026-02-03T04:05:06Z")  # a part is asked later, under another load
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    folder = make_task(tmp_path / "t")
    whole = Echo("base", 20)
    go(tmp_path / "whole", folder, [whole])
    out = tmp_path / "cut"
    with pytest.raises(RuntimeError):
        go(out, folder, [broken := Echo("base", 20, explode=3)])
    assert broken.closed == 1
    with (out / "answers.jsonl").open("a") as file:
        file.write('{"key": "half a li')  # what a kill in the middle of a write leaves
    go(out, folder, [rest := Echo("base", 20)])
    assert broken.asked + rest.asked == whole.asked  # the same batches, none twice
    assert len(rest.asked) == 2
    for name in ("answers.jsonl", "scores.jsonl", "verdict.json", "report.html", "summary.md", "junit.xml"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_batch_that_was_stored_in_part_is_answered_whole_again(tmp_path):
    folder = make_task(tmp_path / "t")
    go(tmp_path / "out", folder, [first := Echo("base", 20)])
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines(keepends=True)
    gone = next(index for index, line in enumerate(lines) if json.loads(line)["row"] == "q3")
    (tmp_path / "out" / "answers.jsonl").write_text("".join(lines[:gone] + lines[gone + 1 :]))
    go(tmp_path / "out", folder, [again := Echo("base", 20)])
    assert again.asked == [batch for batch in first.asked if any(text.startswith("question 3 ") for text in batch)]
    assert (tmp_path / "out" / "answers.jsonl").read_text() == "".join(lines)


def test_survives_sigkill(tmp_path):
    folder = make_task(tmp_path / "t", 48)
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\n"
        f"sys.path[:0] = [{str(ROOT)!r}]\n"
        "from tests.helpers import evaluations as here\n"
        "class Slow(here.Echo):\n"
        "    def answer(self, batches, **options):\n"
        "        for found in super().answer(batches, **options):\n"
        "            time.sleep(float(sys.argv[2]))\n"
        "            yield found\n"
        f"here.go(Path(sys.argv[1]), Path({str(folder)!r}), [Slow('base', 20), Slow('tuned', 40)], batch=4)\n"
    )
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, script, out, "0.15"], cwd=ROOT)
    try:
        answers = out / "answers.jsonl"
        patience.until(
            lambda: child.poll() is not None or (answers.exists() and answers.read_text().count("\n") >= 8),
            60,
            of=child.pid,
            every=0.05,
        )
        assert child.poll() is None
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (out / "verdict.json").exists()
    kept = len(AnswerFile(answers).known)
    assert 8 <= kept < 96
    go(out, folder, [first := Echo("base", 20), second := Echo("tuned", 40)], batch=4)
    assert sum(map(len, first.asked + second.asked)) == 96 - kept
    go(tmp_path / "whole", folder, [Echo("base", 20), Echo("tuned", 40)], batch=4)
    assert answers.read_bytes() == (tmp_path / "whole" / "answers.jsonl").read_bytes()


def test_a_damaged_line_is_told(tmp_path):
    folder = make_task(tmp_path / "t")
    go(tmp_path / "out", folder, [Echo("base", 20)])
    with (tmp_path / "out" / "answers.jsonl").open("a") as file:
        file.write("not json\n")
    with pytest.raises(DataError, match=r"answers.jsonl:41: not an answer"):
        go(tmp_path / "out", folder, [Echo("base", 20)])


def test_answers_of_another_model_or_another_question_are_not_reused(tmp_path):
    folder = make_task(tmp_path / "t")
    go(tmp_path / "out", folder, [Echo("base", 20)])
    other = Echo("base", 20)
    other.identity = "a newer checkpoint"
    go(tmp_path / "out", folder, [other])
    assert sum(map(len, other.asked)) == 40
    make_task(
        tmp_path / "t", rows=[{"id": f"q{i}", "prompt": f"question {i} now", "reference": f"a{i}"} for i in range(40)]
    )
    newer = Echo("base", 20)
    newer.identity = other.identity
    go(tmp_path / "out", folder, [newer])
    assert sum(map(len, newer.asked)) == 40
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 40  # what nobody asked for is gone


def test_grading_again_needs_no_model(tmp_path):
    folder = make_task(tmp_path / "t")
    go(tmp_path / "old", folder, [Echo("base", 20), Echo("tuned", 30)])
    make_task(tmp_path / "t", metrics=["exact_match", {"id": "regex", "pattern": r"^(a)\d"}])
    (tmp_path / "new").mkdir()
    known = json.loads((tmp_path / "old" / "verdict.json").read_text()) | {"canary": {"q8_0": 1}, "safety": {}}
    (tmp_path / "old" / "verdict.json").write_text(json.dumps(known))
    (tmp_path / "old" / "canary.json").write_text("{}")
    settings = EvaluateConfig(targets=("base", "tuned"), gates=[{**SUPERIOR, "margin": 0.0}])
    metrics = regrade(tmp_path / "new", settings, MachineConfig(), answers=tmp_path / "old", tasks=(folder,))
    assert metrics["t/tuned/regex"] == 0.75
    graded = json.loads((tmp_path / "new" / "verdict.json").read_text())
    assert (graded["verdict"], graded["canary"], graded["safety"]) == ("pass", {"q8_0": 1}, {})
    assert (tmp_path / "new" / "canary.json").is_file(), "a server still has to repeat what was recorded"
    assert (tmp_path / "new" / "answers.jsonl").read_bytes() == (tmp_path / "old" / "answers.jsonl").read_bytes()
    make_task(tmp_path / "t", 41)
    with pytest.raises(DataError, match="1 question has no stored answer"):
        regrade(tmp_path / "new", settings, MachineConfig(), answers=tmp_path / "old", tasks=(folder,))


def test_answers_that_were_kept_are_graded_and_only_what_changed_is_asked(tmp_path):
    folder, run = make_task(tmp_path / "t", 40), tmp_path / "run"
    run.mkdir()
    go(run / "evaluate", folder, [Echo("base", 20)])
    stored_answers.keep_answers(run)
    rows = [{"id": f"q{i}", "prompt": f"question {i} " + "x" * (i % 7), "reference": f"a{i}"} for i in range(48)]
    make_task(tmp_path / "t", rows=rows)
    (run / "evaluate.partial").mkdir()
    stored_answers.take_kept_answers(run / "evaluate.partial")
    metrics, _ = go(run / "evaluate.partial", folder, [again := Echo("base", 48)], batch=1)
    assert sum(map(len, again.asked)) == 8
    assert metrics["t/base/exact_match"] == pytest.approx(28 / 48, abs=1e-6)
    stored_answers.take_kept_answers(run / "evaluate.partial")  # taken once: what was made since stays
    assert len(AnswerFile(run / "evaluate.partial" / "answers.jsonl").known) == 48
    with pytest.raises(DataError, match="no answers to grade again"):
        stored_answers.keep_answers(tmp_path)


def test_failed_and_refused_answers_are_wrong_and_counted(tmp_path):
    folder = make_task(tmp_path / "t", metrics=["exact_match", "choice_accuracy"])
    metrics, verdict = go(
        tmp_path / "out", folder, [Echo("base", 40), Echo("tuned", 40, end="error"), Echo("q8_0", 40, end="blocked")]
    )
    assert (metrics["t/base/exact_match"], metrics["t/tuned/exact_match"]) == (1.0, 0.0)
    base, failed, refused = verdict["results"]
    assert (base["failed"], failed["failed"], refused["ends"]) == (0, 40, {"blocked": 40})
    assert failed["labels"]["choice_accuracy"]["invalid"] == 0  # a failure is no invalid label
    assert "40 refused" in "\n".join(summary_lines(Verdict.parse(verdict)))


def test_rows_without_a_reference_are_unscored(tmp_path):
    rows = [{"id": f"q{i}", "prompt": f"question {i}", "reference": f"a{i}" if i < 10 else None} for i in range(30)]
    metrics, verdict = go(tmp_path / "out", make_task(tmp_path / "t", rows=rows), [Echo("base", 5)])
    figure = verdict["results"][0]["metrics"]["exact_match"]
    assert (metrics["t/base/exact_match"], figure["n"], figure["unscored"]) == (0.5, 10, 20)


def test_a_target_never_sees_rows_it_may_not(tmp_path):
    rows = [
        {"id": f"q{i}", "prompt": f"question {i}", "reference": "a", "privacy": "local_only" if i == 3 else "any"}
        for i in range(9)
    ]
    service = Echo("base", 5)
    service.sees = frozenset({"any", "paid"})
    first = Echo("tuned", 5)
    with pytest.raises(BoundaryError, match=r"1 of 9 rows of task t are local_only .*\(the first: q3\)"):
        go(tmp_path / "out", make_task(tmp_path / "t", rows=rows), [first, service])
    assert service.asked == []
    assert first.asked == []  # refused before hours are spent on the targets before it


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gates": [{**SUPERIOR, "metric": "exact"}]}, "no metric 'exact'"),
        ({"gates": [{**SUPERIOR, "task": "u"}]}, "no task 'u'"),
        ({"gates": [{**SUPERIOR, "versus": "q4_0"}]}, "'q4_0' is not among evaluate.targets"),
        ({"targets": ("base", "base")}, "names a target twice"),
        ({"targets": ()}, "is empty"),
    ],
)
def test_mistakes_are_told_before_anything_is_asked(tmp_path, changes, told):
    config = EvaluateConfig(**{"targets": ("base", "tuned"), **changes})
    with pytest.raises(ConfigError, match=told):
        evaluate_step.load_checked(config, (make_task(tmp_path / "t"),), None)


def test_targets_without_a_model_are_told(tmp_path):
    folder = make_task(tmp_path / "t")
    for targets, told in (
        (("tuned",), "this run has no model for it"),
        (("qat",), "there is no target 'qat'"),
        (("q4_0",), "no model"),
    ):
        with pytest.raises(ConfigError, match=told):
            evaluate(tmp_path, EvaluateConfig(targets=targets), MachineConfig(), base=tmp_path, tasks=(folder,))
    (tmp_path / "quantize" / "q8_0").mkdir(parents=True)
    (tmp_path / "quantize" / "q8_0" / "model.gguf").touch()
    with pytest.raises(ConfigError, match=r"model.gguf does not exist(.|\n)*q8_0"):
        evaluate(
            tmp_path,
            EvaluateConfig(targets=("q4_0",)),
            MachineConfig(),
            base=tmp_path,
            quantized=tmp_path / "quantize",
            tasks=(folder,),
        )


def test_clusters_widen_intervals_and_are_counted(tmp_path):
    rows = [{"id": f"q{i}", "prompt": f"question {i}", "reference": f"a{i}", "doc": i // 10} for i in range(60)]
    _, loose = go(tmp_path / "a", make_task(tmp_path / "t", rows=rows), [Echo("base", 30)])
    _, tight = go(tmp_path / "b", make_task(tmp_path / "t", rows=rows, cluster_by="doc"), [Echo("base", 30)])
    one, two = (item["results"][0]["metrics"]["exact_match"] for item in (loose, tight))
    assert two["clusters"] == 6
    assert two["high"] - two["low"] > 1.5 * (one["high"] - one["low"])


def test_macro_f1_has_an_interval_and_a_gate_on_it_names_labels_with_too_few_rows(tmp_path):
    rows = [{"id": f"q{i}", "prompt": f"question {i}", "reference": f"a{i}" if i < 30 else "wrong"} for i in range(60)]
    gate = {
        "metric": "choice_accuracy.f1_macro",
        "target": "tuned",
        "test": "superior",
        "versus": "base",
        "margin": 0.1,
    }
    folder = make_task(tmp_path / "t", rows=rows, metrics=["choice_accuracy"], primary="choice_accuracy")
    _, verdict = go(tmp_path / "out", folder, [Echo("base", 5), Echo("tuned", 28)], gates=[gate])
    figure = verdict["results"][1]["metrics"]["choice_accuracy.f1_macro"]
    assert 0 < figure["low"] < figure["value"] < figure["high"]
    assert figure["method"] == "cluster bootstrap"
    (found,) = verdict["gates"]
    assert found["outcome"] == "inconclusive"
    assert found["bound"] < 0.1 < found["value"] < found["upper"]
    assert "its labels have too few rows ('a0' 1, 'a1' 1" in found["words"]
    assert "and 25 more)" in found["words"]


def test_progress_is_recorded(tmp_path):
    records = []
    with journal.writing(tmp_path / "logs", "evaluate", lambda step, record: records.append(record)):
        go(tmp_path / "out", make_task(tmp_path / "t"), [Echo("base", 4)], batch=16)
    assert [(record["done"], record["total"]) for record in records] == [(0, 40), (16, 40), (32, 40), (40, 40)]
    assert records[-1]["tokens_per_second"] == 300.0


def test_nano_answers_its_task(tmp_path):
    """The real thing: nano's checkpoint through transformers, asked to route tickets it was never tuned for."""
    settings = EvaluateConfig(
        targets=("base",),
        rows=6,
        gates=[{"metric": "exact_match", "target": "base", "test": "at_least", "margin": 0.99}],
    )
    weights = ROOT / "gemma_ops" / "nano" / "weights"
    metrics = evaluate(
        tmp_path,
        settings,
        MachineConfig(device="cpu", eval_batch=4),
        base=weights,
        tasks=(ROOT / "eval" / "support_desk",),
    )
    given = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(given) == 6
    assert all(
        answer["end"] in ("stop", "length") and answer["new_tokens"] > 0 and answer["seconds"] > 0 for answer in given
    )
    assert all(0 < answer["first_seconds"] <= answer["waited"] for answer in given)
    import torch

    (asked,) = json.loads((tmp_path / "verdict.json").read_text())["asked"]
    known = [asked[name] for name in ("at_once", "device", "threads", "whole", "here")]
    assert known == [[4], ["CPU"], [torch.get_num_threads()], True, True]
    assert metrics["support_desk/base/mean_prompt_tokens"] > 10
    before = (tmp_path / "answers.jsonl").read_bytes()
    evaluate(
        tmp_path,
        settings,
        MachineConfig(device="cpu", eval_batch=4),
        base=weights,
        tasks=(ROOT / "eval" / "support_desk",),
    )
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    # Answers kept for an evaluation that is made again are not asked for again: their times are those of before.
    (tmp_path / "answers.jsonl").rename(tmp_path / stored_answers.KEPT)
    (again := tmp_path / "again").mkdir()
    evaluate(
        again,
        settings,
        MachineConfig(device="cpu", eval_batch=4),
        base=weights,
        tasks=(ROOT / "eval" / "support_desk",),
    )
    assert (again / "answers.jsonl").read_bytes() == before


def test_a_gguf_file_answers_as_its_checkpoint_does(tmp_path):
    """A tiny random checkpoint, written as GGUF and run by llama.cpp, on the same prompts as transformers runs it."""
    pytest.importorskip("xllamacpp")
    from gemma_ops.config import QuantizeConfig
    from gemma_ops.export import quantize
    from tests.helpers import tiny_models

    model = tiny_models.save("e2b", tmp_path / "model")
    (tmp_path / "quantize").mkdir()
    quantize(
        tmp_path / "quantize",
        QuantizeConfig(formats=("bf16",), fidelity_rows=1),
        MachineConfig(device="cpu"),
        model=model,
    )
    rows = [{"id": f"q{i}", "prompt": f"question {i} " + "and so on " * i, "reference": "a"} for i in range(5)]
    folder = make_task(tmp_path / "t", rows=rows, generation={"max_new_tokens": 4})
    (tmp_path / "out").mkdir()
    settings = EvaluateConfig(targets=("base", "bf16"))
    evaluate(
        tmp_path / "out",
        settings,
        MachineConfig(device="cpu", eval_batch=2),
        base=model,
        quantized=tmp_path / "quantize",
        tasks=(folder,),
    )
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    first, second = answers[:5], answers[5:]
    assert [item["prompt_tokens"] for item in first] == [item["prompt_tokens"] for item in second]
    assert sum(one["text"][:6] == two["text"][:6] for one, two in zip(first, second, strict=True)) >= 3
    assert {item["end"] for item in answers} <= {"stop", "length"}
    asked = json.loads((tmp_path / "out" / "verdict.json").read_text())["asked"][1]
    assert (asked["at_once"], asked["device"], asked["threads"]) == ([2], ["CPU"], [1])  # a small file gets one thread
