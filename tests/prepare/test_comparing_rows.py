"""Comparing rows: hashed words, near duplicates, overlap with evaluation tasks, the split."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from gemma_ops.config import shipped
from gemma_ops.data.boilerplate import Boilerplate
from gemma_ops.data.hashed_words import (
    SKETCH,
    Texts,
    distinctive,
    hash_words,
    hashes,
    jaccard,
    ngrams,
    normal,
    shingles,
    sketch,
)
from gemma_ops.data.near_duplicates import PERMUTATIONS, Near, asked_sets, bands, signatures
from gemma_ops.errors import OpsError
from gemma_ops.nano import tickets
from gemma_ops.prepare.deduplicate import NearDuplicates, exact_key, prompt_key
from gemma_ops.prepare.split import Split, split_position
from gemma_ops.prepare.task_overlap import Overlap
from gemma_ops.tasks.compared_questions import ComparedQuestion, TaskQuestions, read_task
from tests.helpers.task_files import task_yaml

DATA = Path(os.environ.get("GEMMA_OPS_DATA", Path(__file__).parents[2] / "../shared/data"))
VOCABULARY = [f"w{number}" for number in range(5000)]
INSTRUCTION = "Classify this banking question: "
LONG = (
    "You are the assistant of a bank. Answer with exactly one of the categories that are listed below and "
    "nothing else, please. Question: "
)


def text(draw, count):
    return " ".join(draw.choices(VOCABULARY, k=count))


def row(user, answer="yes", source="t.jsonl:1"):
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}], "source": source}


def task(*texts, name="task"):
    return TaskQuestions(
        name, tuple(ComparedQuestion(f"data.jsonl:{number}", (item,)) for number, item in enumerate(texts, 1))
    )


def test_words_are_normalised():
    assert hash_words("Where's MY “card”?\n№5 ﬁne") == ["where", "s", "my", "card", "no5", "fine"]
    assert hash_words("卡在哪里 ok") == ["卡", "在", "哪", "里", "ok"]
    assert normal(" A\u00a0 b\n") == "a b"


def test_hashes_are_the_same_in_another_process():
    code = (
        "from gemma_ops.data.hashed_words import hashes, ngrams; print(ngrams(hashes('a b c d e f g h i'), 8).tolist())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert other.stdout.strip() == str(ngrams(hashes("a b c d e f g h i"), 8).tolist())


def test_ngrams_are_the_runs_in_order():
    found = ngrams(hashes("a b c a b c"), 3)
    assert len(found) == 4
    assert found[0] == found[3]
    assert len(set(found.tolist())) == 3
    assert len(ngrams(hashes("a b"), 3)) == 0
    assert len(shingles(hashes("a b"))) == 1
    assert len(shingles(hashes("?!"))) == 0


def test_jaccard_is_exact_for_short_texts_and_close_for_long_ones():
    small = [shingles(hashes(item)) for item in ("a b c d e f", "a b c d e x")]
    assert jaccard(*small) == 1 / 3
    draw = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8, 0.95):
        pool = np.unique(draw.integers(0, 2**63, 4000, dtype=np.uint64))
        draw.shuffle(pool)
        common = int(len(pool) * share)
        first, second = (
            np.sort(pool[: common + (len(pool) - common) // 2]),
            np.sort(np.concatenate([pool[:common], pool[common + (len(pool) - common) // 2 :]])),
        )
        assert abs(jaccard(sketch(first), sketch(second)) - share) < 0.09  # three standard errors of SKETCH elements
    assert len(sketch(first)) == SKETCH


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold):
    count, rows = bands(threshold)
    assert count * rows <= 128
    assert 1 - (1 - threshold**rows) ** count >= 0.95


def test_signatures_are_datasketchs():
    draw = random.Random(8)
    texts = [" ".join(draw.choices(VOCABULARY, k=draw.choice([0, 1, 3, 5, 40, 700]))) for _ in range(60)]
    sets = [shingles(hashes(item)) for item in texts]
    places = np.concatenate([[0], np.cumsum([len(items) for items in sets])])
    found = signatures(np.concatenate(sets), places)
    for items, mine in zip(sets, found, strict=True):
        theirs = MinHash(num_perm=PERMUTATIONS, hashfunc=lambda value: value & 0xFFFFFFFF)
        theirs.update_batch(items.tolist())
        assert (theirs.hashvalues == mine).all()


def test_boilerplate_is_found_in_many_texts_as_in_each():
    """Texts that lie one behind the other never share a run, a beginning or an end."""
    draw, marked = random.Random(9), 0
    for _ in range(40):
        head, tail = draw.choices(VOCABULARY, k=draw.randrange(14)), draw.choices(VOCABULARY, k=draw.randrange(10))
        texts = [
            " ".join([*head * draw.randrange(2), *draw.choices(VOCABULARY, k=draw.randrange(14)), *tail])
            for _ in range(draw.randrange(1, 40))
        ]
        each = [hashes(item) for item in texts]
        boilerplate, together = Boilerplate(each), Texts.of(texts)
        marks = boilerplate.marks_of(together)
        left = boilerplate.residues(together, marks)
        marked += int(marks.sum())
        for number, words in enumerate(each):
            assert (together.text(number) == words).all()
            own = marks[together.places[number] : together.places[number + 1]]
            assert (own == boilerplate.marks(words)).all()
            assert (left.text(number) == boilerplate.residue(words)).all()
        values, ends = asked_sets(left, np.arange(len(texts) + 1))
        for number in range(len(texts)):
            assert (values[ends[number] : ends[number + 1]] == shingles(left.text(number))).all()
    assert marked > 1000


def test_near_finds_edited_texts_and_nothing_else():
    draw = random.Random(3)
    index, texts = Near(0.8), [draw.choices(VOCABULARY, k=120) for _ in range(300)]
    for number, item in enumerate(texts):
        index.add(number, shingles(hashes(" ".join(item))))
    for number, item in enumerate(texts[:100]):
        edited = list(item)
        edited[60] = "changed"  # 5 of 116 shingles: similarity 111/121
        assert [key for _, key in index.find(shingles(hashes(" ".join(edited))))] == [number]
        edited[20] = edited[40] = edited[80] = "changed"  # 20 of 116: 96/136, below the threshold
        assert index.find(shingles(hashes(" ".join(edited)))) == []


def test_exact_duplicates_are_the_same_to_training():
    assert exact_key(row(" Where is my card?\n")) == exact_key(row("Where is my card?"))
    for other in ("Where is MY card?", "Where is  my card?", "Where is my ｃard?"):
        assert exact_key(row("Where is my card?")) != exact_key(row(other))
    assert exact_key(row("a")) != exact_key(row("b"))
    assert exact_key(row("a", "x")) != exact_key(row("a", "y"))
    assert exact_key({**row("a"), "tools": [{"x": 1}]}) != exact_key(row("a"))
    assert prompt_key(row("a", "x")) == prompt_key(row("a", "y")) != prompt_key(row("A", "y"))


LONG_CODE = (
    "def total(orders):\n    found = 0\n    for order in orders:\n        if order.sum {} 100:\n            found += "
    "1\n    return found\n"
    + "# kept for the audit of the year, see the notes of the team for why it is written in this way\n"
    * 4
)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (LONG_CODE.format("<"), LONG_CODE.format(">")),
        (LONG_CODE.format(">="), LONG_CODE.format(">")),
        (LONG_CODE.format("<"), LONG_CODE.format("<").replace("            found", "        found")),
        (LONG_CODE.format("<") + "x² + y", LONG_CODE.format("<") + "x2 + y"),
        (LONG_CODE.format("<") + "the US office", LONG_CODE.format("<") + "the us office"),
        (LONG_CODE.format("<") + "userName", LONG_CODE.format("<") + "username"),
        (LONG_CODE.format("<") + "at 3.5", LONG_CODE.format("<") + "at 35"),
        (LONG_CODE.format("<") + "a ≤ b", LONG_CODE.format("<") + "a ≥ b"),
        (LONG_CODE.format("<") + "!ready", LONG_CODE.format("<") + "ready != 1"),
    ],
)
def test_what_changes_the_meaning_of_the_same_words_makes_another_row(one, two):
    near = NearDuplicates(0.8, Boilerplate([]))
    assert near.find_or_add({**row(one), "source": "a"}) is None
    assert near.find_or_add({**row(two), "source": "b"}) is None
    assert near.find_or_add({**row("ask", one), "source": "c"}) is None
    assert near.find_or_add({**row("ask", two), "source": "d"}) is None


def test_sentence_marks_and_capitals_make_no_other_row():
    assert distinctive("Where is my card? I ask again.") == distinctive("where is my card. I ask again")


def test_near_duplicates_need_near_questions_and_near_answers():
    draw = random.Random(4)
    question, answer = text(draw, 80), text(draw, 60)
    find = NearDuplicates(0.8, Boilerplate([])).find_or_add
    assert find(row(question, answer, "a:1")) is None
    assert find(row(question + " more", answer + " more", "a:2")) == ("a:1", pytest.approx(76 / 77))
    assert find(row(question + " more", text(draw, 60), "a:3")) is None  # another answer
    assert find(row(text(draw, 80), answer, "a:4")) is None  # a canned answer to another question
    assert find(row(f"order A1 {question}", '{"order": "A1"}', "a:5")) is None
    assert find(row(f"order A2 {question}", '{"order": "A2"}', "a:6")) is None


@pytest.mark.parametrize(
    "instruction", ["", INSTRUCTION, LONG + " ".join(f"label_{number}," for number in range(77)) + " "]
)
def test_a_shared_instruction_makes_no_near_duplicates(instruction):
    draw = random.Random(5)
    rows = [row(instruction + text(draw, 12), draw.choice(["refund", "card"]), f"a:{number}") for number in range(200)]
    rows.append(row(rows[3]["messages"][0]["content"] + " thanks", rows[3]["messages"][1]["content"], "a:200"))
    find = NearDuplicates(0.8, Boilerplate([hashes(item["messages"][0]["content"]) for item in rows])).find_or_add
    assert [item["source"] for item in rows if find(item)] == ["a:200"]


@pytest.mark.parametrize("ours", ["", "Classify: ", INSTRUCTION, LONG])
@pytest.mark.parametrize("theirs", ["", "Classify: ", INSTRUCTION, LONG])
def test_an_instruction_neither_alarms_nor_hides(ours, theirs):
    """Whatever instruction stands in front on either side: other questions don't match, the same ones do."""
    draw = random.Random(6)
    starts = ["How do I", "I", "Why is my", "Can I", "What is the", "My card"]
    questions = [f"{draw.choice(starts)} {text(draw, draw.choice([3, 4, 9, 30]))}" for _ in range(400)]
    asked = [f"{draw.choice(starts)} {text(draw, draw.choice([3, 4, 9, 30]))}" for _ in range(100)]
    train = [ours + item for item in questions]
    overlap = Overlap([task(*[theirs + item for item in asked])], [hashes(item) for item in train])
    assert [item for item in train if overlap.find([item])] == []
    for number, item in enumerate(asked, 1):
        match = overlap.find([ours + item.upper() + "?!"])
        assert match is not None
        assert match.place == f"data.jsonl:{number}"


