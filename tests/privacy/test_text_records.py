"""Private texts of a whole set in a file: the index that is written is the one that memory would hold."""

from __future__ import annotations

import random

import pytest

from gemma_ops.privacy import personal_data
from gemma_ops.privacy.canonical import canonical_text, letters
from gemma_ops.privacy.personal_data import find_personal
from gemma_ops.privacy.text_copies import PrivateTexts
from gemma_ops.privacy.text_records import TextRecords, row_records

_SAID = "the parcel that I sent on Monday has not arrived at my new address although the tracking says so"
WORDS = _SAID.split(" ")
TOKENS = [
    "ana@example.com", "4111 1111 1111 1111", "+49 30 1234567", "536-22-8726", "DE89 3704 0044 0532 0130 00", "1.2.3.4",
    "2001:db8::1", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a" * 36, "sk-" + "b" * 30, "-----BEGIN PRIVATE KEY-----",
    "hf_" + "c" * 34,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefgh", "86 095 742 719", "2 55 08 14 168 025 38", "order 48213", "\n",
    "1 85 05 2A 068 025 12", "(020) 7946 0018", "٣٤٥٦٧٨٩ 12", "the right path", "```py", "1. ", "> 2) ", "<b>", "&amp;",
]  # fmt: skip


def some_text(draw):
    return draw.choice(
        [" ".join(draw.choices(WORDS, k=draw.randrange(1, 30))), "Yes.", "The very same answer to all who ask us."]
    )


def some_row(draw):
    turns = [{"role": "user", "content": some_text(draw)}, {"role": "assistant", "content": some_text(draw)}]
    return {"messages": turns * draw.randrange(1, 3), "privacy": draw.choice(["local_only", "paid", "any"])}


@pytest.mark.parametrize("count", [0, 1, 400])
def test_the_file_is_the_one_that_memory_would_write(count, tmp_path):
    draw = random.Random(count)
    rows = [some_row(draw) for _ in range(count)]
    names = [f"rows.jsonl:{number}" for number in range(count)]
    memory, records = PrivateTexts(), TextRecords(tmp_path / "records")
    for row, name in zip(rows, names, strict=True):
        memory.add_row(row, name)
    for first in range(0, count, 150):
        records.add(row_records([(first + at, row) for at, row in enumerate(rows[first : first + 150])]))
    memory.save(tmp_path / "memory")
    records.save(tmp_path / "file", names)
    assert (tmp_path / "file").read_bytes() == (tmp_path / "memory").read_bytes()
    index = records.index(names)
    for row in rows[:50]:
        text = f"Look: {row['messages'][0]['content']} Well?"
        assert index.strictest(text, "any") == memory.strictest(text, "any")


def test_what_is_seen_before_a_pattern_is_tried_hides_nothing(monkeypatch):
    draw = random.Random(1)
    texts = ["".join(draw.choice(TOKENS) + draw.choice(["", " ", ", "]) for _ in range(draw.randrange(6)))
             for _ in range(3000)]  # fmt: skip
    found = [find_personal(text) for text in texts]
    assert {item.kind for items in found for item in items} == set(personal_data.KINDS)
    always = tuple((kind, pattern, check, ("",)) for kind, pattern, check, _ in personal_data._NEEDED)
    monkeypatch.setattr(personal_data, "_NEEDED", always)
    monkeypatch.setattr(personal_data, "_MARKS_OF_IP", personal_data.re.compile(""))
    assert found == [find_personal(text) for text in texts]


def test_plain_letters_are_canonical_in_the_same_way():
    """A letter that isn't ASCII sends a text the long way."""
    draw = random.Random(2)
    for _ in range(2000):
        text = "".join(draw.choice([*TOKENS, chr(draw.randrange(128))]) for _ in range(4))
        if text.isascii():
            assert canonical_text(text) + "é" == canonical_text(f"{text}\né")
            assert letters(canonical_text(text)) == len(canonical_text(text))
