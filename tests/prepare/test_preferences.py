"""Answers that were compared or judged, through the whole of `prepare`: layouts, refusals, duplicates, tokens,
tables."""

from __future__ import annotations

import json
import shutil

import pytest

from gemma_ops.config import DataConfig, MachineConfig
from gemma_ops.config.methods import rows_of_method as rows_of
from gemma_ops.data import chat, row_formats
from gemma_ops.data.answer_tables import Encoding, judged_rows, pairs, prompt_rows
from gemma_ops.data.answers import encode_answers
from gemma_ops.data.example import Example, content_id, conversation_rows, kind, last_exchange, read_rows, swapped
from gemma_ops.data.import_rows import kinds, peek
from gemma_ops.data.normal import RowError
from gemma_ops.data.preferences import compared
from gemma_ops.data.row_tokens import Manner, encode_rows
from gemma_ops.errors import DataError
from gemma_ops.nano import WEIGHTS
from gemma_ops.prepare import prepare
from gemma_ops.prepare.check_html import check_page
from gemma_ops.prepare.check_rows import check_source
from gemma_ops.prepare.deduplicate import exact_key
from tests.helpers.task_files import task_yaml

TOKENIZER = chat.load_tokenizer(WEIGHTS)
ASK = {"role": "user", "content": "Where is my card?"}
GOOD = {"role": "assistant", "content": "On its way."}
BAD = {"role": "assistant", "content": "No idea."}
PAIR = {"messages": [ASK], "tools": None, "chosen": [GOOD], "rejected": [BAD]}
LAYOUTS = {
    "texts": ("preference", {"prompt": "Where is my card?", "chosen": "On its way.", "rejected": "No idea."}),
    "messages": ("preference", {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]}),
    "implicit": ("preference", {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]}),
    "with the prompt beside": ("preference", {"prompt": "Where is my card?", "chosen": [ASK, GOOD],
            "rejected": [ASK, BAD]}),
    "question": ("preference", {"question": "Where is my card?", "chosen": "On its way.", "rejected": "No idea."}),
    "our own": ("preference", {"messages": [ASK], "chosen": [GOOD], "rejected": [BAD]}),
    "hh-rlhf": (
        "preference",
        {
            "chosen": "\n\nHuman: Where is my card?\n\nAssistant: On its way.",
            "rejected": "\n\nHuman: Where is my card?\n\nAssistant: No idea.",
        },
    ),
    "openai": (
        "openai_preference",
        {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ),
}  # fmt: skip


def read(row, layout=None, **settings):
    layout = layout or row_formats.detect([row])
    return compared(row_formats.reader(layout, DataConfig(**settings))(row), system=settings.get("system"))[0]


def code(row, layout=None):
    with pytest.raises(RowError) as error:
        read(row, layout)
    return error.value.code


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_of_a_pair_is_detected_and_read(name):
    layout, row = LAYOUTS[name]
    assert row_formats.detect([row]) == layout
    assert read(row) == PAIR


def test_judged_answers_are_one_side_of_a_pair():
    wanted = {"prompt": "Where is my card?", "completion": "On its way.", "label": True}
    unwanted = {"prompt": [ASK], "completion": [BAD], "label": False}
    assert [row_formats.detect([row]) for row in (wanted, unwanted)] == ["judged", "judged"]
    assert read(wanted) == {"messages": [ASK], "tools": None, "chosen": [GOOD]}
    assert read(unwanted) == {"messages": [ASK], "tools": None, "rejected": [BAD]}
    assert read({"messages": [ASK, GOOD, ASK, BAD], "label": 0}, "judged")["rejected"] == [BAD]
    assert row_formats.detect([{"prompt": "a", "completion": "b", "label": "positive"}]) == "prompt_completion"
    assert code({"prompt": "a", "completion": "b", "label": "yes"}, "judged") == "no_label"


def test_the_prompt_is_what_both_sides_share():
    before = [ASK, GOOD, ASK]
    row = read({"chosen": [*before, GOOD], "rejected": [*before, BAD]}, system="Be brief.")
    assert row["messages"] == [{"role": "system", "content": "Be brief."}, *before]
    assert (row["chosen"], row["rejected"]) == ([GOOD], [BAD])


def test_an_answer_may_call_tools_and_hear_from_them():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    result = {"role": "tool", "content": "sunny"}
    row = read({"prompt": [ASK], "chosen": [call, result, GOOD], "rejected": [BAD]})
    assert [turn["role"] for turn in row["chosen"]] == ["assistant", "tool", "assistant"]
    encoded = encode_answers(TOKENIZER, row)
    said = TOKENIZER.decode(
        [
            token
            for token, loss in zip(encoded.answers["chosen"].ids, encoded.answers["chosen"].loss, strict=True)
            if loss
        ],
        skip_special_tokens=False,
    )
    assert "sunny" not in said
    assert "call:f" in said
    assert said.endswith("On its way.<turn|>")


