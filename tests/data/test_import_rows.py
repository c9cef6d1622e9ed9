"""What an import changes is said: nulls of tables, class labels, columns beside the turns, marks, encodings, files left
out."""

from __future__ import annotations

import codecs
import json

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from gemma_ops.config import DataConfig
from gemma_ops.data import chat
from gemma_ops.data.encodings import encoding_of
from gemma_ops.data.import_rows import Importer
from gemma_ops.data.row_files import left_out, source_files
from gemma_ops.errors import DataError
from gemma_ops.nano import WEIGHTS
from gemma_ops.prepare.foreign_marks import foreign_token, schema_losses
from gemma_ops.prepare.row_findings import Context, look_at_row

USER = {"role": "user", "content": "How deep is lake Mjøsa?"}
SAY = {"role": "assistant", "content": "453 metres."}


def read(path, **settings):
    return list(Importer(path, DataConfig(path=str(path), **settings)))


def one(tmp_path, row, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (item,) = read(path, **settings)
    return item


def calling(name, **arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


def depth_rows():
    """Two rows with calls of different functions, whose arguments and schemas Arrow gives one shape."""
    rows = []
    for name, arguments in (("depth", {"lake": "Mjøsa", "unit": {"of": "m"}}), ("area", {"square": [1, 2]})):
        kinds = {key: {"type": "string" if isinstance(value, str) else "object"} for key, value in arguments.items()}
        tool = {
            "type": "function",
            "function": {"name": name, "description": name, "parameters": {"type": "object", "properties": kinds}},
        }
        rows.append(
            {"messages": [USER, calling(name, **arguments), {"role": "tool", "content": "1"}, SAY], "tools": [tool]}
        )
    return rows


@pytest.mark.parametrize("kind", ["parquet", "folder", "json"])
def test_nulls_that_a_table_filled_in_are_left_out_and_noted(tmp_path, kind):
    wanted = depth_rows()
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wanted))
    table = pa.Table.from_pylist(wanted)
    if kind == "parquet":
        path = tmp_path / "rows.parquet"
        parquet.write_table(table, path)
    elif kind == "folder":
        path = tmp_path / "rows"
        datasets.Dataset(table).save_to_disk(str(path))
    else:  # what such a table looks like when it is written as JSON Lines
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    plain, tabled = read(tmp_path / "plain.jsonl"), read(path)
    for one_, other in zip(plain, tabled, strict=True):
        assert other.example["messages"] == one_.example["messages"]
        assert other.example["tools"] == one_.example["tools"]
        assert "arrow_nulls" in other.notes
        assert "arrow_nulls" not in one_.notes


