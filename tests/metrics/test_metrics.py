"""Each metric on answers that are right, nearly right and nonsense; against the library that defines it, where there is
one."""

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter
from sklearn.metrics import f1_score

from gemma_ops.errors import ConfigError, DataError
from gemma_ops.metrics import METRICS, AnyMetric, by_id
from gemma_ops.metrics.metric import ScoredRow, normalize
from gemma_ops.metrics.numbers import final_number
from gemma_ops.metrics.parse import Unreadable, dump, parse_json


def row(reference, **fields):
    return ScoredRow("r1", ({"role": "user", "content": "?"},), reference, **fields)


def scorer(options, rows, folder=Path()):
    return TypeAdapter(AnyMetric).validate_python(options).scorer(folder, rows)


def value(options, reference, answer, **fields):
    """The metric's own score of one answer."""
    one = row(reference, **fields)
    made = scorer(options, [one])
    return made.score(answer, one).values[made.key]


@pytest.mark.parametrize(
    ("options", "reference", "answer", "expected"),
    [
        ({"id": "exact_match"}, "Paris", " Paris\n", 1),
        ({"id": "exact_match"}, "Paris", "paris", 0),
        (
            {"id": "exact_match", "normalize": ["casefold", "punctuation", "accents", "spaces"]},
            "São Paulo",
            "sao  PAULO.",
            1,
        ),
        ({"id": "exact_match", "normalize": ["json"]}, '{"a": 1, "b": [2.0]}', '{"b":[2],"a":1.0}', 1),
        ({"id": "exact_match", "normalize": ["json"]}, {"a": True}, '{"a": 1}', 0),
        ({"id": "exact_match", "normalize": ["json"]}, {"a": 1}, '{"a": 1} ok', 0),
        ({"id": "contains"}, "Paris", "It is PARIS, of course", 1),
        ({"id": "contains"}, "Paris", "Lyon", 0),
        ({"id": "regex", "pattern": r"^[A-Z]\d+$"}, None, "A12", 1),
        ({"id": "regex", "pattern": r"^[A-Z]\d+$"}, None, "a12", 0),
        ({"id": "regex", "pattern": r"answer: (\w+)"}, "blue", "the answer: Blue", 1),
        ({"id": "regex", "pattern": r"answer: (\w+)"}, "blue", "answer: red, no, answer: blue", 1),
        ({"id": "regex", "pattern": r"answer: (\w+)"}, "blue", "no idea", 0),
        ({"id": "length", "min": 2, "max": 3}, None, "one two three", 1),
        ({"id": "length", "max": 3}, None, "one two three four", 0),
        ({"id": "length"}, None, "  ", 0),
        ({"id": "length", "unit": "characters", "max": 4}, None, "日本語", 1),
        ({"id": "json_valid"}, None, '{"a": [1, null]}', 1),
        ({"id": "json_valid"}, None, '{"a": NaN}', 0),
        ({"id": "json_valid"}, None, '{"a": 1, "a": 2}', 0),
        ({"id": "json_valid"}, None, '```json\n{"a": 1}\n```', 0),
        ({"id": "json_valid", "fenced": True}, None, '```json\n{"a": 1}\n```', 1),
        ({"id": "json_field_accuracy"}, {"a": 1, "b": "x"}, '{"a": 1.0, "b": "y"}', 0.5),
        ({"id": "json_field_accuracy"}, {"a": None}, "{}", 0),
        ({"id": "json_field_accuracy", "fields": ["b"]}, {"a": 1, "b": "x"}, '{"b": "x"}', 1),
        ({"id": "json_field_accuracy"}, {"a": 1}, "[1]", 0),
        ({"id": "json_field_f1"}, {"a": 1, "b": {"c": 2}}, '{"a": 1, "b": {"c": 3}}', 0.5),
        ({"id": "json_field_f1"}, {"a": 1}, '{"a": 1, "z": 9}', 2 / 3),
        ({"id": "json_field_f1"}, {"a": 1}, "no", 0),
        ({"id": "numeric"}, "so #### 1,080", "The total is $1,080.", 1),
        ({"id": "numeric"}, "18", "#### 18\nor 20?", 1),
        ({"id": "numeric"}, "18", "between 18 and 20", 0),
        ({"id": "numeric"}, "-3.5", "it is −3.5 °C", 1),
        ({"id": "numeric", "tolerance": 0.01}, "3.14159", "about 3.14", 1),
        ({"id": "numeric", "relative": 0.1}, "200", "185", 1),
        ({"id": "numeric"}, "7", "none", 0),
        ({"id": "choice_accuracy"}, "yes", " Yes ", 1),
        ({"id": "rouge_l"}, "der schnelle Fuchs", "der schnelle Fuchs", 1),
        ({"id": "rouge_l"}, "Съешь ещё", "съешь ещё!", 1),
        ({"id": "rouge_l"}, "日本語の文", "日本", 4 / 7),
        ({"id": "rouge_l"}, "a b c d", "a c", 2 / 3),
        ({"id": "chrf"}, "hello world", "hello world", 1),
        ({"id": "chrf"}, "hello world", "", 0),
    ],
)
def test_scores(options, reference, answer, expected):
    assert value(options, reference, answer) == pytest.approx(expected)


