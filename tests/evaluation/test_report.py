"""The report, the summary and JUnit: complete, self-contained, and safe whatever a model answers."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from gemma_ops.answer import Answer
from gemma_ops.config import EvaluateConfig
from gemma_ops.evaluation import evaluate_step, junit, report_html, verdict_summary
from gemma_ops.gates.detectable import advice
from gemma_ops.privacy.classes import HERE
from gemma_ops.verdicts import Verdict
from gemma_ops.words import svg
from gemma_ops.words.markup import escape
from tests.evaluation.test_evaluate_step import make_task
from tests.helpers.bare_verdict import bare_verdict

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"' & \x00\x1b[31m"
VOID = {"meta", "br", "img"}


class Hostile:
    """Answers with markup; some answers are right."""

    sees, place, lockstep, family = frozenset({"any"}), HERE, True, "gemma"

    def __init__(self, name, right):
        self.name, self.identity, self.right = name, EVIL, right

    def answer(self, batches, *, max_new_tokens, schema=None):
        for batch in batches:
            yield [
                Answer(
                    json.dumps({"k": "v", "p": "x"})
                    if index < self.right
                    else json.dumps({"k": EVIL, "z": 1})
                    if index % 2
                    else EVIL,
                    "length" if index == 7 else "stop",
                    9,
                    4,
                    0.02,
                )
                for index, _ in enumerate(batch)
            ]

    def close(self):
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows = [
        {
            "id": f"r{i}{EVIL if i == 5 else ''}",
            "prompt": f"{EVIL} {i:03}",
            "reference": {"k": "v", "p": "x"},
            "kind": EVIL if i % 2 else "b",
            "privacy": "local_only",
        }
        for i in range(16)
    ]
    metrics = [
        {"id": "exact_match", "normalize": ["json"]},
        {"id": "choice_accuracy", "name": "k", "field": "k", "choices": ["v", EVIL]},
        "json_field_accuracy",
    ]
    task = make_task(folder / "t", rows=rows, metrics=metrics, slices=["kind"], description=EVIL, rubric="rubric.md")
    (task / "rubric.md").write_text(EVIL.replace("\x00", ""))
    gates = [
        {"metric": "exact_match", "target": "tuned", "test": "superior", "versus": "base", "margin": 0.0},
        {"metric": "exact_match", "target": "q8_0", "test": "noninferior", "versus": "tuned", "margin": 0.02},
        {"metric": "exact_match", "target": "base", "test": "at_least", "margin": 0.9},
    ]
    config = EvaluateConfig(targets=("base", "tuned", "q8_0"), gates=gates)
    Hostile.sees = frozenset({"local_only"})
    targets = [Hostile("base", 1), Hostile("tuned", 14), Hostile("q8_0", 13)]
    facts = {
        "targets": {target.name: {"identity": EVIL, "id": EVIL, "step": "fetch"} for target in targets},
        "data": {"digest": "d" * 64, "rows": {}},
    }
    evaluate_step.run_evaluation(
        folder, config, evaluate_step.load_checked(config, (task,), None), targets, facts, batch=16
    )
    return folder


class Checker(HTMLParser):
    """Collects tags, attributes and text, and insists that tags nest."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.links, self.text = [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [
            value for name, value in attrs if name in ("src", "href", "xlink:href") and not value.startswith("#")
        ]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_one_safe_file(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "script" not in checker.tags
    assert "img" not in checker.tags
    assert checker.links == []  # nothing is loaded from anywhere
    assert not re.search(r"@import|url\(", page)
    assert "alert(1)" in checker.text  # shown as text, not dropped
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "prefers-color-scheme: dark" in page


def test_the_page_tells_everything(made):
    checker = Checker()
    checker.feed((made / "report.html").read_text(encoding="utf-8"))
    for part in (
        "Fail", "exact_match", "Difference in", "What quantization costs", "Where it is right",
        "What is taken for what", "Lost by q8_0", "Still wrong",
        "Won by tuning", "cut at the token limit", "Provenance", "version 1", "95%", "local_only", "training data",
        "What a good answer is",
    ):  # fmt: skip
        assert part in checker.text, part


def test_wrong_and_missing_fields_are_marked(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    assert f"<mark>{escape(EVIL)}</mark>" in page
    assert '<span class="key">p:</span> <mark class="gone">missing</mark>' in page


def test_gates_are_junit_cases(made):
    suite = ET.parse(made / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    passed, unsure, failed = suite.findall("testcase")
    assert passed.find("failure") is None
    assert "rows would settle it" in unsure.find("skipped").get("message") or "no number of rows" in unsure.find(
        "skipped"
    ).get("message")
    assert "at most" in failed.find("failure").get("message")


def test_junit_survives_any_name():
    gate = {
        "task": EVIL,
        "metric": "m",
        "target": "t",
        "test": "at_least",
        "versus": None,
        "margin": 0.5,
        "outcome": "fail",
        "threshold": 0.5,
        "words": EVIL,
    }
    case = ET.fromstring(junit.junit_xml(Verdict.parse(bare_verdict(gates=[gate]))).encode()).find("testcase")
    assert case.get("classname").startswith("<script>")


def test_the_summary_fits_a_comment_and_holds_no_rows(made):
    text = (made / "summary.md").read_text(encoding="utf-8")
    assert text.startswith("## ❌ Evaluation: fail: of 3 gates 1 hold, 1 failed, 1 undecided at 95% confidence")
    assert "alert" not in text
    assert "| `tuned` | 0.875 [" in text
    assert len(text) < 4000
    assert verdict_summary.p_text(0.00001) == "<0.0001"


def test_a_page_with_one_target_and_no_gates(tmp_path):
    config = EvaluateConfig(targets=("base",))
    Hostile.sees = frozenset({"any"})
    rows = [{"id": f"r{i}", "prompt": "q", "reference": None} for i in range(3)] + [
        {"id": "x", "prompt": "q", "reference": {"k": "v", "p": "x"}}
    ]
    task = make_task(tmp_path / "t", rows=rows)
    evaluate_step.run_evaluation(
        tmp_path,
        config,
        evaluate_step.load_checked(config, (task,), None),
        [Hostile("base", 1)],
        {"targets": {}, "data": {}},
        batch=4,
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Ungated" in page
    assert "3 unscored" in page


def test_the_report_is_drawn_from_verdict_and_answers_alone(made):
    body = Verdict.read(made / "verdict.json")
    assert report_html.verdict_headline(body).startswith("fail")
    assert ("v", "v", 14) in body.results[1].labels["k"].confusion


@pytest.mark.parametrize("domain", [(0.0, 1.0), (-0.03, 0.01), (-1.0, 0.2), (-0.001, 0.0)])
def test_axes_have_a_handful_of_round_ticks(domain):
    found = svg.ticks(domain)
    assert 3 <= len(found) <= 7
    assert all(domain[0] - 1e-9 <= tick <= domain[1] + 1e-9 for tick in found)


def test_domains_keep_zero_in_sight():
    low, high = svg.domain_of([0.4, 0.5], around_zero=True)
    assert low < 0
    assert high > 0.5
    assert svg.domain_of([-1.0, 1.0], around_zero=True) == (-1.0, 1.0)


def test_advice_warns_before_anything_runs():
    gates = [
        {"metric": "m", "target": "q8_0", "test": "noninferior", "versus": "tuned", "margin": 0.01},
        {"metric": "m", "target": "q4_0", "test": "noninferior", "versus": "tuned"},
    ]
    lines = advice({"t": 200}, EvaluateConfig(gates=gates))
    assert lines[0].startswith("t: 200 rows show a difference of 0.0")
    assert "will likely end inconclusive with 200 rows of t" in lines[1]
    assert "has no margin" in lines[-1]
    assert len(advice({"t": 100_000}, EvaluateConfig(gates=gates[:1]))) == 1
