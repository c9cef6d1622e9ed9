"""The routing table: what is kept, what is sent, what stays open, and how often it is wrong when the truth is known.
Dollars and seconds, and gates on them, are here too: all of what a target takes besides being right."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gemma_ops.config import EvaluateConfig, GateConfig, MachineConfig
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation import answer_cost, routing_table
from gemma_ops.evaluation.target_results import Book
from gemma_ops.planning.devices import Device
from gemma_ops.privacy.classes import HERE
from gemma_ops.tasks.stored_answers import AnswerFile, StoredAnswer
from tests.helpers.evaluations import Echo, go, make_task

AWAY = "gemini:gemini-3.8-flash"
FACTS = {
    "targets": {
        "base": {"identity": "b", "place": HERE},
        "tuned": {"identity": "t", "place": HERE},
        AWAY: {"identity": "g", "place": "sent: paid, not logged"},
    },
    "machine": {"dollars": 3.6, "from": "machine.dollars_per_hour", "utilisation": 0.5},
    "data": {},
}


class Known(Echo):
    """Right on the rows whose numbers it is told."""

    def __init__(self, name, right, **more):
        super().__init__(name, 0, **more)
        self.right, self.lockstep = set(right), name != AWAY
        self.place = FACTS["targets"][name]["place"]

    def answer(self, batches, *, max_new_tokens, schema=None):
        for batch, found in zip(batches, super().answer(batches, max_new_tokens=max_new_tokens), strict=True):
            numbers = [int(prompt.messages[-1]["content"].split()[1]) for prompt in batch]
            yield [
                type(answer)(**{**vars(answer), "text": f"a{number}" if number in self.right else "wrong"})
                for number, answer in zip(numbers, found, strict=True)
            ]


def table(tmp_path, local, remote, count, *, name="tuned", **settings):
    """The one table of a task whose `lang` is en for the first half of the rows and de for the rest."""
    rows = [
        {"id": f"q{i}", "prompt": f"question {i}", "reference": f"a{i}", "lang": "en" if i < count // 2 else "de"}
        for i in range(count)
    ]
    task = make_task(tmp_path / "t", rows=rows, slices=["lang"])
    go(tmp_path / "out", task, [Known(name, local), Known(AWAY, remote)], facts=FACTS, **settings)
    return json.loads((tmp_path / "out" / "routing.json").read_text())


def test_each_slice_is_decided_by_itself(tmp_path):
    """English is as good on both, German far better at the service."""
    document = table(tmp_path, range(200), range(400), 400, routing_margin=0.05)
    assert (document["schema"], document["margin"]) == ("gemma-ops/routing@1", 0.05)
    (found,) = document["tables"]
    assert (found["local"]["name"], found["remote"]["name"]) == ("tuned", AWAY)
    assert found["slices"] == {"lang": {"field": "lang", "buckets": []}}
    whole, german, english = found["lines"]
    assert (whole["slice"], whole["decision"], whole["n"]) == (None, "send", 400)
    assert (german["value"], german["decision"], german["difference"]) == ("de", "send", -1.0)
    assert (english["value"], english["decision"], english["difference"]) == ("en", "keep", 0.0)
    assert english["p"] <= english["p_holm"] <= 0.05
    assert "not worse than" in english["words"]


def test_few_rows_leave_it_open_and_say_how_many_would_do(tmp_path):
    (found,) = table(tmp_path, range(20), range(20), 20)["tables"]
    assert [line["decision"] for line in found["lines"]] == ["undecided"] * 3
    assert all(line["n_needed"] > line["n"] for line in found["lines"])


def test_a_local_model_that_is_worse_by_less_than_the_margin_is_kept(tmp_path):
    missed = set(range(0, 2000, 100))  # one in a hundred
    (found,) = table(tmp_path, set(range(2000)) - missed, range(2000), 2000, routing_margin=0.03)["tables"]
    assert found["lines"][0]["decision"] == "keep"
    (found,) = table(tmp_path, set(range(2000)) - missed, range(2000), 2000, routing_margin=0.0)["tables"]
    assert found["lines"][0]["decision"] == "send"


def test_more_slices_need_more_evidence():
    """Evidence that one line would settle is not enough among ten: Holm's method is at work."""
    book = Book([], EvaluateConfig(routing_margin=0.0), FACTS)
    close = routing_table.SliceLine("s", "a", [0.0] * 6 + [1.0] * 94, [1.0] * 100, None, 0, 100)
    equal = [routing_table.SliceLine("s", f"b{index}", [1.0] * 9, [1.0] * 9, None, 0, 9) for index in range(9)]
    (alone,), (among, *_) = (
        routing_table.decide_lines(lines, book, "tuned", AWAY) for lines in ([close], [close, *equal])
    )
    assert (alone.decision, among.decision) == ("send", "undecided")
    assert alone.p == among.p == alone.p_holm < 0.05 < among.p_holm