@pytest.mark.parametrize(
    "wanted, row",
    [
        ("identical_sides", {"prompt": "a", "chosen": "same", "rejected": " same "}),
        ("identical_sides", {"chosen": [ASK, GOOD], "rejected": [ASK, GOOD]}),
        ("different_prompts", {"chosen": [ASK, GOOD], "rejected": [{"role": "user", "content": "Else?"}, BAD]}),
        ("different_prompts", {"prompt": "Else?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]}),
        ("different_prompts", {"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, BAD, ASK, BAD]}),
        ("different_prompts", {"chosen": [ASK, GOOD], "rejected": [ASK, GOOD, ASK, BAD]}),
        ("empty_answer", {"prompt": "a", "chosen": "b", "rejected": " "}),
        ("empty_turn", {"prompt": "", "chosen": "b", "rejected": "c"}),
        ("no_prompt", {"chosen": "b", "rejected": "c"}),
        ("prompt_is_answered", {"prompt": [ASK, GOOD], "chosen": [GOOD], "rejected": [BAD]}),
        ("not_a_message", {"prompt": "a", "chosen": 3, "rejected": "c"}),
    ],
)
def test_what_is_wrong_with_a_pair_has_a_name(wanted, row):
    assert code(row) == wanted


def test_what_is_wrong_says_on_which_side():
    with pytest.raises(RowError, match=r"^rejected: message 2 \(assistant\) is empty"):
        read({"prompt": "a", "chosen": "b", "rejected": ""}, "preference")


def test_contract_round_trip_and_ids():
    row = {"id": content_id([ASK], None, chosen=[GOOD], rejected=[BAD]), **PAIR, "source": "x:1", "privacy": "any"}
    row = {key: value for key, value in row.items() if value is not None} | {"group": "g"}
    assert Example.model_validate(row).plain() == row
    assert kind(row) == "pair"
    assert kind(swapped(row)) == "pair"
    assert swapped(row)["chosen"] == [BAD]
    assert conversation_rows(row) == [[ASK, GOOD], [ASK, BAD]]
    assert last_exchange(row) == ([ASK], "On its way.")
    wanted = {key: value for key, value in row.items() if key != "rejected"}
    assert kind(wanted) == "judged"
    assert swapped(wanted)["rejected"] == [GOOD]
    assert "chosen" not in swapped(wanted)
    # Which side an answer is on is part of the identity, and a conversation's identity is what it always was.
    ids = [
        content_id([ASK], None, chosen=[GOOD], rejected=[BAD]), content_id([ASK], None, chosen=[BAD], rejected=[GOOD]),
        content_id([ASK], None, chosen=[GOOD]), content_id([ASK], None, rejected=[GOOD]), content_id([ASK, GOOD], None),
    ]  # fmt: skip
    assert len(set(ids)) == len(ids)


@pytest.fixture
def run(tmp_path):
    """Write rows to a file, run the step on it, return (metrics, folder)."""

    def go(rows, *, tasks=(), **settings):
        source = tmp_path / "pairs.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        config = DataConfig(path=str(source), **settings)
        return prepare(out, config, MachineConfig(), source=source, model=WEIGHTS, tasks=tasks), out

    return go


def many(count):
    return [
        {"prompt": f"Question number {n} about card {n * 7919}?", "chosen": f"Good {n * 31}.",
            "rejected": f"Bad {n * 17}."}
        for n in range(count)
    ]  # fmt: skip


def prepared(out):
    return [*read_rows(out / "train.jsonl"), *read_rows(out / "valid.jsonl")]


def test_pairs_pass_through_the_step(run):
    metrics, out = run(many(40), valid_share=0.2)
    found = prepared(out)
    assert metrics["train_rows"] + metrics["valid_rows"] == len(found) == 40
    assert metrics["valid_rows"] > 0
    assert {kind(row) for row in found} == {"pair"}
    assert all(Example.model_validate(row).plain() == row for row in found)
    report = json.loads((out / "report.json").read_text())
    assert report["kinds"] == {"pair": 40}
    assert report["layout"] == "preference"
    card = (out / "card.md").read_text()
    assert "pairs of answers 40" in card
    assert "Each side of a pair counts by itself" in card
    # Both sides count: the tokens with loss are those of the two answers and their closing turns.
    lengths = [
        sum(map(len, (answer.ids for answer in encode_answers(TOKENIZER, row).answers.values()))) for row in found
    ]
    counted = sum(report["tokens"][side]["tokens_with_loss"] for side in ("train", "valid"))
    assert counted == sum(lengths)


def test_answers_to_one_prompt_stay_on_one_side_of_the_split(run):
    rows = [{**row, "rejected": f"Bad {n}."} for row in many(30) for n in ("one", "two", "three")]
    run(rows, valid_share=0.3, near_duplicates=None)
    _, out = run(rows, valid_share=0.3, near_duplicates=None)
    sides = [
        {row["messages"][0]["content"] for row in read_rows(out / name)} for name in ("train.jsonl", "valid.jsonl")
    ]
    assert all(sides)
    assert not sides[0] & sides[1]


def test_duplicates_and_contradictions(run):
    row, other = many(2)
    turned = {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}
    metrics, out = run([row, {**row, "chosen": row["chosen"] + "\n"}, turned, other], valid_share=0)
    assert metrics["exact_duplicates"] == 1
    assert metrics["near_duplicates"] == 0  # the same words the other way round say something else
    assert metrics["train_rows"] == 3
    report = json.loads((out / "report.json").read_text())
    assert report["contradictions"] == 1
    assert "want the answer that an earlier row to the same prompt rejects" in (out / "card.md").read_text()
    assert exact_key(PAIR) != exact_key(swapped(PAIR))


def test_a_pair_that_differs_in_one_side_only_is_kept(run):
    prompt = "Tell me in one sentence what happened to the parcel that I sent to my aunt in the north last week."
    good = "It lies in the depot and will be brought to her on Tuesday between eight and ten in the morning."
    bad = [
        "I have no idea where your parcel might be, please ask somebody else about it.",
        "Parcels get lost sometimes.",
    ]
    metrics, _ = run([{"prompt": prompt, "chosen": good, "rejected": text} for text in bad])
    assert metrics["near_duplicates"] == 0
    close = bad[0].replace("please", "kindly")
    metrics, _ = run(
        [{"prompt": prompt, "chosen": good, "rejected": text} for text in (bad[0], close)], near_duplicates=0.6
    )
    assert metrics["near_duplicates"] == 1


def test_personal_data_and_overlap_are_seen_on_both_sides(run, tmp_path):
    row = {**many(1)[0], "rejected": "Write to ana.berg@example.org."}
    _, out = run([row, *many(6)[1:]], pii="mask")
    assert any("[EMAIL]" in answer["content"] for found in prepared(out) for answer in found["rejected"])
    folder = tmp_path / "exam"
    folder.mkdir()
    (folder / "task.yaml").write_text(task_yaml("{path: data.jsonl}"))
    (folder / "data.jsonl").write_text(json.dumps({"prompt": many(3)[2]["prompt"]}) + "\n")
    metrics, _ = run(many(6), tasks=(folder,), overlap="drop")
    assert metrics["overlap"] == 1


def test_privacy_tightens_and_weights_are_refused(run):
    rows = many(3)
    _, out = run([{**rows[0], "privacy": "local_only"}, *rows[1:]], privacy="any")
    assert sorted(row["privacy"] for row in prepared(out)) == ["any", "any", "local_only"]
    with pytest.raises(DataError, match="can't be weighted"):
        run([{**rows[0], "weight": 2.0}])


def test_check_shows_both_sides_and_what_is_wrong(tmp_path):
    source = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "Where is my card?", "chosen": "On its way.", "rejected": "<think>hm</think> No idea. "},
        {"prompt": "a", "chosen": "same", "rejected": "same"},
        {"prompt": "b", "chosen": "x", "rejected": ""},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = check_source(DataConfig(path=str(source)), source=source, model=WEIGHTS, max_length=64)
    first = result.rows[0]
    for tokens, answer in ((first.tokens, "On its way.<turn|>"), (first.rejected, "<think>hm</think> No idea.<turn|>")):
        assert "".join(text for text, _ in tokens).startswith("<bos><|turn>user\nWhere is my card?<turn|>")
        assert "".join(text for text, loss in tokens if loss) == answer
    assert {"think_tags", "white_space"} <= {item.code for item in first.findings}
    assert any(item.what.endswith(": rejected") for item in first.findings)
    assert set(result.totals) >= {"identical_sides", "empty_answer"}
    page = check_page(result)
    assert "<h4>chosen</h4>" in page
    assert "<h4>rejected</h4>" in page
    assert result.to_json()["rows"][0]["rejected_with_loss"] == sum(loss for _, loss in first.rejected)


def test_earlier_answers_of_the_conversation_carry_no_loss(tmp_path):
    source = tmp_path / "pairs.jsonl"
    source.write_text(json.dumps({"chosen": [ASK, GOOD, ASK, GOOD], "rejected": [ASK, GOOD, ASK, BAD]}) + "\n")
    row = check_source(DataConfig(path=str(source)), source=source, model=WEIGHTS).rows[0]
    assert "".join(text for text, loss in row.tokens if loss) == "On its way.<turn|>"


def table(make, path, encoding, method):
    """Rows and the number cut, made anew each time."""
    folder = path.parent / "tables"
    shutil.rmtree(folder, ignore_errors=True)
    return make(path, folder, encoding, method)


def stored(tmp_path, *rows):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n, row in enumerate(rows)))
    return path


def test_tables_hold_the_tokens_of_inference(tmp_path):
    path = stored(tmp_path, {key: value for key, value in PAIR.items() if value})
    rows, cut = table(pairs, path, Encoding(TOKENIZER, 128), "dpo")
    row = rows[0]
    assert cut == 0
    assert row["length"] == 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
    assert row["prompt_ids"] == chat.chat_prompt_ids(TOKENIZER, [ASK])
    for side, answer in (("chosen", GOOD), ("rejected", BAD)):
        whole = chat.encode_chat(TOKENIZER, [ASK, answer])
        assert row["prompt_ids"] + row[f"{side}_ids"] == whole.ids[: len(row["prompt_ids"]) + len(row[f"{side}_ids"])]
        assert TOKENIZER.decode(row[f"{side}_ids"], skip_special_tokens=False) == answer["content"] + "<turn|>"
        assert all(row[f"{side}_loss"])
    sides, _ = table(judged_rows, path, Encoding(TOKENIZER, 128), "kto")
    assert sides["label"] == [True, False]
    assert sides[1]["completion_ids"] == row["rejected_ids"]


def test_a_large_size_reads_its_empty_thought_before_the_answer(tmp_path):
    path = stored(tmp_path, {key: value for key, value in PAIR.items() if value})
    row = table(pairs, path, Encoding(TOKENIZER, 128, Manner(empty_thought=True)), "dpo")[0][0]
    assert row["prompt_ids"] == chat.chat_prompt_ids(TOKENIZER, [ASK], empty_thought=True)
    assert TOKENIZER.decode(row["chosen_ids"], skip_special_tokens=False) == "On its way.<turn|>"


def test_tables_cut_and_count(tmp_path):
    path = stored(tmp_path, {key: value for key, value in PAIR.items() if value})
    prompt = len(chat.chat_prompt_ids(TOKENIZER, [ASK]))
    rows, cut = table(pairs, path, Encoding(TOKENIZER, prompt + 2), "dpo")
    assert (len(rows[0]["chosen_ids"]), cut) == (2, 1)
    rows, cut = table(pairs, path, Encoding(TOKENIZER, prompt), "dpo")
    assert (len(rows), cut) == (0, 1)


def test_prompts_ask_for_the_last_answer(tmp_path):
    path = stored(tmp_path, {"messages": [ASK, BAD, ASK, GOOD]})
    row = table(prompt_rows, path, Encoding(TOKENIZER, 128), "grpo")[0][0]
    assert row["prompt"] == chat.chat_prompt_ids(TOKENIZER, [ASK, BAD, ASK])
    assert (row["reference"], row["row"]) == ("On its way.", "0")
    assert len(table(prompt_rows, path, Encoding(TOKENIZER, 16), "grpo")[0]) == 0


def test_the_wrong_kind_of_rows_is_named(tmp_path):
    plain = stored(tmp_path, {"messages": [ASK, GOOD]})
    with pytest.raises(DataError, match=r"train\.jsonl:1 holds conversations, and train.method dpo learns from pairs"):
        table(pairs, plain, Encoding(TOKENIZER, 128), "dpo")
    with pytest.raises(DataError, match="learns from judged answers or pairs"):
        table(judged_rows, plain, Encoding(TOKENIZER, 128), "kto")
    paired = stored(tmp_path, {key: value for key, value in PAIR.items() if value})
    with pytest.raises(DataError, match=r"holds pairs of answers, and train\.method grpo learns from conversations"):
        table(prompt_rows, paired, Encoding(TOKENIZER, 128), "grpo")
    with pytest.raises(DataError, match="holds pairs of answers, and this training learns from conversations"):
        list(encode_rows(paired, TOKENIZER, Manner(), max_length=None))


def test_kinds_of_a_source_are_told_from_its_first_rows(tmp_path):
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*many(3), {"prompt": "a", "chosen": "b"}]))
    assert kinds(peek(source, DataConfig())) == {"pair": 3, "judged": 1}
    assert rows_of("kto") == ("judged", "pair")
    assert rows_of("sft") == rows_of("grpo") == ("conversation",)
