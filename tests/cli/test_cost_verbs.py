"""`gemma-ops cost`: what was spent on what, and own hardware against API prices, with figures worked out by hand."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from html.parser import HTMLParser

import pytest

from gemma_ops.config import MachineConfig
from gemma_ops.config.loading import read_run_config
from gemma_ops.errors import ConfigError, DataError, MachineError
from gemma_ops.evaluation import breakeven, breakeven_html, breakeven_inputs, breakeven_text
from gemma_ops.evaluation.breakeven import Own, Workload
from gemma_ops.evaluation.breakeven_inputs import Given
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.spending import spending
from gemma_ops.gemini.usage import Usage
from tests.helpers.bare_verdict import TASK, bare_verdict

AT = datetime(2026, 11, 23, 12, tzinfo=UTC)
# 1,500 new tokens/s at 120 a piece are 12.5 answers/s; $0.78 an hour, busy half of the time.
OWN = Own(12.5, 0.78, 0.5, "1,500 new tokens/s", "list price of L4")
WORK = Workload(800, 120, 0, "as given")


def offers(found):
    return {offer.name: offer for offer in found.offers}


class TestBreakEven:
    def test_the_machine(self):
        assert OWN.per_month == pytest.approx(569.40)  # 0.78 × 730
        assert OWN.capacity == 32_850_000  # 12.5 × 3,600 × 730
        assert OWN.per_thousand == pytest.approx(0.0346667, abs=1e-7)  # 780 / 3,600 / 6.25
        assert OWN.full == pytest.approx(0.0173333, abs=1e-7)

    @pytest.mark.parametrize(
        "name, standard, batch, cached",
        [
            # Per 1,000 answers: 0.8 M prompt and 0.12 M new tokens. 0.8×0.75 + 0.12×3.75; half; 0.8×0.075 + 0.12×3.75
            ("gemini-3.8-flash", 1.05, 0.525, 0.51),
            ("gemini-4-argon", 2.80, 1.40, 1.28),
            ("gemini-4-carbon", 2.80, 1.40, 1.28),
            ("gemini-3.1-pro-preview", 3.04, 1.52, 1.60),
            ("gemini-3.5-flash-lite", 0.54, 0.27, 0.324),
            ("gemini-3.1-flash-lite", 0.38, 0.19, 0.20),
            ("Gemma 4 26b-a4b, Vertex AI", 0.192, None, 0.084),  # 0.8×0.15 + 0.12×0.60
            ("Gemma 4 31b, Novita", 0.16, None, None),  # 0.8×0.14 + 0.12×0.40
        ],
    )
    def test_dollars_per_thousand_answers(self, name, standard, batch, cached):
        today = offers(breakeven.compare_costs(OWN, WORK, at=AT))[name].today
        assert today.standard == pytest.approx(standard)
        assert today.batch == (None if batch is None else pytest.approx(batch))
        assert today.cached == (None if cached is None else pytest.approx(cached))

    def test_every_priced_model_is_there_and_free_ones_are_not(self):
        from gemma_ops.gemini.models import models_table

        found = offers(breakeven.compare_costs(OWN, WORK, at=AT))
        paid = {name for name, facts in models_table().models.items() if facts.paid_tier}
        assert {name for name, offer in found.items() if offer.kind == "gemini"} == paid

    def test_break_even_volumes(self):
        found = breakeven.compare_costs(OWN, WORK, at=AT)
        assert found.break_even(1.05) == pytest.approx(542_285.714)  # 569.40 / 1.05 × 1,000
        assert found.break_even(0.525) == pytest.approx(1_084_571.43)
        assert found.break_even(None) is None

    def test_a_machine_that_can_not_answer_so_many_is_never_cheaper(self):
        slow = Own(0.1, 0.78, 0.5, "", "")  # 262,800 answers a month at most
        found = breakeven.compare_costs(slow, WORK, at=AT)
        assert found.break_even(1.05) is None
        assert found.break_even(2.80) == pytest.approx(203_357.14)
        text = "\n".join(breakeven_text.cost_lines(found))
        assert "One machine is never cheaper than gemini-3.1-flash-lite" in text
        assert re.search(r"gemini-3.8-flash +today +1\.050 .* never +never", text)

    def test_the_next_known_price_change_stands_beside_today(self):
        found = offers(breakeven.compare_costs(OWN, WORK, at=AT))
        now, later = found["gemini-4-argon"].charges
        assert (later.start, later.standard, later.batch) == (date(2026, 12, 1), pytest.approx(5.6), pytest.approx(2.8))
        assert now.standard == pytest.approx(2.8)
        assert [charge.start for charge in found["gemini-3.8-flash"].charges] == [AT.date(), date(2027, 1, 1)]
        assert len(found["gemini-3.5-flash"].charges) == 1
        after = offers(breakeven.compare_costs(OWN, WORK, at=datetime(2027, 2, 1, tzinfo=UTC)))
        assert [charge.standard for charge in after["gemini-3.8-flash"].charges] == [pytest.approx(2.1)]

    def test_part_of_the_prompt_from_the_cache(self):
        found = offers(breakeven.compare_costs(OWN, WORK, at=AT, cached_share=0.5))
        assert found["gemini-4-argon"].today.cached == pytest.approx(2.04)  # 0.4×2 + 0.4×0.10 + 0.12×10

    def test_thoughts_are_output(self):
        found = offers(breakeven.compare_costs(OWN, Workload(800, 120, 400, ""), at=AT))
        assert found["gemini-3.8-flash"].today.standard == pytest.approx(2.55)  # 0.6 + 0.52×3.75

    def test_long_prompts_cost_what_long_prompts_cost(self):
        found = offers(breakeven.compare_costs(OWN, Workload(250_000, 120, 0, ""), at=AT))
        assert found["gemini-3.1-pro-preview"].today.standard == pytest.approx(1002.16)  # 250×4 + 0.12×18

    def test_a_measured_target_is_priced_at_its_own_tokens(self):
        used = {"gemini-3.8-flash@low": ("gemini-3.8-flash", Workload(900, 100, 300, "measured"))}
        found = offers(breakeven.compare_costs(OWN, WORK, at=AT, measured=used))
        assert "gemini-3.8-flash" not in found
        assert found["gemini-3.8-flash@low"].today.standard == pytest.approx(2.175)  # 0.9×0.75 + 0.4×3.75
        assert found["gemini-4-argon"].today.standard == pytest.approx(2.80)

    def test_prices_of_the_readers_own(self):
        found = offers(breakeven.compare_costs(OWN, WORK, at=AT, priced={"provider": (0.10, 0.30)}))
        assert found["provider"].today.standard == pytest.approx(0.116)
        assert found["provider"].source == "as given"


RESULTS = [
    {"task": "banking77", "target": target, "rows": 10, "ends": {"stop": 10}, "failed": 0, "metrics": {}, "slices": {},
        "speed": speed}
    for target, speed in {
        "base": {"mean_prompt_tokens": 700.0, "mean_new_tokens": 30.0, "new_tokens_per_second": 600.0},
        "tuned": {"mean_prompt_tokens": 800.0, "mean_new_tokens": 120.0, "new_tokens_per_second": 1500.0},
        "gemini:gemini-3.8-flash@low": {
            "mean_prompt_tokens": 900.0, "mean_new_tokens": 100.0, "mean_thought_tokens": 300.0,
            "new_tokens_per_second": 80.0,
        },
    }.items()
]  # fmt: skip


def verdict_of(**facts):
    """A verdict with these results and facts, as JSON."""
    return json.dumps(bare_verdict(tasks={"banking77": TASK}, **{"results": RESULTS, **facts}))


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "runs" / "banking77" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "verdict.json").write_text(verdict_of())
    return read_run_config(
        ["banking77"], [f"machine.runs={tmp_path / 'runs'}", "machine.dollars_per_hour=0.78", "machine.utilisation=0.5"]
    )


class TestInputs:
    def test_a_finished_evaluation_gives_speed_and_tokens(self, config):
        own, work, measured = breakeven_inputs.read_evaluation(config, Given())
        assert (own.answers_per_second, own.dollars_per_hour, own.utilisation) == (12.5, 0.78, 0.5)
        assert (work.prompt, work.new, work.thoughts) == (800, 120, 0)
        assert "tuned on banking77" in work.source
        assert "tuned on banking77" in own.speed_from
        ((name, (model, used)),) = measured.items()
        assert (name, model, used.thoughts) == ("gemini-3.8-flash@low", "gemini-3.8-flash", 300)

    def test_another_target_may_be_named(self, config):
        own, work, _ = breakeven_inputs.read_evaluation(config, Given(target="base"))
        assert (own.answers_per_second, work.new) == (20, 30)
        with pytest.raises(ConfigError, match="no target 'tined'"):
            breakeven_inputs.read_evaluation(config, Given(target="tined"))
        with pytest.raises(ConfigError, match="no task 'gsm8k'"):
            breakeven_inputs.read_evaluation(config, Given(task="gsm8k"))

    def test_figures_by_hand_need_no_evaluation(self, tmp_path):
        config = read_run_config(["banking77"], [f"machine.runs={tmp_path}", "machine.dollars_per_hour=2"])
        own, work, measured = breakeven_inputs.read_evaluation(config, Given(500, 50, 10, 1000))
        assert (own.answers_per_second, work.thoughts, measured) == (20, 10, {})
        assert "as given" in own.speed_from
        with pytest.raises(ConfigError, match="no evaluation"):
            breakeven_inputs.read_evaluation(config, Given(500, 50))

    def test_a_device_brings_its_list_price(self, config):
        from gemma_ops.planning import devices

        own, *_ = breakeven_inputs.read_evaluation(config, Given(device="l4", tokens_per_second=1500))
        assert own.dollars_per_hour == devices.get_device("l4").dollars
        assert devices.get_device("l4").priced in own.price_from
        with pytest.raises(ConfigError, match="no known price"):
            breakeven_inputs.read_evaluation(config, Given(device="cpu", tokens_per_second=1500))

    def test_an_hour_costs_what_it_did_where_the_speed_was_measured(self, config, tmp_path):
        path = tmp_path / "runs" / "banking77" / "evaluate" / "verdict.json"
        path.write_text(verdict_of(machine={"dollars": 4.0, "from": "H200, a list"}))
        assert breakeven_inputs.read_evaluation(config, Given())[0].dollars_per_hour == 0.78  # the reader's own word
        silent = read_run_config(["banking77"], [f"machine.runs={tmp_path / 'runs'}"])
        own = breakeven_inputs.read_evaluation(silent, Given())[0]
        assert (own.dollars_per_hour, own.price_from) == (4.0, "H200, a list, as evaluated")

    def test_what_was_not_measured_is_asked_for(self, config, tmp_path):
        path = tmp_path / "runs" / "banking77" / "evaluate" / "verdict.json"
        path.write_text(verdict_of(results=[RESULTS[1] | {"speed": {"mean_prompt_tokens": 800.0}}]))
        with pytest.raises(ConfigError, match="new tokens") as caught:
            breakeven_inputs.read_evaluation(config, Given())
        assert "--new-tokens" in caught.value.fix
        path.write_text("[]")
        with pytest.raises(DataError, match="its schema is None"):
            breakeven_inputs.read_evaluation(config, Given())

    def test_prices_from_endpoints_and_options(self):
        machine = MachineConfig.model_validate(
            {
                "endpoints": [
                    {"url": "https://a.example/v1", "dollars_in": 0.2, "dollars_out": 0.4},
                    {"url": "https://b.example/v1"},
                ]
            }
        )
        found = breakeven_inputs.services(machine, ["provider=0.10/0.30"])
        assert found == {"https://a.example/v1": (0.2, 0.4), "provider": (0.10, 0.30)}
        for bad in ("provider", "provider=0.1", "=1/2", "p=-1/2", "p=a/b"):
            with pytest.raises(ConfigError, match="no price"):
                breakeven_inputs.services(machine, [bad])


class Page(HTMLParser):
    """Collects what a page would load, what it draws, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.count, self.words = [], [], {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_is_self_contained_and_holds_every_figure():
    found = breakeven.compare_costs(OWN, WORK, at=AT, priced={"<b>mine</b>": (0.10, 0.30)})
    html = breakeven_html.cost_page(found)
    page = Page(html)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.count
    assert 'name="viewport"' in html
    assert "prefers-color-scheme: dark" in html
    words = " ".join(page.words)
    for offer in found.offers:
        assert offer.name in words
    assert "$1.050" in words
    assert "542,000" in words
    assert "2026-12-01" in words
    assert "as of 2026-11-22" in words
    assert page.count["svg"] == len(found.offers) + 2
    assert not re.search(r'(x1|x2|cx|y1|y2)="[^"]*(nan|inf)', html)


def test_the_page_draws_what_is_never_cheaper():
    slow = Own(0.001, 5.0, 0.5, "", "")
    assert "never" in breakeven_html.cost_page(breakeven.compare_costs(slow, WORK, at=AT))


def test_every_figure_names_its_inputs():
    text = " ".join("\n".join(breakeven_text.cost_lines(breakeven.compare_costs(OWN, WORK, at=AT))).split())
    for part in (
        "12.5 answers/s (1,500 new tokens/s)", "$0.78 an hour (list price of L4)", "$569 a month", "utilisation 0.5",
        "800.0 prompt tokens, 120.0 new, no thoughts (as given)", "facts as of 2026-11-22", "read on 2026-11-23",
        "all of the prompt comes from the cache",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize(
    "number, shown",
    [
        (542_285.7, "542,000"),
        (1_084_571, "1.08 million"),
        (32_900_000, "32.9 million"),
        (12.3, "12"),
        (4e9, "4 billion"),
    ],
)
def test_volumes_are_told_in_three_digits(number, shown):
    assert breakeven_text.count_words(number) == shown


class TestCommands:
    @pytest.fixture
    def ledger(self, tmp_path):
        path = tmp_path / "runs" / "gemini.sqlite"
        ledger = SpendingLedger(path, run="first", run_cap=10**9, project_cap=None)
        used = Usage(prompt=1200, cached=200, output=100, thoughts=500)

        def ask(run, use, model, tier, worst):
            ledger.run = run
            return ledger.reserve("k", model=model, use=use, tier=tier, worst=worst)

        for _ in range(2):
            number = ask("first", "judge", "gemini-3.8-flash", "standard", 9_000_000)
            ledger.settle(number, 3_015_000, usage=used.to_json())
        ledger.release(ask("first", "judge", "gemini-3.8-flash", "standard", 9_000_000), "429")
        ledger.settle(ask("second", "synth", "gemini-4-argon", "batch", 8_000_000), None)
        ask("second", "synth", "gemini-4-argon", "batch", 7_000_000)
        number = ask("second", "evaluate", "gemini-4-argon", "standard", 6_000_000)
        with ledger.connect() as store:
            gone = json.loads(ledger._me.to_text()) | {"born": "1"}
            store.execute("UPDATE reservations SET holder = ? WHERE id = ?", (json.dumps(gone), number))
        ledger.close()
        return path

    def test_spending_is_told_by_run_use_model_and_tier(self, ledger):
        found = spending(ledger)
        places = {(line.run, line.use, line.model, line.tier): line for line in found.found}
        assert len(places) == 3
        judge = places["first", "judge", "gemini-3.8-flash", "standard"]
        assert (judge.requests, judge.refused, judge.settled) == (2, 1, 6_030_000)
        assert (judge.prompt, judge.cached, judge.output, judge.thoughts) == (2400, 400, 200, 1000)
        synth = places["second", "synth", "gemini-4-argon", "batch"]
        assert (synth.requests, synth.without_usage, synth.settled, synth.reserved) == (1, 1, 8_000_000, 7_000_000)
        lost = places["second", "evaluate", "gemini-4-argon", "standard"]
        assert (lost.requests, lost.lost, lost.waiting) == (0, 6_000_000, 1)
        assert (found.sum.settled, found.sum.total) == (14_030_000, 27_030_000)
        assert spending(ledger, run="first").sum.total == 6_030_000

    def test_the_verb(self, cli, ledger):
        told = cli("cost")
        assert told.returncode == 0, told.stderr
        assert re.search(
            r"^first +judge +gemini-3.8-flash +standard +2 +2,400 +400 +200 +1,000 +0.0060", told.stdout, re.MULTILINE
        )
        assert re.search(r"^total .* 0\.0140 +0\.0070 +0\.0060$", told.stdout, re.MULTILINE)
        assert "killed" in told.stdout
        body = json.loads(cli("cost", "--ledger", str(ledger), "--run", "second", "--json").stdout)
        assert body["total"]["dollars"] == 0.008
        assert body["total"]["total_dollars"] == 0.021
        assert [line["use"] for line in body["lines"]] == ["synth", "evaluate"]

    def test_nothing_spent_is_no_error_and_makes_no_file(self, cli, tmp_path):
        told = cli("cost")
        assert (told.returncode, "nothing was spent" in told.stdout) == (0, True)
        assert not (tmp_path / "runs").exists()
        (tmp_path / "notes.txt").write_text("no ledger at all, but long enough to be one " * 40)
        with pytest.raises(MachineError):
            spending(tmp_path / "notes.txt")

    def test_compare_writes_text_json_and_page(self, cli, tmp_path):
        given = ["cost", "compare", "banking77", "--prompt-tokens", "800", "--new-tokens", "120"]
        given += ["--tokens-per-second", "1500", "--set", "machine.dollars_per_hour=0.78"]
        told = cli(*given, "--html", "page.html", "--hosted", "provider=0.1/0.3")
        assert told.returncode == 0, told.stderr
        assert "break-even" in told.stdout
        assert "provider" in told.stdout
        assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
        body = json.loads(cli(*given, "--json").stdout)
        assert body["own"]["answers_per_month_at_most"] == 32_850_000
        assert {offer["name"] for offer in body["offers"]} >= {"gemini-3.8-flash", "gemini-4-argon"}


class TestOfWhichMachine:
    """A price belongs to the machine whose speed it is divided by, and tokens to the model that made them."""

    def verdict(self, tmp_path, **body):
        path = tmp_path / "runs" / "banking77" / "evaluate" / "verdict.json"
        path.write_text(verdict_of(**body))

    @pytest.mark.parametrize(
        "machine",
        [None, {"dollars": None, "from": "no list price of this processor"}, {"dollars": 4, "from": "H200, x"}],
    )
    def test_the_speed_of_one_is_not_priced_as_another(self, config, tmp_path, machine):
        self.verdict(tmp_path, machine=machine)
        with pytest.raises(ConfigError, match="measured elsewhere") as caught:
            breakeven_inputs.read_evaluation(config, Given(device="l4"))
        assert "--tokens-per-second" in caught.value.fix

    def test_the_same_machine_is_no_problem(self, config, tmp_path):
        from gemma_ops.planning import devices

        known = devices.get_device("l4")
        self.verdict(tmp_path, machine={"dollars": 1.0, "from": f"{known.name}, {known.priced}"})
        assert breakeven_inputs.read_evaluation(config, Given(device="l4"))[0].dollars_per_hour == known.dollars

    def test_tokens_of_a_rehearsal_are_called_that(self, config, tmp_path):
        def text():
            own, work, measured = breakeven_inputs.read_evaluation(config, Given())
            return " ".join(breakeven_text.cost_lines(breakeven.compare_costs(own, work, at=AT, measured=measured)))

        assert "priced at the tokens they used themselves" in text()
        place = {"gemini:gemini-3.8-flash@low": {"identity": "aa", "place": "rehearsal: answered by an emulator"}}
        self.verdict(tmp_path, targets=place)
        assert "NOT MEASURED: the tokens of gemini-3.8-flash@low" in text()
        assert "priced at the tokens they used themselves" not in text()


class TestAskingForALedger:
    @pytest.fixture
    def told(self, monkeypatch, tmp_path):
        from gemma_ops.cli import app, guarded

        monkeypatch.chdir(tmp_path)

        def call(capsys, *arguments):
            monkeypatch.setattr("sys.argv", ["gemma-ops", *arguments])
            code = guarded(app)
            found = capsys.readouterr()
            return code, found.out + found.err

        return call

    def rehearsed(self, path, run="first"):
        ledger = SpendingLedger(path, run=run, run_cap=10**9, project_cap=None)
        ledger.settle(ledger.reserve("k", model="gemini-3.8-flash", use="judge", tier="standard", worst=9), 5)
        ledger.close()

    def test_an_unknown_run(self, told, capsys, tmp_path):
        self.rehearsed(tmp_path / "runs" / "gemini.sqlite")
        code, text = told(capsys, "cost", "--run", "nope")
        assert (code, "holds nothing of run 'nope'" in text, "its runs are first" in text) == (0, True, True)
        assert "holds no request" not in text

    def test_files_that_are_no_ledger(self, told, capsys, tmp_path):
        import sqlite3

        code, text = told(capsys, "cost", "--ledger", "nofile")
        assert (code, "there is no ledger nofile" in text) == (3, True)
        (tmp_path / "notes.txt").write_text("no ledger at all, but long enough to be one " * 40)
        code, text = told(capsys, "cost", "--ledger", "notes.txt")
        assert (code, "is not a ledger" in text, "free some space" in text) == (3, True, False)
        other = sqlite3.connect(tmp_path / "other.db")
        other.execute("CREATE TABLE x (y)")
        other.close()
        code, text = told(capsys, "cost", "--ledger", "other.db")
        assert (code, "is not a ledger" in text) == (3, True)

    def test_a_rehearsal_is_pointed_to(self, told, capsys, tmp_path):
        self.rehearsed(tmp_path / "runs" / "gemini.rehearsal.sqlite")
        code, text = told(capsys, "cost")
        assert (code, "nothing was spent" in text) == (0, True)
        assert re.search(r"rehearsed .* 1 requests? .*gemini\.rehearsal\.sqlite", text)

    def test_a_page_that_can_not_be_written(self, told, capsys):
        given = ["cost", "compare", "banking77", "--prompt-tokens", "800", "--new-tokens", "120"]
        given += ["--tokens-per-second", "1500", "--set", "machine.dollars_per_hour=0.78", "--html", "no/where/x.html"]
        code, text = told(capsys, *given)
        assert (code, "x.html can't be written" in text) == (5, True)

    def test_a_port_that_does_not_exist(self, told, capsys):
        from gemma_ops.emulator import Emulator

        code, text = told(capsys, "dev", "gemini-emulator", "--port", "99999")
        assert (code, "65535" in text) == (2, True)
        with pytest.raises(ConfigError, match="no port 99999"):
            Emulator(port=99999).start()
