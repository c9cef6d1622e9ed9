"""Which model answered: read from the reply, priced, told, kept apart, and no basis of a gate when it is another one;
facts of a user's own, and facts that are old."""

from __future__ import annotations

import json
import shutil
import sqlite3
from datetime import UTC, date, datetime

import pytest

from gemma_ops.config import EvaluateConfig, GateConfig
from gemma_ops.config.gemini import MODELS, GeminiConfig, lay_over
from gemma_ops.emulator import EmulatedReply, Emulator
from gemma_ops.emulator.emulated_models import known_routes
from gemma_ops.errors import BudgetError, ConfigError, MachineError, ServiceError
from gemma_ops.evaluation import evaluate_step
from gemma_ops.gemini import models, open_gemini, prices
from gemma_ops.gemini.cache import open_ledger
from gemma_ops.gemini.client import billed_answer
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.reply import read_reply
from gemma_ops.gemini.request import Request
from gemma_ops.gemini.spending import spending
from gemma_ops.judging.calibration import Calibration, Known
from gemma_ops.judging.judge_standing import JudgeCandidate, standing
from gemma_ops.runs import journal
from gemma_ops.stats.intervals import Interval
from gemma_ops.targets import open_target
from gemma_ops.tasks.answering_model import doubt
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.evaluations import Echo, make_task
from tests.targets.test_targets import HELLO, events, one, opening, paying, serving

NOVEMBER = datetime(2026, 11, 23, 12, tzinfo=UTC)
FLASH = "gemini-3.8-flash"


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("gemini-3.8-flash", FLASH), ("models/gemini-3.8-flash", FLASH), ("gemini-3.8-flash-001", FLASH),
        ("gemini-3.8-flash-09-2026", FLASH), ("gemini-3.5-flash-lite", "gemini-3.5-flash-lite"),
        ("gemini-3.5-flash-lite-preview-07-21", "gemini-3.5-flash-lite"), ("gemini-3.8-flash-thinking", None),
        ("", None),
        ("gemini-3-flash-preview", "gemini-3-flash-preview"),
    ],
)  # fmt: skip
def test_a_version_is_known_by_its_model(version, name):
    assert models.answering_model(version) == name


def test_another_model_than_the_one_that_was_asked_is_unexpected():
    assert models.is_expected(FLASH, "gemini-3.8-flash-002")
    assert models.is_expected(FLASH, "")  # it said nothing
    assert not models.is_expected(FLASH, "gemini-3.6-flash")
    assert not models.is_expected("gemini-3.5-flash", "gemini-3.5-flash-lite")
    assert not models.is_expected(FLASH, "gemini-9")


def response(version, prompt=1000, output=100):
    usage = {"promptTokenCount": prompt, "candidatesTokenCount": output, "totalTokenCount": prompt + output}
    candidate = {"content": {"parts": [{"text": "yes"}]}, "finishReason": "STOP"}
    return read_reply({"candidates": [candidate], "usageMetadata": usage, "modelVersion": version})


@pytest.mark.parametrize(
    ("version", "cost"), [(FLASH, 1_125_000), ("gemini-3.6-flash", 1_125_000), ("gemini-4-argon", 3_000_000),
        ("gemini-9", None)]
)  # fmt: skip
def test_a_reply_is_priced_by_what_answered(version, cost):
    """1,000 in and 100 out; of a model whose price nobody knows, the most that was reserved counts."""
    assert billed_answer(FLASH, response(version), tier="standard", seconds=1, first=None, at=NOVEMBER).cost == cost


def test_the_dearer_of_a_retired_model_and_its_stand_in_is_reserved():
    before, since = datetime(2026, 10, 7, tzinfo=UTC), datetime(2026, 10, 9, tzinfo=UTC)
    asked = [prices.worst("gemini-3.7-flash", 1000, 100, tier="standard", at=at) for at in (before, since)]
    assert asked == [1_125_000, 1_125_000]  # the same price, until either rises
    assert models.routed_to("gemini-3.7-flash", before.date()) is None
    assert models.routed_to("gemini-3.7-flash", since.date()) == FLASH
    # 3.5 Flash costs 1.50 and 9.00, 3.6 Flash 0.75 and 3.75: what may be billed either way is held.
    assert prices.worst("gemini-3.5-flash", 1000, 100, tier="standard", at=since) == 2_400_000


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)


def ask(machine, run, *texts, model=FLASH):
    requests = [Request(model, ({"role": "user", "content": text},), 64, "evaluate", privacy="any") for text in texts]
    with open_gemini(machine, run=run) as door:
        return door.ask(requests)


