"""lm-evaluation-harness runs an exported task on nano: its scores are ours to the item, and its log comes back."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation import interop
from gemma_ops.evaluation.interop import intake, logs
from gemma_ops.evaluation.interop.compare import compare_import
from gemma_ops.nano import WEIGHTS
from gemma_ops.tasks.task import load_task
from tests.helpers import interop_tasks, media_rows
from tests.helpers.bare_verdict import bare_verdict

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow  # the harness is started once for all of them, in about ten seconds
NAMES = ("mixed", "plain", "topics")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The harness's results and samples for three exported tasks, with its log files, from one start of the harness.

    Equal scores need equal terms: the same checkpoint in the dtype it is stored in (bf16), the checkpoint's own chat
    template, greedy decoding, the task's limit of tokens, and one row at a time.
    """
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    home = tmp_path_factory.mktemp("harness")
    tasks = {name: getattr(interop_tasks, name)(home / name) for name in NAMES}
    for name, task in tasks.items():
        interop.export_task(task.folder, "lm-eval", home / "exported" / name)
    tracker = EvaluationTracker(output_path=str(home / "logs"))
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={WEIGHTS},device=cpu",
        tasks=[*NAMES, "topics_choices"],
        task_manager=TaskManager(include_path=str(home / "exported"), include_defaults=False),
        batch_size=1,
        apply_chat_template=True,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    samples = json.loads(json.dumps(results.pop("samples"), default=str))
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, lines in samples.items():
        tracker.save_results_samples(name, lines)
    files = {name: next((home / "logs").rglob(f"samples_{name}_2*.jsonl")) for name in samples}
    return {"home": home, "tasks": tasks, "results": results["results"], "samples": samples, "files": files}


@pytest.fixture(scope="module")
def own(run):
    """Our own target's answers to the same tasks."""
    return {name: interop_tasks.own_answers(task) for name, task in run["tasks"].items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_answer_and_every_score_is_ours(run, own, name):
    task, samples = run["tasks"][name], run["samples"][name]
    texts = {sample["doc"]["id"]: sample["resps"][0][0].strip() for sample in samples}
    assert texts == {row: answer.text for row, answer in own[name].items()}
    scores = interop_tasks.own_scores(task, own[name])
    for sample in samples:
        mine = {column: score for column, score in scores[sample["doc"]["id"]].items() if score is not None}
        assert {column: sample[column] for column in sample["metrics"]} == pytest.approx(mine)
    for column in task.columns:
        every = [row[column] for row in scores.values() if row[column] is not None]
        assert 0 < sum(every) < len(every) or name == "topics"
        label = "trimmed" if name == "plain" else "none"
        assert run["results"][name][f"{column},{label}"] == pytest.approx(sum(every) / len(every))


def test_the_terms_matter(run, own):
    """The task cuts some answers and lets others end; a limit the harness had not kept would show."""
    assert {answer.end for answer in own["mixed"].values()} == {"stop", "length"}


def test_exact_match_alone_is_the_harnesss_own(run):
    """No code of ours is in that export."""
    code = (run["home"] / "exported" / "plain" / "utils.py").read_text()
    assert "gemma_ops" not in code
    assert "gemma_ops" in (run["home"] / "exported" / "mixed" / "utils.py").read_text()


def test_ranked_choices_are_the_likeliest_whole_replies(run):
    """Against our own forward pass: log-likelihoods of each choice with the end of the turn."""
    import torch

    from gemma_ops.data import chat
    from gemma_ops.modeling.load import load_model

    task, samples = run["tasks"]["topics"], run["samples"]["topics_choices"]
    tokenizer, model = chat.load_tokenizer(WEIGHTS), load_model(WEIGHTS)
    right = {}
    for row in task.rows:
        prompt = chat.chat_prompt_ids(tokenizer, list(row.messages))
        likelihood = {}
        for choice in row.choices:
            reply = tokenizer.encode(f"{choice}<turn|>", add_special_tokens=False).ids
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1]
            chances = logits.float().log_softmax(-1)
            likelihood[choice] = float(chances[torch.arange(len(reply)), torch.tensor(reply)].sum())
        right[row.id] = float(max(likelihood, key=likelihood.__getitem__) == row.reference)
    assert {sample["doc"]["id"]: sample["acc"] for sample in samples} == right
    taken = intake.check_log(logs.read_log(run["files"]["topics_choices"]), task, "ranked")
    assert {
        item.row: task.score(item.text, row).values["choice_accuracy"]
        for item, row in zip(taken, task.rows, strict=True)
    } == right