def test_every_metric_is_listed_once_and_tested_above():
    assert len(by_id()) == len(METRICS)
    here = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in by_id() if f'"id": "{name}"' not in here] == []


def test_without_a_reference_a_row_is_unscored_not_wrong():
    for name in ("exact_match", "contains", "json_field_accuracy", "json_field_f1", "numeric", "rouge_l", "chrf"):
        assert value({"id": name}, None, "anything") is None, name


def test_schema_failures_say_why(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"type": "object", "required": ["a"]}))
    made = scorer({"id": "json_schema", "file": "s.json"}, [row({"a": 1})], tmp_path)
    assert made.score('{"a": 1}', row(None)).values["json_schema"] == 1
    failed = made.score("{}", row(None))
    assert failed.values["json_schema"] == 0
    assert "'a' is a required property" in failed.detail["why"]
    (tmp_path / "s.json").write_text('{"type": "objekt"}')
    with pytest.raises(ConfigError, match="no JSON schema"):
        scorer({"id": "json_schema", "file": "s.json"}, [], tmp_path)


def test_fields_are_told_one_by_one():
    made = scorer({"id": "json_field_accuracy"}, [row({"a": 1, "b": 2})])
    scored = made.score('{"a": 1, "b": 3}', row({"a": 1, "b": 2}))
    assert scored.values == {"json_field_accuracy": 0.5, "json_field_accuracy.a": 1, "json_field_accuracy.b": 0}
    assert scored.detail["wrong"] == ["b"]


def test_labels_and_f1_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    labels = ["a", "b", "c", "never"]
    wanted = rng.choice(labels[:3], 200)
    said = [
        str(rng.choice([*labels[:3], "nonsense"], p=[0.4, 0.3, 0.2, 0.1])) if rng.random() < 0.5 else str(w)
        for w in wanted
    ]
    rows = [ScoredRow(str(index), (), str(label)) for index, label in enumerate(wanted)]
    made = scorer({"id": "choice_accuracy", "choices": labels}, rows)
    scored = [made.score(text, one) for text, one in zip(said, rows, strict=True)]
    every, details = np.arange(200), [item.detail for item in scored]
    for kind in ("macro", "micro"):
        found = made.aggregates[f"choice_accuracy.f1_{kind}"](rows, details)(every)
        assert found == pytest.approx(f1_score(wanted, said, labels=labels[:3], average=kind))
    assert {item.detail["label"] for text, item in zip(said, scored, strict=True) if text == "nonsense"} == {None}


def test_a_reference_outside_the_choices_is_refused():
    with pytest.raises(DataError, match="none of the choices"):
        value({"id": "choice_accuracy", "choices": ["yes", "no"]}, "maybe", "yes")


def test_choice_of_a_json_field():
    options = {"id": "choice_accuracy", "field": "kind", "choices": ["a", "b"]}
    assert value(options, '{"kind": "a", "x": 1}', '{"x": 2, "kind": "A"}') == 1
    assert value(options, '{"kind": "a"}', "a") == 0


def test_parsing_survives_hostile_answers():
    assert isinstance(parse_json("[" * 200_000), Unreadable)
    assert isinstance(parse_json("1" * 5000), Unreadable)  # Python refuses to read so long a number
    assert isinstance(parse_json('"\ud800"'.encode("utf-8", "surrogatepass").decode("utf-8", "replace")), str)
    assert dump({"b": 1.0, "a": [True, 1]}) == '{"a":[true,1],"b":1}'
    assert final_number("1e999999") is None
    assert final_number("16-3=13") == 13
    assert normalize("not json", ("json",)) == "not json"