def test_what_another_model_said_is_told_paid_and_not_taken_by_another_run(key, tmp_path):
    with Emulator(lambda _: EmulatedReply("yes", thought_tokens=0), routes={FLASH: "gemini-4-argon"}) as emulator:
        machine = machine_for(emulator, tmp_path, batch="never")
        with journal.writing(tmp_path / "logs", "asks"):
            (answer,) = ask(machine, "first", "well?")
        ask(machine, "first", "well?")  # the run that paid has it
        assert len(emulator.billed()) == 1
        assert ask(machine, "second", "well?")[0].model == "gemini-4-argon"
        assert len(emulator.billed()) == 2
        usage = emulator.billed()[0].usage
    expected = usage["promptTokenCount"] * 2.0 + usage["candidatesTokenCount"] * 10.0  # Argon's price, not 3.8 Flash's
    assert answer.dollars == pytest.approx(expected / 1e6)
    told = "".join(path.read_text() for path in (tmp_path / "logs").glob("*.jsonl"))
    assert f"{FLASH}: gemini-4-argon answered 1 of 1 requests" in told


def test_a_model_that_is_gone_ends_the_run_with_the_services_word(key, tmp_path):
    with Emulator(routes={FLASH: None}) as emulator, pytest.raises(ConfigError, match="no longer available"):
        ask(machine_for(emulator, tmp_path, batch="never"), "r", "well?")


def test_known_routes_are_those_of_the_day():
    assert known_routes(date(2026, 10, 7)) == {}
    assert known_routes(date(2026, 10, 8)) == {"gemini-3.7-flash": FLASH, "gemini-3.5-flash": "gemini-3.6-flash"}


@pytest.mark.parametrize("routes", [{}, {FLASH: "gemini-3.6-flash"}])
def test_no_gate_is_decided_on_another_model(key, tmp_path, routes):
    name = f"gemini:{FLASH}@low"
    task = make_task(tmp_path / "desk", 40, privacy="any")
    settings = EvaluateConfig(
        targets=("tuned", name),
        gates=(GateConfig(metric="exact_match", target="tuned", versus=name, test="superior"),
               GateConfig(metric="exact_match", target="tuned", test="at_least", margin=0.5)),
    )  # fmt: skip
    out = tmp_path / "runs" / "r" / "evaluate"
    out.mkdir(parents=True)
    with Emulator(lambda _: "nothing right", routes=routes) as emulator:
        machine = machine_for(emulator, tmp_path, batch="never")
        targets = [Echo("tuned", 40), open_target(name, machine, run="r", use="evaluate")]
        facts = {"targets": {n: {"identity": n} for n in ("tuned", name)}, "data": {}}
        evaluate_step.run_evaluation(
            out, settings, evaluate_step.load_checked(settings, (task,), None), targets, facts, batch=20
        )
    verdict = json.loads((out / "verdict.json").read_text())
    assert verdict["results"][1]["answered"] == {routes.get(FLASH, FLASH): 40}
    against, alone = verdict["gates"]
    assert alone["outcome"] == "pass"
    if routes:
        assert against["outcome"] == "report_only"
        assert f"gemini-3.6-flash answered where {name} was asked" in against["words"]
    else:
        assert against["outcome"] == "pass"
    assert f"answered by {routes.get(FLASH, FLASH)}" in (out / "report.html").read_text()


def test_answers_of_two_models_in_one_column_are_told():
    assert doubt(f"gemini:{FLASH}", [f"{FLASH}-001", f"{FLASH}-002"]) == (
        f"{FLASH}-001 and {FLASH}-002 answered in turn where gemini:{FLASH} was asked"
    )
    assert doubt("openai:http://h/v1#m", ["m-7", "m-8"])
    assert not doubt("openai:http://h/v1#m", ["m-7", ""])
    assert not doubt("tuned", [])


def known(answered):
    sure = Interval(0.9, 0.8, 1.0, 100, 100, "made up")
    return Known("j", "id", 100, 0, sure, sure, None, None, 0.5, 0.5, {}, answered)


def test_a_calibration_speaks_for_what_answered_then():
    made = Calibration("pairwise", "p", (), 100, 0.95, None, (known(("gemini-3.6-flash",)),))
    assert made.of("j", "id", "p", {"gemini-3.6-flash": 3})
    assert made.of("j", "id", "p")
    assert made.of("j", "id", "p", {FLASH: 3}) is None
    decided = standing([JudgeCandidate("j", [], known(()), True, (), 1, "another answered")])
    assert decided.by is None
    assert "another answered" in decided.reason


def test_old_facts_and_retired_models_are_told_before_money_is_spent(key, tmp_path, monkeypatch):
    assert models.stale(FLASH, date(2026, 12, 13)) is None
    assert models.stale(FLASH, date(2026, 12, 14)) == 31
    monkeypatch.setattr("gemma_ops.gemini.door.stale", lambda model, on: 77)
    with Emulator(lambda _: "yes") as emulator, journal.writing(tmp_path / "logs", "asks"):
        ask(machine_for(emulator, tmp_path, batch="never"), "r", "a", "b", model="gemini-3.7-flash")
    told = "".join(path.read_text() for path in (tmp_path / "logs").glob("*.jsonl"))
    assert told.count("prices and limits of gemini-3.7-flash were looked up 77 days ago") == 1
    assert told.count(f"gemini-3.7-flash is retired: {FLASH} answers for it") == 1