def test_a_log_comes_back_as_answers_and_is_compared(run, own, tmp_path, cli):
    task, log = run["tasks"]["mixed"], run["files"]["mixed"]
    there = tmp_path / "evaluate"
    there.mkdir()
    stored = [intake.file_as("base", task, row, own["mixed"][row.id]) for row in task.rows]
    (there / "answers.jsonl").write_text("".join(f"{json.dumps(vars(item))}\n" for item in stored))
    (there / "verdict.json").write_text(json.dumps(bare_verdict(targets={"base": {"identity": "import:"}})))
    arguments = ("task", "import", log, "--task", task.folder, "--target", "harness", "--versus", there, "--json")
    first, again = (cli(*arguments, check=True) for _ in range(2))
    body = json.loads(first.stdout)
    assert first.stdout == again.stdout
    assert (body["rows"], body["of"]) == (13, 13)
    (difference,) = body["differences"]
    assert (difference["versus"], difference["n"], difference["value"]) == ("base", 12, 0.0)
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().strip().split("\n")]
    assert {item["row"]: item["text"] for item in lines} == {row: answer.text for row, answer in own["mixed"].items()}
    assert {(item["end"], item["reason"]) for item in lines} == {("stop", logs.UNTOLD)}
    assert lines[0]["model"]
    assert "harness on mixed: 13 of 13 rows" in cli(*arguments[:-1], check=True).stdout


def changed(run, tmp_path, change, name="mixed"):
    """The log with each of its samples changed."""
    samples = [json.loads(line) for line in run["files"][name].read_text().strip().split("\n")]
    for sample in samples:
        change(sample)
        document = sample["doc"]
        sample["doc_hash"] = logs._sha256(json.dumps(document, indent=2, ensure_ascii=False))
        sample["prompt_hash"] = logs._sha256(sample["arguments"]["gen_args_0"]["arg_0"])
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    return path


def strip_format(sample):
    sample["arguments"]["gen_args_0"]["arg_0"] = sample["doc"]["question"]


