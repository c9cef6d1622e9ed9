"""Drawn forms: a picture shows what its JSON says, the questions are none of the rows, and what is shipped is what the
generator draws."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemma_ops.nano import forms

TASK = Path(__file__).parents[2] / "eval" / "drawn_forms"
LAST = {"boxes": ("left", "right"), "bar": ("level",), "seal": ("colour", "shape"), "number": ("number",)}
OTHER = {"left": True, "right": True, "level": 5, "colour": "blue", "shape": "diamond", "number": "808"}


def pixels(data):
    """Red, green and blue of a picture, (rows, columns, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def places(data):
    """The palette's number at every place of a picture, (rows, columns)."""
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("block", forms.BLOCKS)
def test_every_field_is_seen_in_its_block_and_nowhere_else(block):
    order = (*(name for name in forms.BLOCKS if name != block), block)
    plain = forms.DrawnForm(False, False, 2, "red", "circle", "123", order)
    for field in LAST[block]:
        both = (plain, replace(plain, **{field: OTHER[field]}))
        one, other = (forms.draw_form(item, random.Random(4)) for item in both)
        # Tones are drawn after ticks, which take numbers of the generator: all but a seal's colour is told by places.
        changed = (pixels(one) != pixels(other)).any(axis=2) if field == "colour" else places(one) != places(other)
        assert changed.sum() > 20, field
        assert not changed[:, : forms.WIDTH // 2].any()
        assert not changed[: forms.HEIGHT // 2].any()


def test_a_bar_a_seal_and_a_tick_say_what_the_json_says():
    rng = random.Random(7)
    for _ in range(60):
        item = replace(forms.make_form(rng), arrangement=forms.BLOCKS)
        image = Image.open(io.BytesIO(forms.draw_form(item, rng)))
        drawn, tones = np.asarray(image), np.reshape(image.getpalette()[:12], (4, 3))
        bar, seal = drawn[2:46, 66:126], tones[forms._SEAL]
        middle = bar[np.nonzero(bar == forms._INK)[0].min() + 5]
        runs = "".join("#" if tone == forms._FILL else " " for tone in middle).split()
        assert len(runs) == item.level
        wanted = np.array(forms.COLOURS[item.colour])
        assert np.abs(seal / seal.max() - wanted / wanted.max()).max() < 0.1
        boxes = drawn[2:46, 2:62] == forms._INK
        half = (np.nonzero(boxes.any(0))[0].min() + np.nonzero(boxes.any(0))[0].max()) // 2
        frame = 8 * ((np.nonzero(boxes.any(1))[0].max() - np.nonzero(boxes.any(1))[0].min() + 1) - 2)
        assert [boxes[:, :half].sum() > frame, boxes[:, half:].sum() > frame] == [item.left, item.right]


def test_numbers_and_arrangements_of_questions_are_in_no_row():
    rng = random.Random(1)
    rows = [forms.make_form(rng) for _ in range(400)]
    questions = [forms.make_form(rng, question=True) for _ in range(400)]
    for field, least in (("number", 100), ("arrangement", 6)):
        asked = {getattr(item, field) for item in questions}
        assert len(asked) >= least
        assert not asked & {getattr(item, field) for item in rows}
    assert {item.level for item in rows} == set(range(forms.PARTS + 1))


def test_the_shipped_questions_are_those_of_the_generator(tmp_path):
    forms.main([str(tmp_path), "--questions"])
    assert (tmp_path / "data.jsonl").read_text() == (TASK / "data.jsonl").read_text()
    shipped = sorted((TASK / "forms").iterdir())
    assert [file.name for file in shipped] == [file.name for file in sorted((tmp_path / "forms").iterdir())]
    for file in shipped:
        assert np.array_equal(pixels(file.read_bytes()), pixels((tmp_path / "forms" / file.name).read_bytes()))
        assert file.stat().st_size < 1000


def test_rows_are_the_same_from_the_same_seed_and_show_other_pictures(tmp_path):
    files = [forms.write_rows(tmp_path / name, 40, seed) for name, seed in (("a", 1), ("c", 2))]
    forms.main([str(tmp_path / "b"), "40"])
    files.insert(1, tmp_path / "b" / "rows.jsonl")
    assert files[0].read_bytes() == files[1].read_bytes()
    pictures = [{file.read_bytes() for file in (one.parent / "forms").iterdir()} for one in files]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 40
    assert not pictures[0] & pictures[2]
    row = json.loads(files[0].read_text().splitlines()[0])
    question = json.loads((TASK / "data.jsonl").read_text().splitlines()[0])
    assert row["messages"][0]["content"][1]["text"] == question["prompt"]
    assert json.loads(row["messages"][1]["content"]).keys() == json.loads(question["reference"]).keys()