def test_a_users_own_facts_are_laid_over_ours(tmp_path, monkeypatch):
    monkeypatch.delenv(MODELS, raising=False)
    own = tmp_path / "mine.yaml"
    own.write_text(
        "models:\n"
        "  gemini-3.8-flash: {as_of: 2026-11-28, prices: [{from: 2026-09-02, input: 1.00, cached: 0.1, output: "
        "5.00}]}\n"
        "  gemini-5-test: {as_of: 2026-11-28, source: [me], context: 1000, thinking: [low], sampling: ignored,\n"
        "    prices: [{from: 2026-11-01, input: 9, output: 9}]}\n"
    )
    monkeypatch.setenv(MODELS, "")
    before = prices.token_rates(FLASH, tier="flex", at=NOVEMBER).input
    lay_over(GeminiConfig(models=str(own)))
    assert float(prices.token_rates(FLASH, tier="flex", at=NOVEMBER).input) == pytest.approx(0.5) != float(before)
    assert models.model_facts(FLASH).thinking == ("low", "medium", "high")  # what is not laid over stays
    assert models.model_facts("gemini-5-test").context == 1000
    broken = tmp_path / "broken.yaml"
    broken.write_text("models: {gemini-3.8-flash: {colour: red}}\n")
    monkeypatch.setenv(MODELS, str(broken))
    with pytest.raises(ConfigError, match=r"machine\.gemini\.models.*broken\.yaml"):
        models.model_facts(FLASH)


def test_an_endpoints_dollars_are_held_under_the_cap_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_ops.targets.endpoint_target.PAUSE", 0.01)
    with serving(lambda body, number: (200, {}, events("hi"))) as (url, log):
        spec = f"openai:{url}#m"
        with pytest.raises(BudgetError, match="this run has no budget"):
            opening(spec, paying(url, tmp_path, budget=None))
        with pytest.raises(BudgetError, match="could cost"):  # a body of some hundred bytes costs more than this
            one(opening(spec, paying(url, tmp_path, budget=0.00001)))
        assert not log
        target = opening(spec, paying(url, tmp_path, budget=0.0061, dollars_out=10.0))
        answer = one(target)
        with pytest.raises(BudgetError, match="of the run's"):  # the server used more than was asked for: it counts
            list(target.answer([[HELLO] * 4], max_new_tokens=7))
    (line,) = spending(tmp_path / "gemini.sqlite").found
    assert (line.run, line.use, line.model) == ("t", "evaluate", "m (127.0.0.1)")
    assert line.settled / 1e9 >= answer.dollars


def test_what_an_endpoint_did_not_serve_is_given_back_and_what_broke_off_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("gemma_ops.targets.endpoint_target.PAUSE", 0.01)
    replies = iter([(503, {}, b"busy"), (200, {}, events("hi", usage=False))])
    with serving(lambda body, number: next(replies)) as (url, _):
        one(opening(f"openai:{url}#m", paying(url, tmp_path)))
    (line,) = spending(tmp_path / "gemini.sqlite").found
    assert (line.refused, line.without_usage) == (1, 1)
    assert line.settled > 0


def test_a_ledger_without_its_write_ahead_log_is_refused_not_read_as_empty(tmp_path):
    """A file as earlier versions left it: every row in the `-wal` that was not copied."""
    old = sqlite3.connect(tmp_path / "old.sqlite", isolation_level=None)
    old.execute("PRAGMA journal_mode = WAL")
    old.execute("CREATE TABLE reservations (id INTEGER)")
    old.execute("PRAGMA user_version = 1")
    shutil.copyfile(tmp_path / "old.sqlite", tmp_path / "copy.sqlite")
    for reads in (
        lambda: spending(tmp_path / "copy.sqlite"),
        lambda: SpendingLedger(tmp_path / "copy.sqlite", run="r", run_cap=1, project_cap=None),
    ):
        with pytest.raises(MachineError, match=r"copied without copy\.sqlite-wal"):
            reads()
    old.close()


def test_a_copy_of_a_living_ledger_has_what_was_spent(emulator, machine, tmp_path):
    ledger = open_ledger(machine, "r")
    for cost in (5, 7):
        ledger.settle(ledger.reserve("k", model=FLASH, use="judge", tier="standard", worst=10), cost)
    shutil.copyfile(ledger.path, tmp_path / "copy.sqlite")
    assert spending(tmp_path / "copy.sqlite").sum.settled == 12
    ledger.close()


@pytest.mark.parametrize(
    ("fault", "kind", "what"),
    [
        ("429_bare", "busy", None), ("429_closed", "stop", "not open to the key's tier"),
        ("401", "stop", "refused the key"),
        ("403", "stop", "refused the key"), ("404", "stop", "does not know"), ("408", "failed", None),
        ("504", "failed", None),
    ],
)  # fmt: skip
def test_every_status_of_the_service_is_told_apart(key, tmp_path, fault, kind, what):
    with Emulator(lambda _: "yes") as emulator:
        emulator.fail(fault, times=1)
        machine = machine_for(emulator, tmp_path, batch="never")
        if kind == "stop":
            with pytest.raises((ConfigError, ServiceError), match=what):
                ask(machine, "r", "well?")
            assert not emulator.billed()
        else:
            (answer,) = ask(machine, "r", "well?")
            assert answer.text == "yes"
            assert emulator.log[0].status == int(fault[:3])
