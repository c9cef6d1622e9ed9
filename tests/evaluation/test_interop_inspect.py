"""Inspect runs an exported task on nano: its scores are ours to the item, and its log comes back."""

from __future__ import annotations

import math

import pytest

from gemma_ops.errors import DataError
from gemma_ops.evaluation import interop
from gemma_ops.evaluation.interop import intake, logs
from gemma_ops.evaluation.interop.compare import compare_import
from gemma_ops.nano import WEIGHTS
from tests.helpers import interop_tasks

pytest.importorskip("inspect_ai")
pytestmark = pytest.mark.slow  # Inspect is started twice, about ten seconds in all


def evaluate(task, home, model, **options):
    """Export the task and let Inspect run it; returns the path of its log."""
    from inspect_ai import eval as run

    interop.export_task(task.folder, "inspect", home / "exported")
    (made,) = (home / "exported").glob("*.py")
    (log,) = run(f"{made}@{made.stem}", model=model, log_dir=str(home / "logs"), display="none", **options)
    return log


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Six questions, one with a system turn, one a conversation of several turns, and one without a reference."""
    folder = tmp_path_factory.mktemp("task") / "talk"
    mixed = interop_tasks.mixed(folder.with_name("mixed"))
    rows = [{"id": row.id, "messages": list(row.messages), "reference": row.reference} for row in mixed.rows[:4]]
    turns = [("user", "Repeat: seven"), ("assistant", "seven"), ("user", "Repeat: river stone")]
    talk = [{"role": role, "content": content} for role, content in turns]
    rows += [{"id": "talk", "messages": talk, "reference": "river stone"}, {"id": "open", "prompt": "Repeat: red"}]
    for number, row in enumerate(rows):
        row["document"] = str(number // 2)
    metrics = "metrics: [{id: exact_match, normalize: [casefold, json]}, chrf]\nprimary: exact_match\n"
    return interop_tasks.write(
        folder, "talk", f"generation: {{max_new_tokens: 14}}\ncluster_by: document\n{metrics}", rows
    )


@pytest.fixture(scope="module")
def log(task, tmp_path_factory):
    """Inspect's log. Equal scores need equal terms: the same checkpoint and dtype, greedy, one row at a time, and no
    second `<bos>` before the one that the chat template writes."""
    from inspect_ai.model import get_model

    no_bos = {"add_special_tokens": False}
    model = get_model(
        "hf/local", model_path=str(WEIGHTS), device="cpu", do_sample=False, tokenizer_call_args=no_bos, memoize=False
    )
    return evaluate(task, tmp_path_factory.mktemp("inspect"), model, max_connections=1)


@pytest.fixture(scope="module")
def own(task):
    return interop_tasks.own_answers(task)


def test_every_answer_and_every_score_is_ours(task, log, own):
    assert log.status == "success"
    assert {sample.id: sample.output.completion.strip() for sample in log.samples} == {
        row: answer.text for row, answer in own.items()
    }
    assert {answer.end for answer in own.values()} == {"stop", "length"}
    scores = interop_tasks.own_scores(task, own)
    for sample in log.samples:
        for column, score in scores[sample.id].items():
            theirs = sample.scores["task_metrics"].value[column]
            assert math.isnan(theirs) if score is None else theirs == pytest.approx(score)
    means = {item.name: item.metrics["mean"].value for item in log.results.scores}
    for column in task.columns:
        every = [row[column] for row in scores.values() if row[column] is not None]
        assert 0 < sum(every) < len(every)
        assert means[column] == pytest.approx(sum(every) / len(every))


def test_the_log_comes_back_with_tokens_and_time(task, log, own, tmp_path):
    taken = intake.take_answers(_path(log), task, "inspect", tmp_path / "a.jsonl")
    assert {item.row: item.text for item in taken} == {row: answer.text for row, answer in own.items()}
    for item in taken:
        assert (item.prompt_tokens, item.new_tokens) == (own[item.row].prompt_tokens, own[item.row].new_tokens)
        assert item.seconds > 0
        # The provider says nothing about the end; fewer tokens than allowed mean that the model stopped by itself.
        assert item.reason == (logs.UNTOLD if own[item.row].end == "length" else "")
    told = compare_import(task, taken, tmp_path / "a.jsonl")
    assert (told.rows, told.figures["exact_match"]["n"]) == (6, 5)


def changed(log, tmp_path, change):
    from inspect_ai.log import write_eval_log

    other = log.model_copy(deep=True)
    change(other)
    path = tmp_path / "changed.eval"
    write_eval_log(other, str(path))
    return path


def test_ends_are_told_apart(task, log, tmp_path):
    """As other providers than this one tell them; a refusal and a failure aren't empty answers."""
    from inspect_ai.model import ModelOutput

    def other(log):
        outputs = {sample.id: sample for sample in log.samples}
        reasons = ("stop", "content_filter", "max_tokens", "model_length")
        for number, reason in enumerate(reasons):
            outputs[f"row/{number}"].output.choices[0].stop_reason = reason
        outputs["talk"].output = ModelOutput(model="here", error="server on fire")
        outputs["open"].output = ModelOutput()

    taken = intake.take_answers(changed(log, tmp_path, other), task, "other", tmp_path / "a.jsonl")
    assert [item.end for item in taken] == ["stop", "blocked", "length", "length", "error", "error"]
    assert [item.reason for item in taken[4:]] == ["server on fire", "there is no answer in the log"]
    assert [item.reason for item in taken[:4]] == ["", "content filter", "", ""]


def test_a_run_that_broke_off_is_refused(task, log, tmp_path):
    """Its cancelled samples look like answers that failed."""
    path = changed(log, tmp_path, lambda log: setattr(log, "status", "error"))
    with pytest.raises(DataError, match="ended with error"):
        intake.take_answers(path, task, "inspect", tmp_path / "a.jsonl")


REFUSED = {
    "talk version 4, and this task is talk version 3": lambda log: log.samples[0].metadata.update(version=4),
    "asks something else": lambda log: setattr(log.samples[4].input[0], "content", "Repeat: eight"),
    "was asked more than once": lambda log: setattr(log.samples[1], "epoch", 2),
    "end after 99 tokens, the task's after 14": lambda log: setattr(log.plan.config, "max_tokens", 99),
    "of no task exported from here": lambda log: log.samples[0].metadata.clear(),
    "a row 'other'": lambda log: setattr(log.samples[0], "id", "other"),
    "holds no answers": lambda log: log.samples.clear(),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_log_of_something_else_is_refused(task, log, tmp_path, message):
    with pytest.raises(DataError) as caught:
        intake.take_answers(changed(log, tmp_path, REFUSED[message]), task, "inspect", tmp_path / "a.jsonl")
    assert message in caught.value.what


def test_a_file_that_is_no_log_is_refused(task, tmp_path):
    for name in ("a.eval", "a.json", "a.txt", "gone.eval"):
        if name != "gone.eval":
            (tmp_path / name).write_text("nothing")
        with pytest.raises(DataError):
            logs.read_log(tmp_path / name)


def _path(log):
    from pathlib import Path
    from urllib.parse import urlsplit

    return Path(urlsplit(log.location).path)