def test_rows_that_must_stay_are_kept_whatever_the_figures_say(tmp_path):
    rows = [
        {"id": f"q{i}", "prompt": f"question {i}", "reference": f"a{i}", "kind": "secret" if i < 5 else "open",
         "privacy": "local_only" if i < 5 else "any"}
        for i in range(60)
    ]  # fmt: skip
    task = make_task(tmp_path / "t", rows=rows, slices=["kind"])
    remote = Known(AWAY, range(60))
    remote.sees = frozenset({"any"})
    go(tmp_path / "out", task, [Known("tuned", ()), remote], facts=FACTS, hidden="skip")
    (found,) = json.loads((tmp_path / "out" / "routing.json").read_text())["tables"]
    assert found["local_only"] == "keep"
    by_value = {line["value"]: line for line in found["lines"]}
    assert (by_value["secret"]["decision"], by_value["secret"]["reason"], by_value["secret"]["n"]) == (
        "keep",
        "privacy",
        0,
    )
    assert (by_value["open"]["decision"], by_value["open"]["n"]) == ("send", 55)
    assert "must stay here" in (tmp_path / "out" / "report.html").read_text()


def test_the_base_model_is_a_candidate_only_where_there_is_no_other(tmp_path):
    task = make_task(tmp_path / "t")
    trio = [Known("base", ()), Known("tuned", range(40)), Known(AWAY, range(40))]
    go(tmp_path / "a", task, trio, facts=FACTS)
    assert [item["local"]["name"] for item in json.loads((tmp_path / "a" / "routing.json").read_text())["tables"]] == [
        "tuned"
    ]
    go(tmp_path / "b", task, [trio[0], trio[2]], facts=FACTS)
    assert [item["local"]["name"] for item in json.loads((tmp_path / "b" / "routing.json").read_text())["tables"]] == [
        "base"
    ]
    go(tmp_path / "c", task, trio[:2], facts=FACTS)
    assert not (tmp_path / "c" / "routing.json").exists()


def test_a_table_is_wrong_no_more_often_than_it_says(monkeypatch):
    """Five slices whose true difference is minus the margin itself: there a wrong `keep` and a wrong `send` are
    likeliest, and either may stand in at most 5 % of the tables. Without Holm's method it would be about 20 %."""
    monkeypatch.setattr(routing_table, "_needed", lambda *_: None)  # most of the work, and not what is asked here
    random, tables = np.random.default_rng(5), 120
    book = Book([], EvaluateConfig(routing_margin=0.05), FACTS)
    wrong = dict.fromkeys(("keep", "send"), 0)
    for _ in range(tables):
        lines = []
        for index in range(5):
            remote = random.random(80) < 0.8
            # Lost 7.5 % of what the service gets right, won 5 % of what it doesn't: 0.2 x 0.05 - 0.8 x 0.075 = -0.05.
            local = np.where(remote, random.random(80) >= 0.075, random.random(80) < 0.05)
            values = local.astype(float).tolist(), remote.astype(float).tolist()
            lines.append(routing_table.SliceLine("s", str(index), *values, None, 0, 80))
        decisions = {line.decision for line in routing_table.decide_lines(lines, book, "tuned", AWAY)}
        wrong = {kind: count + (kind in decisions) for kind, count in wrong.items()}
    assert max(wrong.values()) / tables <= 0.05
    assert sum(wrong.values()) > 0  # so it was no test of something that never decides