@pytest.mark.parametrize("instruction", ["", INSTRUCTION, LONG])
def test_edited_questions_are_found(instruction):
    draw = random.Random(7)
    train = [hashes(instruction + text(draw, 30)) for _ in range(200)]
    asked = [text(draw, 40) for _ in range(50)]
    overlap = Overlap([task(*[instruction + item for item in asked])], train)
    for item in asked:
        edited = item.split()
        for index in range(6, 40, 10):
            edited[index] = "changed"
        assert overlap.find([instruction + " ".join(edited)]) is not None
        assert overlap.find([f"{instruction}{text(draw, 50)} {item} {text(draw, 30)}"]) is not None
        half = instruction + " ".join(item.split()[:20]) + " " + text(draw, 20)
        assert overlap.find([half]) is None


def test_a_passage_that_many_rows_share_hides_no_question():
    """Reading comprehension: one passage, many questions. The passage alone is no overlap, the question is."""
    draw = random.Random(8)
    passage = text(draw, 80)
    train = [hashes(f"{passage} {text(draw, 10)}") for _ in range(40)]
    asked = [text(draw, 10) for _ in range(10)]
    overlap = Overlap([task(*[f"{passage} {item}" for item in asked])], train)
    assert overlap.find([f"{passage} {text(draw, 10)}"]) is None
    assert overlap.find([f"{passage} {asked[4]}"]).how == "the same question"
    assert overlap.find([f"Read: {passage} Now {asked[4]}"]) is not None


