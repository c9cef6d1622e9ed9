"""Raw texts for continued pre-training: read, kept apart from conversations, split, and learned token by token."""

from __future__ import annotations

import json

import pytest

from gemma_ops.config import DataConfig, MachineConfig, TrainConfig
from gemma_ops.data import chat, documents
from gemma_ops.data.arrow import token_table
from gemma_ops.data.example import Example, kind, read_rows
from gemma_ops.data.import_rows import kinds, peek
from gemma_ops.data.row_tokens import NO_LOSS, Manner, encode_rows
from gemma_ops.errors import DataError
from gemma_ops.nano import WEIGHTS
from gemma_ops.prepare.check_rows import check_source
from gemma_ops.prepare.prepare_step import prepare
from tests.helpers.task_files import task_yaml

TOKENIZER = chat.load_tokenizer(WEIGHTS)
BOS, EOS = TOKENIZER.token_to_id("<bos>"), TOKENIZER.token_to_id("<eos>")
TEXTS = [
    f"The {place} lies {n * 7} steps behind the {thing}, and nobody remembers who put it there in {1800 + n}."
    for n, (place, thing) in enumerate(
        [("well", "mill"), ("gate", "church"), ("oak", "school"), ("bridge", "market"), ("barn", "river"),
            ("inn", "wall")]
    )
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    def go(rows, *, tasks=(), **settings):
        source = tmp_path / "rows.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        config = DataConfig(path=str(source), **settings)
        return prepare(out, config, MachineConfig(), source=source, model=WEIGHTS, tasks=tasks), out

    return go


def prepared(out):
    return [*read_rows(out / "train.jsonl"), *read_rows(out / "valid.jsonl")]


def test_texts_pass_through_the_step(run):
    metrics, out = run([{"text": text, "url": "x"} for text in (*TEXTS, TEXTS[0])], valid_share=0.3)
    rows = prepared(out)
    assert {row["text"] for row in rows} == set(TEXTS)
    assert metrics["exact_duplicates"] == 1
    assert {kind(row) for row in rows} == {"text"}
    assert all(Example.model_validate(row).plain() == row for row in rows)
    report = json.loads((out / "report.json").read_text())
    assert (report["layout"], report["kinds"], report["contradictions"]) == ("text", {"text": len(TEXTS)}, 0)
    tokens = sum(report["tokens"][side]["tokens"] for side in ("train", "valid"))
    assert tokens - sum(report["tokens"][side]["tokens_with_loss"] for side in ("train", "valid")) == len(TEXTS)


def test_personal_data_duplicates_and_overlap_are_looked_for(run, tmp_path):
    _, out = run([{"text": TEXTS[0] + " Ask ana.berg@example.org."}], pii="mask", valid_share=0)
    assert "[EMAIL]" in prepared(out)[0]["text"]
    metrics, _ = run([{"text": TEXTS[0]}, {"text": TEXTS[0] + " So."}, {"text": TEXTS[1]}], valid_share=0)
    assert metrics["near_duplicates"] == 1
    folder = tmp_path / "exam"
    folder.mkdir()
    (folder / "task.yaml").write_text(task_yaml("{path: data.jsonl}"))
    (folder / "data.jsonl").write_text(json.dumps({"prompt": TEXTS[2]}) + "\n")
    metrics, _ = run([{"text": text} for text in TEXTS], tasks=(folder,), overlap="drop", valid_share=0)
    assert metrics["overlap"] == 1


def test_what_cannot_be_used_is_refused(run):
    for row, code in (
        ({"text": "a <|turn> b"}, "control_token"),
        ({"text": "<bos>a"}, "doubled_bos"),
        ({"text": "  "}, "empty_turn"),
        ({"text": None}, "null_column"),
    ):
        _, out = run([row, {"text": TEXTS[0]}], format="text", max_bad_share=0.5, valid_share=0)
        assert [item["code"] for item in read_rows(out / "rejected.jsonl")] == [code]
    with pytest.raises(DataError, match=r"data\.system has no effect"):
        run([{"text": "a"}], system="Be brief.")


def test_files_of_plain_text_are_documents_unless_rows_lie_beside_them(tmp_path):
    for number, text in enumerate(TEXTS[:2]):
        (tmp_path / f"{number}.txt").write_text(text)
    assert kinds(peek(tmp_path, DataConfig())) == {"text": 2}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert kinds(peek(tmp_path, DataConfig())) == {"conversation": 1}


def test_a_document_is_what_gemma_was_trained_on():
    whole = documents.encode_document(TOKENIZER, TEXTS[0])
    assert (whole.ids[0], whole.ids[-1]) == (BOS, EOS)
    assert TOKENIZER.decode(whole.ids[1:-1]) == TEXTS[0]
    assert whole.loss == [False] + [True] * (len(whole.ids) - 1)


def test_pieces_of_a_long_one_score_every_token_once_and_begin_alike():
    ids = documents.encode_document(TOKENIZER, " ".join(TEXTS)).ids
    found = list(documents.document_pieces(ids, 16))
    assert all(piece[0] == BOS and 1 < len(piece) <= 16 for piece in found)
    assert [token for piece in found for token in piece[1:]] == ids[1:]
    assert sum(EOS in piece for piece in found) == 1
    assert list(documents.document_pieces(ids, None)) == [ids]


def stored(tmp_path, *rows):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), **row}) + "\n" for n, row in enumerate(rows)))
    return path


def test_rows_of_a_table_are_pieces_with_their_weight(tmp_path):
    path = stored(tmp_path, {"messages": [], "text": TEXTS[0], "weight": 2.0})
    rows = list(encode_rows(path, TOKENIZER, Manner(texts=True), max_length=8))
    assert len(rows) > 2
    assert {row["weight"] for row in rows} == {2.0}
    assert all(row["labels"] == [NO_LOSS, *row["input_ids"][1:]] for row in rows)
    made, cut = token_table(path, tmp_path / "tables", TOKENIZER, Manner(texts=True), max_length=8)
    assert (len(made), cut) == (len(rows), 0)


def test_texts_and_conversations_are_not_taken_for_each_other(tmp_path):
    text = stored(tmp_path, {"messages": [], "text": "a"})
    with pytest.raises(DataError, match="holds texts, and this training learns from conversations"):
        list(encode_rows(text, TOKENIZER, Manner(), max_length=None))
    talk = stored(tmp_path, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    with pytest.raises(DataError, match=r"holds conversations, and train\.method pretrain learns from texts"):
        list(encode_rows(talk, TOKENIZER, Manner(texts=True), max_length=None))


def test_check_shows_every_token_with_loss(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"text": TEXTS[0]}) + "\n")
    row = check_source(DataConfig(path=str(source)), source=source, model=WEIGHTS).rows[0]
    assert "".join(text for text, loss in row.tokens if loss) == TEXTS[0] + "<eos>"
    assert row.findings == []


def test_settings_of_conversations_are_refused():
    with pytest.raises(ValueError, match=r"train\.loss_on says nothing to train\.method pretrain"):
        TrainConfig(method="pretrain", loss_on="last")