def test_an_argument_that_is_null_on_purpose_stays(tmp_path):
    tool = {
        "name": "depth",
        "parameters": {"type": "object", "properties": {"lake": {"type": "string", "nullable": True}}},
    }
    row = {"messages": [USER, calling("depth", lake=None), {"role": "tool", "content": "1"}, SAY]}
    for tools in ([tool], None):
        item = one(tmp_path, row | {"tools": tools})
        assert item.example["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"lake": None}


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_class_labels_are_given_by_name(tmp_path, kind):
    features = datasets.Features(
        {"text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["lake", "river"]),
         "all": datasets.List(datasets.ClassLabel(names=["deep", "long"]))}
    )  # fmt: skip
    made = datasets.Dataset.from_dict(
        {"text": ["Mjøsa", "Glomma"], "kind": [0, 1], "all": [[0], [1, 0]]}, features=features
    )
    path = tmp_path / ("rows.parquet" if kind == "parquet" else "rows")
    made.to_parquet(str(path)) if kind == "parquet" else made.save_to_disk(str(path))
    found = read(path, prompt="What is {text}?", completion="A {kind}")
    assert [item.example["messages"][1]["content"] for item in found] == ["A lake", "A river"]
    assert all("labels_named" in item.notes for item in found)
    assert [item.raw.value["all"] for item in found] == [["deep"], ["long", "deep"]]


def gemini(*contents):
    return {"contents": [{"role": role, "parts": parts} for role, parts in contents]}


CALLS = [{"functionCall": {"name": "depth", "args": {"lake": lake}}} for lake in ("Mjøsa", "Femunden")]
REPLIES = [{"functionResponse": {"name": "depth", "response": {"metres": metres}}} for metres in (453, 131)]


@pytest.mark.parametrize("split", [False, True])
def test_all_of_geminis_parallel_responses_are_kept_in_order(tmp_path, split):
    replies = [("user", [reply]) for reply in REPLIES] if split else [("user", REPLIES)]
    row = gemini(("user", [{"text": "How deep?"}]), ("model", CALLS), *replies, ("model", [{"text": "453 and 131."}]))
    message = one(tmp_path, row).example["messages"][1]
    assert [item["response"] for item in message["tool_responses"]] == [{"metres": 453}, {"metres": 131}]


def test_text_beside_a_response_is_the_users_turn_after_it(tmp_path):
    beside = [REPLIES[0], {"text": "The number alone."}]
    row = gemini(
        ("user", [{"text": "How deep?"}]), ("model", CALLS[:1]), ("user", beside), ("model", [{"text": "453"}])
    )
    messages = one(tmp_path, row).example["messages"]
    assert messages[1]["tool_responses"] == [{"name": "depth", "response": {"metres": 453}}]
    assert messages[2] == {"role": "user", "content": "The number alone."}


@pytest.mark.parametrize("extra", [REPLIES, [*REPLIES, *REPLIES]])
def test_responses_without_a_call_are_refused(tmp_path, extra):
    row = gemini(("user", [{"text": "q"}]), ("model", CALLS[:1]), ("user", extra), ("model", [{"text": "a"}]))
    assert one(tmp_path, row).code == "tool_without_call"


LAYOUTS = {
    "messages": {"messages": [USER, SAY]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "alpaca": {"instruction": "q", "output": "a"},
    "prompt_completion": {"prompt": "q", "completion": "a"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "whole sides": {"chosen": [USER, SAY], "rejected": [USER, {**SAY, "content": "b"}]},
    "judged": {"prompt": "q", "completion": "a", "label": True},
    "columns": {"q": "q", "a": "a"},
}


@pytest.mark.parametrize("key", ["system", "system_prompt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_system_column_is_read_in_every_layout(tmp_path, layout, key):
    settings = {"prompt": "{q}", "completion": "{a}"} if layout == "columns" else {}
    item = one(tmp_path, LAYOUTS[layout] | {key: "Speak as a ferryman."}, **settings)
    assert item.example["messages"][0] == {"role": "system", "content": "Speak as a ferryman."}
    assert "system_column" in item.notes
    default = one(tmp_path, LAYOUTS[layout] | {key: "Speak as a ferryman."}, system="Be brief.", **settings)
    assert default.example["messages"][0]["content"] == "Speak as a ferryman."


def test_two_system_turns_that_differ_are_refused(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, USER, SAY]
    assert one(tmp_path, {"messages": turns, "system": "Be brief."}).example
    assert one(tmp_path, {"messages": turns, "system": "Be long."}).code == "two_systems"
    assert one(tmp_path, {"messages": [USER, SAY], "system": ["no", "text"]}).code == "not_text"


FIRST = {"role": "assistant", "content": "Wait, I look."}
MARKS = [
    {"weight": 0}, {"weight": 0.0}, {"train": False}, {"trainable": False}, {"loss": False}, {"loss": 0},
    {"learn": False},
    {"training": False}, {"train": "false"}, {"masked": True}, {"mask": 1}, {"ignore_loss": True}, {"loss_weight": 0},
]  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
def test_a_turn_marked_not_to_be_learned_carries_no_loss(tmp_path, mark):
    item = one(tmp_path, {"messages": [USER, FIRST | mark, USER, SAY]})
    messages = item.example["messages"]
    assert messages[1]["weight"] == 0
    assert "weight" not in messages[3]
    assert "field_dropped" not in item.notes
    tokenizer = chat.load_tokenizer(WEIGHTS)
    (whole,) = chat.examples(tokenizer, messages)
    scored = tokenizer.decode([token for token, loss in zip(whole.ids, whole.loss, strict=True) if loss])
    assert "453" in scored
    assert "Wait" not in scored
    assert "Wait" in whole.text
    assert "turn_not_learned" in {found.code for found in look_at_row(item.example, Context(tokenizer, None))[1]}


def test_marks_of_sharegpt_turns_and_in_columns_are_honoured(tmp_path):
    turns = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "x", "loss": False},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a"},
    ]
    assert one(tmp_path, {"conversations": turns}).example["messages"][1]["weight"] == 0
    plain = [USER, FIRST, USER, SAY]
    for mask in ([0, 0, 0, 1], [False, True], [1, 0, 1, 1]):
        messages = one(tmp_path, {"messages": plain, "loss_mask": mask}).example["messages"]
        assert messages[1].get("weight") == 0 or mask == [False, True]
        assert "weight" not in messages[3]


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"loss_mask": [1, 0, 1]}, "row_mask"),
        ({"masks": [0.5, 1]}, "row_mask"),
        ({"assistant_masks": [0, 0, 1, 1, 1, 0]}, "token_mask"),
        ({"completion_mask": [0, 1]}, "token_mask"),
        ({"train": False}, "row_not_trained"),
        ({"trainable": [0, 0]}, "nothing_learned"),
    ],
)
def test_masks_that_cannot_be_honoured_are_refused(tmp_path, columns, code):
    assert one(tmp_path, {"messages": [USER, FIRST, USER, SAY]} | columns).code == code


ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_files_in_other_encodings_are_read(tmp_path, suffix, encoding):
    delimiter = "\t" if suffix == ".tsv" else ","
    rows = [{"question": f"Hvor dypt er {n}?", "answer": "Større enn Øyeren 🐟"} for n in range(40)]
    if suffix in (".csv", ".tsv"):
        text = "\r\n".join(
            [f"question{delimiter}answer", *(f"{row['question']}{delimiter}{row['answer']}" for row in rows)]
        )
    else:
        text = (
            json.dumps(rows, ensure_ascii=False)
            if suffix == ".json"
            else "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
        )
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(text.encode(encoding))
    found = read(path, prompt="{question}", completion="{answer}")
    assert [item.example["messages"][1]["content"] for item in found] == [row["answer"] for row in rows]