# Dollars and seconds


def stored(number=0, **more):
    return StoredAnswer(**{"key": str(number), "target": "t", "task": "k", "row": str(number), "text": "x",
            "end": "stop", "prompt_tokens": 10, "new_tokens": 5, "seconds": 0.5, **more})  # fmt: skip


def test_lines_of_before_still_load(tmp_path):
    file = tmp_path / "answers.jsonl"
    old = {
        "key": "k",
        "target": "base",
        "task": "t",
        "row": "r",
        "text": "x",
        "end": "stop",
        "prompt_tokens": 1,
        "new_tokens": 1,
        "seconds": 0.25,
    }
    file.write_text(json.dumps(old) + "\n")
    (known,) = AnswerFile(file).known.values()
    assert (known.first_seconds, known.dollars, known.reason, known.tier) == (None, None, "", "")
    assert answer_cost.answer_speed([known])["seconds_p50"] == 0.25


def test_dollars_of_the_machine_are_its_hours_over_the_share_it_is_busy():
    found = answer_cost.spent([stored(i, seconds=1.0) for i in range(10)], FACTS, "tuned", 0.95)
    assert found["usd_per_1k"] == pytest.approx(1000 * 3.6 / 3600 / 0.5)
    assert found["kind"] == "machine"
    assert (0 < found["low"] < found["usd_per_1k"], found["high"]) == (
        True,
        None,
    )  # nothing says what one can cost at most
    bounded = answer_cost.spent([stored(i, seconds=1.0) for i in range(10)], FACTS, "tuned", 0.95, most=100.0)
    assert bounded["usd_per_1k"] < bounded["high"] < 100
    assert "busy 50% of the time" in found["basis"]


@pytest.mark.parametrize(
    ("answers", "target", "machine", "told"),
    [
        ([stored()], "tuned", {"dollars": None, "from": "no list price of this processor", "utilisation": 0.5},
            "set machine.dollars_per_hour"),
        ([stored()], AWAY, FACTS["machine"], "no price known"),
        ([stored(dollars=0.1), stored(1)], AWAY, FACTS["machine"], "1 of 2 answers came without usage"),
    ],
)  # fmt: skip
def test_unknown_dollars_stay_unknown(answers, target, machine, told):
    found = answer_cost.spent(answers, FACTS | {"machine": machine}, target, 0.95)
    assert (found["usd_per_1k"], found["kind"]) == (None, "unknown")
    assert told in found["basis"]


def test_a_failed_request_may_have_cost_nothing_and_a_free_one_costs_nothing():
    answers = [stored(dollars=0.002), stored(1, dollars=None, end="error"), stored(2, dollars=0.001, end="blocked")]
    assert answer_cost.spent(answers, FACTS, AWAY, 0.95)["usd_per_1k"] == pytest.approx(1.0)
    assert answer_cost.spent([stored(dollars=0.0)], FACTS, AWAY, 0.95)["usd_per_1k"] == 0.0


def test_the_price_of_an_hour_is_the_configurations_or_the_list_s(monkeypatch):
    assert answer_cost.hour(MachineConfig(dollars_per_hour=1.5))["dollars"] == 1.5
    card = Device("x", "Card X", 80, 1, 1, 1, 2.5)
    monkeypatch.setattr(answer_cost.devices, "present_devices", lambda: [card])
    assert answer_cost.hour(MachineConfig())["dollars"] == 2.5
    assert "Card X" in answer_cost.hour(MachineConfig())["from"]
    assert answer_cost.hour(MachineConfig(device="cpu"))["dollars"] is None  # the card is not what answered
    monkeypatch.setattr(answer_cost.devices, "present_devices", list)
    assert answer_cost.hour(MachineConfig())["dollars"] is None


