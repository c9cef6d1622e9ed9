"""The step `prepare` from files to artifact: what it writes, refuses, counts, and that it ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys

import pytest
from pydantic import ValidationError

from gemma_ops.config import DataConfig, MachineConfig
from gemma_ops.data import chat, published
from gemma_ops.data.chat import load_tokenizer
from gemma_ops.data.example import Example, content_id, read_examples, read_rows, write_rows
from gemma_ops.data.row_tokens import Lengths, Manner, encode_rows
from gemma_ops.errors import DataError, ModelError
from gemma_ops.family.sizes import CONFIGS
from gemma_ops.nano import WEIGHTS
from gemma_ops.prepare import prepare
from gemma_ops.privacy.classes import stricter
from gemma_ops.runs import digest, journal
from tests.helpers import patience
from tests.helpers.task_files import task_yaml

WORDS = "card account refund order ticket delivery late broken invoice change please where when why how today"
VOCABULARY = WORDS.split()


def chat_row(user, answer="Yes.", **rest):
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}], **rest}


def many(count, seed=0):
    draw = random.Random(seed)
    return [
        chat_row(f"{number} " + " ".join(draw.choices(VOCABULARY, k=12)), f"answer {number}") for number in range(count)
    ]


@pytest.fixture
def run(tmp_path):
    """Write rows to a file, run the step on it, return (metrics, folder)."""

    def go(rows, name="rows.jsonl", *, out="out", tasks=(), **settings):
        source = tmp_path / name
        lines = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in rows]
        source.write_text("".join(item + "\n" for item in lines), encoding="utf-8")
        folder = tmp_path / out
        folder.mkdir(exist_ok=True)
        return prepare(
            folder, DataConfig(path=str(source), **settings), MachineConfig(), source=source, model=WEIGHTS, tasks=tasks
        ), folder

    return go


def make_task(folder, *prompts, name="exam"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.yaml").write_text(task_yaml("{path: data.jsonl}", name))
    (folder / "data.jsonl").write_text(
        "".join(json.dumps({"prompt": item, "reference": "x"}) + "\n" for item in prompts)
    )
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_rows_become_examples_as_the_contract_says(run):
    call = {"id": "z", "type": "function", "function": {"name": "f", "arguments": '{"a": null}'}}
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "z", "content": "1"},
        {"role": "assistant", "content": "Größe", "reasoning_content": "r"},
    ]
    metrics, out = run([{"messages": messages, "tools": tools, "weight": 2}, chat_row("hi")], valid_share=0)
    assert metrics["rows"] == metrics["train_rows"] == 2
    text = (out / "train.jsonl").read_text(encoding="utf-8")
    first, second = map(json.loads, text.splitlines())
    assert list(first) == ["id", "messages", "tools", "source", "privacy", "group", "weight"]
    assert "Größe" in text
    assert first["messages"][1]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": None}}}
    ]
    assert first["messages"][2] == {"role": "tool", "content": "1", "tool_call_id": "call_1", "name": "f"}
    assert first["messages"][3]["reasoning"] == "r"
    assert (first["source"], first["privacy"], first["weight"]) == ("rows.jsonl:1", "local_only", 2.0)
    assert list(second) == ["id", "messages", "source", "privacy", "group"]
    canonical = json.dumps({"messages": second["messages"], "tools": []}, sort_keys=True, separators=(",", ":"))
    assert second["id"] == second["group"] == hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
    assert [item.plain() for item in read_examples(out / "train.jsonl")] == [first, second]
    assert sorted(path.name for path in out.iterdir()) == [
        "card.md",
        "private.jsonl",
        "rejected.jsonl",
        "report.json",
        "train.jsonl",
        "valid.jsonl",
    ]


def test_bad_rows_are_kept_with_their_reason_and_the_step_fails(run, tmp_path):
    rows = [
        *many(6),
        '{"messages": [{"role": "user"',
        {"messages": [{"role": "user", "content": "alone"}]},
        chat_row("x", " "),
        chat_row("x" * 900, None),
        *many(4, seed=1),
    ]
    with pytest.raises(DataError) as error:
        run(rows)
    assert "4 of 14 rows (28.6%)" in error.value.what
    assert "rows.jsonl:7: not JSON: " in error.value.what
    assert "rows.jsonl:8: the row has no assistant turn" in error.value.what
    assert "rows.jsonl:9: message 2 (assistant) is empty" in error.value.what
    assert "… and 1 more" in error.value.what
    assert str(tmp_path / "out" / "rejected.jsonl") in error.value.fix
    rejected = list(read_rows(tmp_path / "out" / "rejected.jsonl"))
    assert [(row["file"], row["line"], row["code"]) for row in rejected] == [
        ("rows.jsonl", 7, "bad_json"), ("rows.jsonl", 8, "no_assistant"), ("rows.jsonl", 9, "empty_answer"),
        ("rows.jsonl", 10, "empty_answer"),
    ]  # fmt: skip
    assert rejected[0]["text"] == '{"messages": [{"role": "user"'
    assert len(rejected[3]["text"]) == 500
    metrics, out = run(rows, max_bad_share=0.3)
    assert (metrics["rejected"], metrics["train_rows"] + metrics["valid_rows"]) == (4, 10)
    assert report(out)["rejected"] == {"empty_answer": 2, "bad_json": 1, "no_assistant": 1}


def test_empty_sets_are_refused(run):
    for rows in ([], ["", "   "]):
        with pytest.raises(DataError, match=r"rows\.jsonl holds no rows"):
            run(rows)
    with pytest.raises(DataError, match="no training rows are left"):
        run(["{"], max_bad_share=1.0)
    with pytest.raises(DataError, match="no training rows are left: 3 rows for validation"):
        run(many(3), valid_share=1.0)
    with pytest.raises(DataError, match="whose keys are: a"):
        run([{"a": 1}])


def test_no_tokenizer_is_told_before_anything_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"no tokenizer\.json"):
        prepare(
            tmp_path / "out",
            DataConfig(path="rows.jsonl"),
            MachineConfig(),
            source=tmp_path / "rows.jsonl",
            model=tmp_path,
        )


def test_columns_of_a_folder_with_a_test_file_beside(tmp_path):
    source = tmp_path / "bank"
    source.mkdir()
    (source / "train.csv").write_text(
        "text,category\n"
        + "".join(f"question {number} about my card please,cat_{number % 3}\n" for number in range(40))
    )
    (source / "test.csv").write_text("text,category\nquestion 5 about my card please,cat_2\n")
    folder = tmp_path / "exam"
    folder.mkdir()
    (folder / "task.yaml").write_text(
        task_yaml('{from_source: test.csv, prompt: "Classify: {text}", reference: "{category}"}', "bank")
    )
    (tmp_path / "out").mkdir()
    settings = {"prompt": "Classify: {text}", "completion": "{category}", "near_duplicates": None, "overlap": "drop"}
    metrics = prepare(
        tmp_path / "out",
        DataConfig(path="x", **settings),
        MachineConfig(),
        source=source,
        model=WEIGHTS,
        tasks=(folder,),
    )
    assert (metrics["rows"], metrics["overlap"], metrics["train_rows"] + metrics["valid_rows"]) == (40, 1, 39)
    assert report(tmp_path / "out")["overlap"]["first"] == [
        {"row": "train.csv:7", "task": "bank", "question": "test.csv:2", "how": "the same question"}
    ]
    assert [item["name"] for item in report(tmp_path / "out")["sources"]] == ["train.csv"]


def test_duplicates_go_and_the_first_stays(run):
    long = " ".join(VOCABULARY * 3)
    rows = [
        chat_row("Hello there"),
        chat_row("Hello there "),
        chat_row(long, "b"),
        chat_row(long + " now", "b"),
        chat_row("Hello there", "No."),
    ]
    metrics, out = run(rows, valid_share=0)
    assert (metrics["exact_duplicates"], metrics["near_duplicates"], metrics["train_rows"]) == (1, 1, 3)
    assert [row["source"] for row in read_rows(out / "train.jsonl")] == ["rows.jsonl:1", "rows.jsonl:3", "rows.jsonl:5"]
    body = report(out)
    assert body["near_duplicates"]["first"][0]["of"] == "rows.jsonl:3"
    assert body["same_prompt_other_answer"] == 1
    assert run(rows, valid_share=0, near_duplicates=None)[0]["train_rows"] == 4
    kept = run(rows, valid_share=0, near_duplicates=None, exact_duplicates="keep")[0]
    assert (kept["exact_duplicates"], kept["train_rows"]) == (0, 5)


def test_overlap_is_refused_dropped_or_reported(run, tmp_path):
    rows = [
        chat_row(f"Route this ticket as JSON: {row['messages'][0]['content']}", str(number))
        for number, row in enumerate(many(60))
    ]
    leaked = rows[17]["messages"][0]["content"]
    exam = make_task(
        tmp_path / "exam", "Route this ticket as JSON: a question nobody asked before in training", leaked, "other"
    )
    with pytest.raises(DataError) as error:
        run(rows, tasks=(exam,))
    assert "1 training rows also stand in an evaluation task (1 in exam)" in error.value.what
    assert "rows.jsonl:18 and data.jsonl:2 of exam (the same question)" in error.value.what
    assert "data.overlap=drop" in error.value.fix
    metrics, out = run(rows, tasks=(exam,), overlap="drop")
    assert (metrics["overlap"], metrics["train_rows"] + metrics["valid_rows"]) == (1, 59)
    assert "rows.jsonl:18" not in (out / "train.jsonl").read_text() + (out / "valid.jsonl").read_text()
    metrics, out = run(rows, tasks=(exam,), overlap="report")
    assert (metrics["overlap"], metrics["train_rows"] + metrics["valid_rows"]) == (1, 60)
    assert "overlapping rows are **kept**" in (out / "card.md").read_text()


def test_personal_data_is_reported_masked_or_refused(run):
    call = {"function": {"name": "f", "arguments": {"to": ["bob@example.org"]}}}
    rows = [
        chat_row("I am ana@example.org", "Noted, +49 30 901820."),
        chat_row("nothing here"),
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]},
    ]
    metrics, out = run(rows, valid_share=0)
    assert metrics["pii_rows"] == 2
    assert report(out)["pii"]["found"] == {"EMAIL": 2, "PHONE": 1}
    assert "ana@example.org" in (out / "train.jsonl").read_text()
    assert "ana@" not in (out / "card.md").read_text() + (out / "report.json").read_text()
    metrics, out = run(rows, valid_share=0, pii="mask")
    text = (out / "train.jsonl").read_text()
    assert "@" not in text
    assert "I am [EMAIL]" in text
    assert '"to": ["[EMAIL]"]' in text
    for row in read_rows(out / "train.jsonl"):
        assert row["id"] == content_id(row["messages"], row.get("tools"))
    with pytest.raises(DataError, match=r"2 rows of .* hold personal data:\n  rows\.jsonl:1: EMAIL, PHONE") as error:
        run(rows, pii="refuse")
    assert "data.pii=mask" in error.value.fix
    assert run(rows, valid_share=0, pii="off")[0]["pii_rows"] == 0


def test_privacy_only_tightens(run):
    rows = [
        chat_row("a", privacy="any"),
        chat_row("b", privacy="local_only"),
        chat_row("c"),
        chat_row("d", metadata={"privacy": "local_only"}),
        chat_row("e", privacy="secret"),
    ]
    _, out = run(rows, privacy="paid", max_bad_share=0.5, valid_share=0)
    assert [row["privacy"] for row in read_rows(out / "train.jsonl")] == ["paid", "local_only", "paid", "local_only"]
    assert report(out)["privacy"] == {"local_only": 2, "paid": 2}
    assert report(out)["rejected"] == {"bad_privacy": 1}
    assert stricter("any", "paid") == stricter("paid", "any") == "paid"
    # A duplicate's class counts too: the same text must not be laxer here than there.
    _, out = run([chat_row("a", privacy="any"), chat_row("a ", privacy="local_only")], privacy="any", valid_share=0)
    assert [row["privacy"] for row in read_rows(out / "train.jsonl")] == ["local_only"]


def test_groups_stay_together_and_rows_may_be_appended(run):
    rows = [
        chat_row(f"{number} {row['messages'][0]['content']}", customer=f"c{number % 40}")
        for number, row in enumerate(many(400))
    ]
    _, out = run(rows[:300], group_by="customer", valid_share=0.2)
    before = {row["id"]: "train" for row in read_rows(out / "train.jsonl")} | {
        row["id"]: "valid" for row in read_rows(out / "valid.jsonl")
    }
    metrics, out = run(rows, group_by="customer", valid_share=0.2)
    sides = {side: list(read_rows(out / f"{side}.jsonl")) for side in ("train", "valid")}
    assert all(before.get(row["id"], side) == side for side, found in sides.items() for row in found)
    assert not {row["group"] for row in sides["train"]} & {row["group"] for row in sides["valid"]}
    assert metrics["valid_rows"] > 0
    assert report(out)["split"]["groups"] == 40
    with pytest.raises(DataError, match=r"no value for data\.group_by"):
        run([*rows[:5], chat_row("no customer")], group_by="customer")


def test_max_rows_and_a_system_turn(run):
    metrics, out = run(many(30), max_rows=7, system="Be brief.", valid_share=0)
    assert metrics["rows"] == 7
    assert all(
        row["messages"][0] == {"role": "system", "content": "Be brief."} for row in read_rows(out / "train.jsonl")
    )


def test_the_bytes_are_the_same_again_and_without_time_or_place(run, tmp_path):
    exam = make_task(tmp_path / "exam", "other question")
    _, first = run(many(50), tasks=(exam,), out="one")
    _, second = run(many(50), tasks=(exam,), out="two")
    assert digest.of_path(first) == digest.of_path(second)
    text = "".join((first / name).read_text() for name in ("report.json", "card.md", "train.jsonl"))
    assert str(tmp_path) not in text


def test_killed_and_run_again_ends_with_the_same_bytes(run, tmp_path):
    rows = many(1200)
    _, whole = run(rows, out="whole")
    out = tmp_path / "killed"
    out.mkdir()
    (out / "fingerprint.json").write_text("{}")  # what the run keeps there
    code = (
        "from pathlib import Path\nfrom gemma_ops.config import *\nfrom gemma_ops.prepare import prepare\nfrom "
        f"gemma_ops.nano import WEIGHTS\nprepare(Path({str(out)!r}), DataConfig(path='x'), MachineConfig(), "
        f"source=Path({str(tmp_path / 'rows.jsonl')!r}), model=WEIGHTS)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    patience.until(lambda: (out / "work" / "rows.jsonl").exists() or process.poll() is not None, 60, of=process.pid)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (out / "work").exists()
    run(rows, out="killed")
    assert (out / "fingerprint.json").read_text() == "{}"
    (out / "fingerprint.json").unlink()
    assert digest.of_path(out) == digest.of_path(whole)


def test_report_card_and_metrics_tell_the_same(run):
    rows = [*many(30), chat_row("dup"), chat_row("dup"), "{"]
    metrics, out = run(rows, max_bad_share=0.1)
    body, card = report(out), (out / "card.md").read_text()
    assert body["rows"] == {
        "read": 33,
        "rejected": 1,
        "exact_duplicates": 1,
        "near_duplicates": 0,
        "overlap_dropped": 0,
        "train": metrics["train_rows"],
        "valid": metrics["valid_rows"],
    }
    assert (
        f"{int(metrics['train_rows'])} training and {int(metrics['valid_rows'])} validation rows, from 33 rows read."
        in card
    )
    source = out.parent / "rows.jsonl"
    assert body["sources"] == [{"name": "rows.jsonl", "sha256": digest.of_file(source), "bytes": source.stat().st_size}]
    assert digest.of_file(source) in card
    tokenizer = load_tokenizer(WEIGHTS)
    encoded = list(encode_rows(out / "train.jsonl", tokenizer, Manner(), max_length=None))
    assert metrics["train_tokens"] == sum(len(row["input_ids"]) for row in encoded) == body["tokens"]["train"]["tokens"]
    assert metrics["train_tokens_with_loss"] == sum(label != -100 for row in encoded for label in row["labels"])
    assert all(isinstance(value, float) for value in metrics.values())
    assert "No evaluation task was given" in card


def test_progress_is_recorded(run, tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_ops.prepare.first_pass._EVERY", 10)
    with journal.writing(tmp_path / "logs", "prepare") as path:
        run(many(25))
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(item["phase"], item["rows"]) for item in records] == [
        (phase, rows) for phase in ("read", "compare", "write") for rows in (10, 20)
    ]


def test_encoded_rows_are_cut_and_counted(run):
    _, out = run([chat_row("short", "yes"), chat_row("long " * 50, "no " * 30)], valid_share=0)
    tokenizer = load_tokenizer(WEIGHTS)
    whole = list(encode_rows(out / "train.jsonl", tokenizer, Manner(), max_length=None))
    cut = list(encode_rows(out / "train.jsonl", tokenizer, Manner(), max_length=60))
    assert [row["truncated"] for row in cut] == [False, True]
    assert cut[0] == whole[0]
    assert cut[1]["input_ids"] == whole[1]["input_ids"][:60]
    for row in whole:
        assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
        assert tokenizer.decode([label for label in row["labels"] if label >= 0], skip_special_tokens=False).endswith(
            "<turn|>"
        )
    prefilled = list(encode_rows(out / "train.jsonl", tokenizer, Manner(empty_thought=True), max_length=None))
    assert len(prefilled[0]["input_ids"]) > len(whole[0]["input_ids"])
    assert [label for label in prefilled[0]["labels"] if label >= 0] == [
        label for label in whole[0]["labels"] if label >= 0
    ]


def test_a_row_that_cannot_be_rendered_is_named(tmp_path):
    broken = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    write_rows(
        tmp_path / "train.jsonl",
        [{"id": "a", **chat_row("x")}, {"id": "b", "messages": [{"role": "user", "content": "x"}, broken]}],
    )
    with pytest.raises(DataError, match=r"train\.jsonl:2: the chat template refuses"):
        list(encode_rows(tmp_path / "train.jsonl", load_tokenizer(WEIGHTS), Manner(), max_length=None))
    (tmp_path / "train.jsonl").write_text('{"id": "a"}\n{"id"\n')
    with pytest.raises(DataError, match=r"train\.jsonl:2: not JSON"):
        list(read_rows(tmp_path / "train.jsonl"))
    with pytest.raises(DataError, match=r"train\.jsonl:1: messages: Field required"):
        list(read_examples(tmp_path / "train.jsonl"))
    with pytest.raises(DataError, match="does not exist"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"a": 1}])

    def failing():
        yield {"a": 2}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_rows(path, failing())
    assert list(read_rows(path)) == [{"a": 1}]


def test_the_contract_refuses_strangers():
    good = {"id": "a", "messages": [{"role": "user", "content": "x"}], "source": "s:1", "privacy": "any", "group": "a"}
    assert Example.model_validate(good).plain() == good
    for change in (
        {"extra": 1},
        {"privacy": "public"},
        {"weight": 0},
        {"messages": [{"role": "model", "content": "x"}]},
        {"messages": [{"role": "user", "content": None}]},
    ):
        with pytest.raises(ValidationError):
            Example.model_validate({**good, **change})


def test_percentiles_are_nearest_rank():
    lengths = Lengths()
    for count in range(1, 101):
        lengths.add(count * 11, count)
    table = lengths.table()
    assert table["completion"] == {"p50": 50, "p95": 95, "max": 100}
    assert table["prompt"] == {"p50": 500, "p95": 950, "max": 1000}
    assert table["tokens_with_loss"] == 5050
    assert table["longer_than"] == {"256": 77, "512": 54, "1024": 7, "2048": 0, "4096": 0, "8192": 0}


def test_the_larger_sizes_are_known_by_their_template(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((WEIGHTS / "tokenizer.json").read_bytes())
    question = [{"role": "user", "content": "?"}]
    tokenizer = load_tokenizer(tmp_path)
    empty = "<|channel>thought\n<channel|>"
    assert not chat.prompt(tokenizer, question, template=published.template_of(tmp_path)).text.endswith(empty)
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["31B"]))
    assert chat.prompt(tokenizer, question, template=published.template_of(tmp_path)).text.endswith(empty)
    large = (
        "{{ bos_token }}{% if add_generation_prompt %}{{ '<|turn>model\n' }}{% if not enable_thinking "
        "%}<|channel>thought\n<channel|>{% endif %}{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(large)
    assert published.template_of(tmp_path) == large