def test_a_named_encoding_is_used_and_a_wrong_one_told(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("q,a\nHvor dypt?,Større\n".encode("cp1252"))
    (item,) = read(path, prompt="{q}", completion="{a}", encoding="cp1252")
    assert item.example["messages"][1]["content"] == "Større"
    (item,) = read(path, prompt="{q}", completion="{a}")
    assert item.code == "not_utf8"
    with pytest.raises(DataError, match="can't be read as"):
        read(path, prompt="{q}", completion="{a}", encoding="utf-16")
    with pytest.raises(DataError, match="no encoding"):
        read(path, prompt="{q}", completion="{a}", encoding="utf-17")
    assert encoding_of(codecs.BOM_UTF16_BE + b"\0a") == "utf-16-be"
    assert encoding_of(b"plain text") is None


@pytest.mark.parametrize(
    ("names", "read_names"),
    [
        (["tickets_train.csv", "tickets_test.csv"], ["tickets_train.csv"]),
        (["rows.jsonl", "rows-eval.jsonl", "rows.val.jsonl", "myDevSet.jsonl"], ["rows.jsonl"]),
        (["a.jsonl", "a_holdout.jsonl", "heldout.jsonl", "benchmark.jsonl", "Evaluation.jsonl"], ["a.jsonl"]),
        (["training-data.jsonl", "other.jsonl", "train2.jsonl"], ["train2.jsonl", "training-data.jsonl"]),
        (
            ["contest.jsonl", "latest.jsonl", "evaluator_notes_devices.jsonl"],
            ["contest.jsonl", "evaluator_notes_devices.jsonl", "latest.jsonl"],
        ),
        (["test_train.jsonl", "rows.jsonl"], ["rows.jsonl"]),
    ],
)
def test_files_for_testing_are_left_out_by_any_usual_name(tmp_path, names, read_names):
    for name in names:
        (tmp_path / name).write_text("")
    assert [path.name for path in source_files(tmp_path)] == read_names
    assert sorted(path.name for path in left_out(tmp_path)) == sorted(set(names) - set(read_names))
    # A file that is named by itself is read whatever its name.
    assert source_files(tmp_path / names[-1]) == [tmp_path / names[-1]]


def test_calls_that_are_never_answered_and_answers_in_a_row_are_told():
    tokenizer = chat.load_tokenizer(WEIGHTS)
    two = {"role": "assistant", "content": "", "tool_calls": [
        {"id": n, "type": "function", "function": {"name": "f", "arguments": {"n": n}}} for n in "12"
    ]}  # fmt: skip
    result = {"role": "tool", "tool_call_id": "1", "content": "r"}
    codes = lambda *messages: {  # noqa: E731
        item.code
        for item in look_at_row({"id": "a", "source": "s", "messages": list(messages)}, Context(tokenizer, None))[1]
    }
    assert "unanswered_call" in codes(USER, two, result, SAY)
    assert "unanswered_call" in codes(USER, two, SAY)
    assert "unanswered_call" in codes(USER, {**two, "tool_responses": [{"name": "f", "response": 1}]}, SAY)
    assert "unanswered_call" not in codes(USER, two)  # the row ends where the tools are called
    assert "unanswered_call" not in codes(USER, two, result, {**result, "tool_call_id": "2"}, SAY)
    assert "two_answers" in codes(USER, FIRST, SAY)
    assert "two_answers" not in codes(USER, two, result, {**result, "tool_call_id": "2"}, SAY)


@pytest.mark.parametrize(
    "text",
    ["a<end_of_turn>", "<|im_start|>user", "x<|eot_id|>", "[INST] q [/INST]", "<s>[INST]", "done</s>", "<|endoftext|>",
        "<|assistant|>",
     "<|start_header_id|>user", "<｜Assistant｜>", "<<SYS>>", "[gMASK]"],
)  # fmt: skip
def test_tokens_of_other_templates_are_told(text):
    assert foreign_token(text)
    tokenizer = chat.load_tokenizer(WEIGHTS)
    row = {"id": "a", "source": "s", "messages": [USER, {**SAY, "content": text}]}
    assert "other_template" in {item.code for item in look_at_row(row, Context(tokenizer, None))[1]}
    raw = {"id": "a", "source": "s", "messages": [], "text": text}
    assert "other_template" in {item.code for item in look_at_row(raw, Context(tokenizer, None))[1]}


def test_keys_that_engines_sort_differently_are_told():
    tokenizer = chat.load_tokenizer(WEIGHTS)
    for arguments, told in (
        ({"a": 1, "B": 2}, True),
        ({"a": 1, "b": 2}, False),
        ({"x": [{"Lake": 1, "depth": 2}]}, True),
        ({"A": 1, "b": 2}, False),
    ):
        messages = [USER, calling("f", **arguments), {"role": "tool", "content": "r"}, SAY]
        row = {"id": "a", "source": "s", "messages": messages}
        found = {item.code for item in look_at_row(row, Context(tokenizer, None))[1]}
        assert ("keys_of_two_orders" in found) is told, arguments


def test_ordinary_markup_is_no_token_of_another_template():
    for text in ("<b>x</b>", "a[1]", "<s3://bucket>", "List<String>", "<user>", "[system]", "a < s > b", "<strong>"):
        assert foreign_token(text) is None, text


def schema(**properties):
    return [
        {
            "type": "function",
            "function": {
                "name": "f",
                "description": "d",
                "parameters": {"type": "object", "properties": properties, "required": ["a"]},
            },
        }
    ]


def test_what_the_template_leaves_out_of_a_schema_is_told_and_what_it_reads_is_not():
    whole = schema(
        a={"type": "string", "enum": ["x"], "description": "d", "nullable": True},
        b={"type": "array", "items": {"type": "string", "minLength": 2}, "description": "d"},
        c={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    )
    assert schema_losses(whole) == []
    lost = {
        "f.a.anyOf": {"anyOf": [{"type": "string"}]},
        "f.a.enum": {"type": "integer", "enum": [1, 2]},
        "f.a.type": {"type": ["string", "null"]},
        "f.a.minimum": {"type": "number", "minimum": 0},
        "f.a.pattern": {"type": "string", "pattern": "x+"},
        "f.a.$ref": {"$ref": "#/$defs/S"},
        "f.a[].$ref": {"type": "array", "items": {"$ref": "#/$defs/S"}},
        "f.a.n.format": {"type": "object", "properties": {"n": {"type": "string", "format": "date"}}},
    }
    for path, given in lost.items():
        assert path in schema_losses(schema(a=given)), path
    defs = schema(a={"type": "string"})
    defs[0]["function"]["parameters"]["$defs"] = {}
    defs[0]["function"]["strict"] = True
    assert schema_losses(defs) == ["f.$defs", "f.strict"]


def test_every_kept_part_of_a_schema_is_in_the_prompt_and_every_lost_one_is_not():
    """The list of losses against the rendering itself."""
    probes = {
        "description": "DESCR", "enum": ["ENUMA"], "default": "DEFAU", "pattern": "PATTE", "format": "FORMA",
        "title": "TITLE",
        "const": "CONST", "examples": ["EXAMP"], "anyOf": [{"type": "ANYOF"}],
    }  # fmt: skip
    for kind in ("string", "integer"):
        for key, value in probes.items():
            tools = schema(a={"type": kind, key: value})
            shown = json.dumps(value).strip('[]"{}')[-7:].strip('"}: ') in chat.render_chat([USER], tools).text
            assert shown is (f"f.a.{key}" not in schema_losses(tools)), (kind, key)