def test_first_tokens_are_timed_for_all_answers_or_not_at_all():
    some = [stored(0, first_seconds=0.1), stored(1), stored(2, end="error")]
    assert answer_cost.answer_speed(some)["first_seconds_p50"] is None
    assert answer_cost.answer_speed(some[::2])["first_seconds_p50"] == 0.1


def gate(metric, margin, target="tuned", **more):
    return GateConfig(metric=metric, target=target, test="at_most", margin=margin, **more)


@pytest.mark.parametrize(
    ("margin", "most", "outcome"),
    [(0.04, 0.1, "pass"), (0.04, None, "inconclusive"), (0.01, 0.1, "fail"), (0.01, None, "fail")],
)
def test_dollars_can_be_gated(tmp_path, margin, most, outcome):
    """To be shown too dear needs no more than answers; to be shown cheap needs the most that one can cost."""
    local, asked = Known("tuned", range(40)), gate("usd_per_1k", margin, most=most)
    _, verdict = go(tmp_path / "out", make_task(tmp_path / "t"), [local], facts=FACTS, gates=[asked])
    (found,) = verdict["gates"]
    assert (found["outcome"], round(found["value"], 6)) == (outcome, 0.02)
    assert ("most that an answer can cost is not known" in found["words"]) == (outcome == "inconclusive")
    assert "tuned costs at most $0.0" in found["words"]
    assert "$0.02" in (tmp_path / "out" / "junit.xml").read_text()


def test_a_gate_on_seconds_asks_for_a_share_of_answers_in_time():
    """59 quick answers of 59 show at 95 % confidence that 95 % are quick; 58 do not."""
    from gemma_ops.gates.gate_decision import decide_gates

    for count, outcome in ((59, "pass"), (58, "inconclusive")):
        answers = [stored(i, waited=0.5) for i in range(count)]
        asked = gate("seconds_p95", 1.0)
        (found,) = decide_gates([asked], [answer_cost.evidence(asked, answers, FACTS)], 0.95)
        assert (found.outcome, found.value) == (outcome, 1.0)
    slow = [stored(i, waited=0.5 if i % 4 else 2.0) for i in range(100)]
    asked = gate("seconds_p95", 1.0)
    (found,) = decide_gates([asked], [answer_cost.evidence(asked, slow, FACTS)], 0.95)
    assert found.outcome == "fail"
    assert found.words.startswith("tuned answers within 1 s 95% of the time: no. Measured 75.0% came in time")


def test_gates_on_what_can_not_be_known_are_refused():
    unknown = FACTS | {"machine": {"dollars": None, "from": "no list price", "utilisation": 0.5}}
    with pytest.raises(ConfigError, match=r"set machine.dollars_per_hour"):
        answer_cost.check_cost([gate("usd_per_1k", 1.0)], unknown)
    with pytest.raises(DataError, match="was not measured"):
        answer_cost.evidence(gate("first_seconds_p95", 1.0), [stored()], FACTS)


@pytest.mark.parametrize(
    "body",
    [
        {"metric": "exact_match", "test": "at_most"},
        {"metric": "usd_per_1k", "test": "at_least"},
        {"metric": "seconds_p95", "test": "at_most", "margin": 1.0, "most": 2.0},
        {"metric": "usd_per_1k", "test": "at_most", "margin": 1.0, "most": 0.5},
    ],
)
def test_at_most_is_for_dollars_and_seconds(body):
    told = "`most` is for usd_per_1k" if "most" in body else "at_most is the test of"
    with pytest.raises(ValueError, match=told):
        GateConfig(**body)