REFUSED = {
    "version 2, and this task is mixed version 3": lambda sample: sample["doc"].update(version=2),
    "is of other version 3": lambda sample: sample["doc"].update(task="other"),
    "asks something else": lambda sample: sample["doc"].update(question=sample["doc"]["question"] + " "),
    "a row 'row/99'": lambda sample: sample["doc"].update(id="row/99"),
    "not Gemma 4's chat format": strip_format,
    "end after 64 tokens, the task's after 14": lambda sample: sample["arguments"]["gen_args_0"]["arg_1"].update(
        max_gen_toks=64
    ),
    "2 answers to one question": lambda sample: sample["resps"][0].append("another"),
    "not an answer to an exported task": lambda sample: sample["doc"].pop("question"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_log_of_something_else_is_refused(run, tmp_path, message):
    with pytest.raises(DataError) as caught:
        intake.take_answers(
            changed(run, tmp_path, REFUSED[message]), run["tasks"]["mixed"], "harness", tmp_path / "a.jsonl"
        )
    assert message in caught.value.what
    assert not (tmp_path / "a.jsonl").exists()


def test_an_edited_log_is_refused(run, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text(run["files"]["mixed"].read_text().replace("careful", "careless"))
    with pytest.raises(DataError, match="the log was changed"):
        logs.read_log(path)


def test_ranked_choices_of_another_task_are_refused(run, tmp_path):
    def other(sample):
        sample["arguments"]["gen_args_0"]["arg_1"] = "something<turn|>"

    with pytest.raises(DataError, match="ranks other choices"):
        intake.check_log(
            logs.read_log(changed(run, tmp_path, other, "topics_choices")), run["tasks"]["topics"], "ranked"
        )


def test_part_of_a_log_is_told_as_part(run, tmp_path):
    """`lm_eval --limit 5`: five rows count, and the report says so."""
    task, path = run["tasks"]["mixed"], tmp_path / "samples.jsonl"
    path.write_text("\n".join(run["files"]["mixed"].read_text().split("\n")[:5]))
    taken = intake.take_answers(path, task, "harness", tmp_path / "a.jsonl")
    assert compare_import(task, taken, tmp_path / "a.jsonl").lines()[0].startswith("harness on mixed: 5 of 13 rows")


def test_nothing_is_overwritten(run, tmp_path):
    task, out = run["tasks"]["mixed"], tmp_path / "a.jsonl"
    intake.take_answers(run["files"]["mixed"], task, "harness", out)

    def other(sample):
        sample["resps"][0][0] += " indeed"

    with pytest.raises(ConfigError, match="holds another answer of harness"):
        intake.take_answers(changed(run, tmp_path, other), task, "harness", out)
    (tmp_path / "artifact.json").write_text("{}")
    with pytest.raises(ConfigError, match="belongs to a finished step"):
        intake.take_answers(run["files"]["mixed"], task, "other", out)


def test_a_target_that_was_asked_something_else_is_not_compared(run, tmp_path):
    task, out = run["tasks"]["mixed"], tmp_path / "a.jsonl"
    taken = intake.take_answers(run["files"]["mixed"], task, "harness", out)
    out.write_text(out.read_text().replace(taken[0].key, "0" * 32))
    with pytest.raises(DataError, match="was asked something else"):
        compare_import(task, taken, out)


def test_an_export_carries_the_task_itself(tmp_path, cli):
    out = tmp_path / "out"
    told = cli("task", "export", "support_desk", "--to", "lm-eval", "--out", out, "--rows", 5, check=True).stdout
    assert "5 rows of support_desk" in told
    assert "--apply_chat_template" in told
    from gemma_ops.config import shipped

    here = load_task(shipped.find_shipped("eval", "support_desk"))
    assert load_task(out / "task").digest == here.digest
    ids = [json.loads(line)["id"] for line in (out / "data.jsonl").read_text().strip().split("\n")]
    assert ids == [row.id for row in here.first(5).rows]
    again = cli("task", "export", "support_desk", "--to", "lm-eval", "--out", out)
    assert (again.returncode, "is not an empty folder" in again.stderr) == (2, True)


def test_rows_of_a_data_folder_are_exported_with_it(tmp_path):
    source = tmp_path / "data"
    source.mkdir()
    (source / "test.csv").write_text("text,category\nwhere is my card,card_arrival\nno money,balance\n")
    folder = Path(__file__).parents[2] / "eval" / "banking77"
    interop.export_task(folder, "lm-eval", tmp_path / "out", source=source)
    copy = load_task(tmp_path / "out" / "task", tmp_path / "out" / "task")
    assert copy.digest == load_task(folder, source).digest


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        [{"role": "user", "content": [{"type": "image", "url": "../x.png"}]}],
    ],
)
def test_what_the_harness_can_t_ask_is_refused(tmp_path, messages):
    body = "metrics: [exact_match]\nprimary: exact_match\n"
    (tmp_path / "x.png").write_bytes(media_rows.png("red", random.Random(0)))
    task = interop_tasks.write(tmp_path / "t", "t", body, [{"id": "r", "messages": messages, "reference": "d"}])
    with pytest.raises(DataError, match="row r "):
        interop.export_task(task.folder, "lm-eval", tmp_path / "out")


def test_rows_that_must_stay_here_are_named(tmp_path):
    body = "metrics: [exact_match]\nprimary: exact_match\n"
    rows = [{"id": str(number), "prompt": "q", "reference": "a"} for number in range(2)]
    task = interop_tasks.write(tmp_path / "t", "t", body, [rows[0], rows[1] | {"privacy": "local_only"}])
    lines = interop.export_task(task.folder, "inspect", tmp_path / "out")
    assert any("1 of 2 rows are not free to leave this machine" in line for line in lines)