def test_a_question_with_its_sentences_in_another_order_is_found():
    draw = random.Random(11)
    first, second = text(draw, 40), text(draw, 40)
    overlap = Overlap([task(f"{first} {second}")], [])
    assert overlap.find([f"{second} {first}"]).how.endswith("similar")
    assert overlap.find([f"{second} {text(draw, 40)}"]) is None


def test_words_scattered_over_a_long_text_are_no_question():
    draw = random.Random(10)
    asked = text(draw, 30).split()
    overlap = Overlap([task(" ".join(asked))], [])
    scattered = " ".join(f"{text(draw, 9)} {word}" for word in asked[10:])
    assert overlap.find([f"{' '.join(asked[:10])} {scattered}"]) is None
    assert overlap.find([f"{scattered} {' '.join(asked[:28])} {scattered}"]) is not None


def test_short_questions_match_only_when_equal():
    overlap = Overlap([task("How do I unblock my PIN?", "Hello")], [])
    assert overlap.find(["how do i unblock my pin"]) is not None
    assert overlap.find(["How do I unblock my PIN at home?"]) is None
    assert overlap.find(["How do I unblock my card"]) is None
    assert overlap.find([""]) is None


def test_turns_of_a_conversation_are_compared_one_by_one():
    draw = random.Random(9)
    asked = text(draw, 12)
    overlap = Overlap([task(asked), TaskQuestions("long", (ComparedQuestion("d:1", ("Hi", text(draw, 20))),))], [])
    assert overlap.find(["Hi", asked, "thanks"]).task == "task"
    assert overlap.find(["Hi", "something else"]) is None


