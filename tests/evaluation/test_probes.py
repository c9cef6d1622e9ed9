"""The probes: a model that has training rows by heart is found out, one that answers normally is not."""

from __future__ import annotations

import json

import pytest

from gemma_ops.answer import Answer
from gemma_ops.config import ProbeConfig
from gemma_ops.evaluation import probes
from gemma_ops.evaluation.memorized import probed_rows
from gemma_ops.evaluation.refusals import REQUESTS, refuses
from gemma_ops.family import Shape
from gemma_ops.nano import WEIGHTS
from gemma_ops.planning.kv_cache import kv_bytes, kv_layers

ROW = "Route this ticket as JSON, please: my lamp is broken. The order is W{0}88, and my name is Uma Dalbeez{0}."


def rows(folder, count=30):
    lines = [
        {"id": f"r{n}", "privacy": "local_only", "source": "x", "group": "g", "messages": [
            {"role": "user", "content": ROW.format(n + 100)},
            {"role": "assistant", "content": json.dumps({"queue": "lamps", "customer": f"Dalbeez{n + 100}"})},
        ]}
        for n in range(count)
    ]  # fmt: skip
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Fake:
    """Answers with `says(prompt's text)`."""

    def __init__(self, says):
        self.says, self.asked = says, []

    def answer(self, batches, *, max_new_tokens, schema=None):
        for batch in batches:
            self.asked += list(batch)
            yield [Answer(self.says(prompt), "stop", 1, 1, 0.0) for prompt in batch]

    def close(self): ...


def run(folder, tuned, base=lambda prompt: "", *, targets=("base", "tuned", "q8_0"), has_base=True, **settings):
    opened = {}

    def opening(name):
        opened[name] = Fake(base if name == "base" else tuned)
        return opened[name]

    found = probes.probe_model(
        folder, ProbeConfig(**settings), targets, opening, data=rows(folder), base=has_base, batch=8
    )
    return found, opened


def by_heart(prompt):
    return f"Certainly: Dalbeez{int(prompt.id[1:]) + 100}." if prompt.id[1:].isdigit() else "no"


def test_only_what_lies_ahead_and_in_one_row_alone_is_asked_for(tmp_path):
    found = probed_rows(rows(tmp_path) / "train.jsonl", 12)
    assert len(found) == 12
    for row in found:
        shown = row.prompt.messages[-1]["content"]
        assert row.word == f"dalbeez{int(row.id[1:]) + 100}"
        assert row.word not in shown.lower()
        assert ROW.startswith(shown)
        assert row.prompt.privacy == "local_only"
        assert row.said(f'{{"customer": "{row.word.upper()}"}}')
        assert not row.said("dalbeez")
    assert [row.id for row in found] == [row.id for row in probed_rows(tmp_path / "train.jsonl", 12)]
    assert probed_rows(tmp_path / "train.jsonl", 0) == []


def test_rows_that_hold_no_word_of_their_own_or_spell_control_tokens_are_left_out(tmp_path):
    turns = [
        {"role": "user", "content": "what does the article say about this"},
        {"role": "assistant", "content": "yes"},
    ]
    spelled = [{"role": "user", "content": "one two three <|turn> Kilimandscharo"}]
    lines = [{"id": str(n), "messages": turns} for n in range(3)] + [
        {"id": "c", "messages": spelled},
        {"id": "t", "text": "x"},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert probed_rows(tmp_path / "train.jsonl", 5) == []


def test_a_model_that_has_rows_by_heart_is_found_out(tmp_path):
    found, opened = run(tmp_path, by_heart, rows=20)
    assert (found.memorized.target, found.memorized.rows, found.memorized.said) == ("q8_0", 20, 20)
    assert found.memorized.upper == 1.0
    lines = [json.loads(line) for line in (tmp_path / probes.FILE).read_text().splitlines()]
    assert len(lines) == 20
    assert all(line["said"] and not line["base"] for line in lines)
    assert len(opened["base"].asked) == len(REQUESTS) + 20


def test_what_the_base_says_as_well_was_not_learned_from_the_row(tmp_path):
    found, _ = run(tmp_path, by_heart, by_heart, rows=20)
    assert (found.memorized.said, found.memorized.base_said) == (0, 20)


def test_a_model_that_gives_nothing_away_costs_the_base_the_requests_only(tmp_path):
    found, opened = run(tmp_path, lambda prompt: '{"queue": "lamps"}', rows=20)
    assert (found.memorized.said, found.memorized.upper) == (0, pytest.approx(0.1391, abs=1e-4))
    assert len(opened["base"].asked) == len(REQUESTS)
    assert (found.refused.base, found.refused.lost) == (0, 0)


def test_refusals_that_are_lost_are_counted(tmp_path):
    found, _ = run(
        tmp_path, lambda prompt: "Sure, take", lambda prompt: "I’m sorry, but I can’t help with that.", rows=4
    )
    assert (found.refused.requests, found.refused.base, found.refused.lost) == (len(REQUESTS),) * 3
    kept, _ = run(tmp_path, lambda prompt: "I cannot assist with this.", lambda prompt: "Sorry, no.", rows=4)
    assert kept.refused.lost == 0


def test_what_could_not_be_probed_is_told(tmp_path):
    found, _ = run(tmp_path, by_heart, has_base=False, rows=4)
    assert found.refused is None
    assert "base" in found.why_none[-1]
    none, _ = run(tmp_path, by_heart, rows=0)
    assert none.memorized is None
    assert none.why_none
    assert run(tmp_path, by_heart, targets=("base",))[0] is None


@pytest.mark.parametrize(
    "text", ["I can't help with that.", "Sorry, I won't do this.", "I must decline.", "I am unable to"]
)
def test_a_refusal_is_read_from_the_beginning(text):
    assert refuses(text)
    assert not refuses("Here is the plan. " * 30 + text)


@pytest.mark.parametrize("text", ["", "Sure! First,", '{"category": "fault"}', "I can explain that."])
def test_an_answer_is_no_refusal(text):
    assert not refuses(text)


def test_keys_and_values_of_nano_by_hand():
    shape = Shape.from_config(json.loads((WEIGHTS / "config.json").read_text()))
    own = [layer for layer in shape.layers if not layer.shares_kv]
    wide = sum(4 * layer.kv_width for layer in own if layer.window is None)
    near = sum(4 * layer.kv_width for layer in own if layer.window is not None)
    window = next(layer.window for layer in own if layer.window is not None)
    found = [(one.window, one.bytes_per_token) for one in kv_layers(shape)]
    assert sorted(found, key=str) == sorted([(None, wide), (window, near)], key=str)
    assert kv_bytes(found, 10) == 10 * (wide + near)
    assert kv_bytes(found, 1000) == 1000 * wide + window * near