def test_tiny_training_sets_are_compared_too():
    asked = ["where is the card that was sent to me last week", "what does it cost to change the account"]
    overlap = Overlap([task(*asked)], [hashes(asked[0])])
    assert overlap.find([asked[0]]) is not None


def test_messages_made_of_the_same_phrases_are_not_each_other():
    """Support tickets share whole sentences; a customer, product and order of their own make them other tickets."""
    train = [item["messages"][0]["content"] for item in tickets.training_rows(800, 1)]
    asked = [item["prompt"] for item in tickets.test_rows(200, 1)]
    overlap = Overlap([task(*asked)], [hashes(item) for item in train])
    assert [item for item in train if overlap.find([item])] == []
    assert all(overlap.find([item.replace("please", "")]) for item in asked)


def test_real_questions_of_a_bank():
    """Banking77 itself: test questions that stand in the training file are found, and no crowd of others."""
    folder = DATA / "banking77"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    train, test = (
        [line["text"] for line in csv.DictReader((folder / name).open(encoding="utf-8"))]
        for name in ("train.csv", "test.csv")
    )
    train, test = train[::4], test[::2]
    same = {tuple(hash_words(item)) for item in train} & {tuple(hash_words(item)) for item in test}
    found = {}
    for ours, theirs in (("", ""), (INSTRUCTION, INSTRUCTION), ("Intent of this bank customer's message: ", "")):
        overlap = Overlap([task(*[theirs + item for item in test])], [hashes(ours + item) for item in train])
        found[ours] = [item for item in train if overlap.find([ours + item])]
    plain = found[""]
    assert same <= {tuple(hash_words(item)) for item in plain}
    assert same
    assert len(plain) < 0.03 * len(train)
    assert all(rows == plain for rows in found.values())  # an instruction changes nothing


def test_questions_with_images_can_be_compared_with_where_nothing_opens_images(monkeypatch):
    folder = shipped.find_shipped("eval", "drawn_forms")
    seen = read_task(folder, None)
    assert not seen.missing
    assert len({question.media for question in seen.questions}) == len(seen.questions)
    monkeypatch.setitem(sys.modules, "PIL", None)
    unseen = read_task(folder, None)
    assert "not installed" in unseen.missing
    assert [one.texts for one in unseen.questions] == [one.texts for one in seen.questions], "private texts are known"
    found = Overlap([unseen], [])
    assert found.find(list(unseen.questions[0].texts)) is None, "every row of such a task asks the same"


def test_tasks_are_read_from_their_folders(tmp_path):
    folder = tmp_path / "tasks" / "a"
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text(
        '{"prompt": "one", "reference": "x"}\n{"messages": [{"role": "system", "content": "S"}, {"role": "user", '
        '"content": "two"}]}\n'
    )
    (folder / "task.yaml").write_text(task_yaml("{path: data.jsonl}", "first"))
    read = read_task(folder, None)
    assert read.name == "first"
    assert [question.texts for question in read.questions] == [("one",), ("two",)]
    (folder / "task.yaml").write_text(
        task_yaml('{from_source: test.csv, prompt: "Q: {text}", reference: "{label}"}', "first")
    )
    assert "lie in a local data folder" in read_task(folder, None).missing
    source = tmp_path / "data"
    source.mkdir()
    assert "not in the data folder" in read_task(folder, source).missing
    (source / "test.csv").write_text("text,label\nhello,x\n")
    assert read_task(folder, source).questions == (ComparedQuestion("test.csv:2", ("Q: hello",)),)
    (source / "train.csv").write_text("text,label\nhi,x\n")
    assert read_task(folder, source / "train.csv").questions[0].texts == ("Q: hello",)


@pytest.mark.parametrize(
    "yaml, data, problem",
    [
        ("name: a\n", None, "data: is missing"),
        ("data: [", None, "not valid YAML"),
        (task_yaml("{path: data.jsonl}"), None, "does not exist"),
        (task_yaml("{path: data.jsonl}"), "{}\n", r"data\.jsonl:1 .* neither prompt nor messages"),
        (task_yaml("{path: data.jsonl}"), "{\n", r"data\.jsonl:1 .* not JSON"),
    ],
)
def test_a_task_that_cannot_be_read_is_no_clean_task(tmp_path, yaml, data, problem):
    (tmp_path / "task.yaml").write_text(yaml)
    if data is not None:
        (tmp_path / "data.jsonl").write_text(data)
    with pytest.raises(OpsError, match=problem):
        read_task(tmp_path, None)


def sides(groups, share):
    split = Split(share)
    for group in groups:
        split.add(group)
    return {group: split.is_valid(group) for group in groups}


def test_the_split_is_stable_when_rows_are_appended():
    groups = [f"g{number}" for number in range(2000)]
    before, after = sides(groups[:1500], 0.05), sides(groups, 0.05)
    assert all(after[group] == side for group, side in before.items())
    assert 0.03 < sum(after.values()) / 2000 < 0.07
    assert sides(list(reversed(groups)), 0.05) == after
    wider = sides(groups, 0.2)
    assert all(wider[group] for group, side in after.items() if side)  # a larger share only adds


def test_somebody_validates_from_twenty_rows_on():
    high = [name for name in (f"h{number}" for number in range(200)) if split_position(name) > 0.1]
    assert sum(sides(high[:19], 0.05).values()) == 0
    chosen = [name for name, valid in sides(high[:20], 0.05).items() if valid]
    assert chosen == [min(high[:20], key=split_position)]
    assert sum(sides(high[:20], 0.0).values()) == 0
    assert sum(sides(["one"] * 30, 0.05).values()) == 0
    # Appending more keeps it, unless a lower one comes.
    assert sides(high[:20] + [name for name in high[20:] if split_position(name) > split_position(chosen[0])], 0.05)[
        chosen[0]
    ]
