"""The step `synthesize` through the Gemini emulator: rows that know where they are from, and nothing else gets
through."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gemma_ops.answer import Prompt
from gemma_ops.config import DataConfig, GeminiConfig, MachineConfig, ModelConfig, RunConfig, SynthConfig
from gemma_ops.data.example import read_rows
from gemma_ops.emulator import EmulatedReply, Emulator
from gemma_ops.errors import BoundaryError, BudgetError, ConfigError, DataError
from gemma_ops.gemini import prices, request_wire
from gemma_ops.gemini.notice import TERMS
from gemma_ops.gemini.usage import Usage
from gemma_ops.nano import WEIGHTS
from gemma_ops.prepare import prepare
from gemma_ops.synth import judge_filter, synthesis_inputs, synthesize, teacher_model
from gemma_ops.synth.bill import BYTES, PlannedBill, synthesis_bill, written
from gemma_ops.synth.estimate import estimate_synthesis
from gemma_ops.synth.estimate_text import estimate_lines
from gemma_ops.synth.plan_requests import first, gather
from gemma_ops.targets.gemini_target import request
from gemma_ops.targets.spec import parse_target
from tests.helpers.company import document, row, sentences, shown, teach, write_documents
from tests.helpers.emulated import machine_for
from tests.helpers.task_files import task_yaml

ROOT = Path(__file__).parents[2]
TEACHER = "gemini:gemini-3.8-flash@low"
JUDGE = "gemini:gemini-3.5-flash-lite"
NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", "a-key-for-tests")


@pytest.fixture
def world(tmp_path):
    """Run the step once; returns (metrics, folder, emulator). Settings are those of `synth`."""

    def go(responder=teach, *, documents=None, seeds=None, tools=None, tasks=(), gemini=None, before=None, **settings):
        out = tmp_path / "runs" / "test" / "synthesize.partial"
        out.mkdir(parents=True, exist_ok=True)
        given = {"teacher": TEACHER, "privacy": "any"} | settings
        with Emulator(responder) as emulator:
            if before:
                before(emulator)
            machine = machine_for(emulator, tmp_path, **(gemini or {}))
            paths = {"documents": documents, "seeds": seeds, "tools": tools}
            try:
                found = synthesize(out, SynthConfig(**given), machine, tasks=tasks, **paths)
            finally:
                go.log = emulator.log
            return found, out, emulator

    return go


def lines_of(path):
    return list(read_rows(path))


def test_rows_say_where_they_are_from_to_the_letter(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 6, front="---\nlicense: CC0-1.0\n---\n")
    metrics, out, emulator = world(
        documents=docs, count={"document_qa": 18, "evolve": 4, "preferences": 6}, per_request=3
    )
    rows, pairs = lines_of(out / "rows.jsonl"), lines_of(out / "preferences.jsonl")
    assert metrics["rows"] == len(rows) >= 18
    assert metrics["pairs"] == len(pairs) == 6
    answered = {entry.response_id: entry for entry in emulator.log}
    for line in [*rows, *pairs]:
        made = line["provenance"]
        text = (docs / made["source"]["name"]).read_text()
        start, end = made["evidence"]["span"]
        assert text[start:end] == made["evidence"]["quote"]
        assert made["source"]["span"][0] <= start < end <= made["source"]["span"][1]
        assert made["source"]["license"] == "CC0-1.0"
        assert answered[made["response_id"]].body["store"] is False
        assert made["store"] is False
        identity = made["teacher"].pop("identity")
        assert identity == "gemini-3.8-flash@low (rehearsal)"
        assert made["teacher"] == {
            "name": TEACHER, "family": "gemini", "version": "gemini-3.8-flash", "terms": TERMS, "rehearsal": True,
            "learned": "any",
        }  # fmt: skip
        assert made["tier"] == "standard"
        assert made["dollars"] > 0
    assert {line["provenance"]["method"] for line in rows} == {"document_qa", "evolve"}
    for pair in pairs:
        assert pair["chosen"][0]["content"] != pair["rejected"][0]["content"]
        assert [turn["role"] for turn in pair["prompt"]] == ["user"]
    card = (out / "card.md").read_text()
    for told in (
        TEACHER,
        "gemini-3.8-flash",
        "2026-03-23",
        "Not for training models that compete",
        "CC0-1.0",
        "rehearsal",
        "paid",
    ):
        assert told in card
    report = json.loads((out / "report.json").read_text())
    cost = sum(line["provenance"]["dollars"] for line in [*rows, *pairs])
    assert cost <= report["usage"]["dollars"] + 1e-6
    assert report["usage"]["thought_tokens"] == sum(
        entry.usage.get("thoughtsTokenCount", 0) for entry in emulator.billed()
    )


def test_nothing_vanishes_whatever_the_teacher_does(tmp_path, world):
    """Every row written, and every reply without one, is kept or stands with its reason in `rejected.jsonl`."""
    docs = write_documents(tmp_path / "docs", 8)

    def careless(body):
        found, kind = sentences(shown(body.texts[0])), random.Random(body.texts[0]).randrange(6)
        good = row(found[0])
        bad = {
            1: EmulatedReply(json.dumps({"rows": [good]}), finish="MAX_TOKENS"),
            2: EmulatedReply(blocked="SAFETY"),
            3: "this is not JSON",
            4: json.dumps({"rows": [good | {"quote": "The moon is made of green cheese."}]}),
            5: json.dumps({"rows": [good | {"answer": "I'm sorry, I can't say."}]}),
        }
        return bad.get(kind, json.dumps({"rows": [good, good]}))

    metrics, out, _ = world(careless, documents=docs, count={"document_qa": 32}, per_request=1)
    report = json.loads((out / "report.json").read_text())
    assert set(report["rejected"]) == {"cut", "blocked", "invalid_reply", "not_in_source", "refusal", "exact_duplicate"}
    replies = lines_of(out / "replies.jsonl")
    empty = sum(reply["value"] is None for reply in replies)
    assert metrics["requests"] == len(replies) == 32
    assert metrics["rows"] + metrics["rejected"] == metrics["written"] + empty
    assert report["rejected"]["invalid_reply"] == sum(not reply["value"] and reply["tries"] == 2 for reply in replies)


def test_a_teacher_abroad_never_sees_what_must_stay_here(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 4)
    secret = docs / "secret.md"
    secret.write_text("---\nprivacy: local_only\n---\n" + document(7).replace("laptop", "zeppelin"))
    wish = {"documents": docs, "count": {"document_qa": 20}, "per_request": 2}
    with pytest.raises(BoundaryError, match=r"may not see 2 of the sources.*\n?.*secret\.md"):
        world(**wish)
    assert world.log == []
    metrics, out, emulator = world(**wish, hidden="skip")
    assert metrics["rows"] > 5
    assert "zeppelin" not in json.dumps([entry.body for entry in emulator.log])
    assert len(json.loads((out / "report.json").read_text())["hidden"]["names"]) == 2
    assert {line["privacy"] for line in lines_of(out / "rows.jsonl")} == {"any"}


def test_with_every_source_set_aside_the_reason_is_told(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 2)
    wish = {"documents": docs, "count": {"document_qa": 4}, "hidden": "skip"}
    with pytest.raises(BoundaryError, match="may not see any source: all are local_only") as refused:
        world(**wish, privacy="local_only")
    assert "synth.hidden=skip" not in refused.value.fix
    with pytest.raises(BoundaryError, match="all are paid") as refused:
        world(**wish, privacy="paid", gemini={"tier": "unpaid"})
    assert "machine.gemini.tier=paid" in refused.value.fix
    assert world.log == []


def test_rows_inherit_the_class_of_their_source(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 3, front="---\nprivacy: paid\n---\n")
    write_documents(tmp_path / "more", 6)
    (tmp_path / "more" / "04-expense-report.md").rename(docs / "open.md")
    _, out, _ = world(documents=docs, count={"document_qa": 16}, per_request=2)
    for line in lines_of(out / "rows.jsonl"):
        assert line["privacy"] == ("any" if line["provenance"]["source"]["name"] == "open.md" else "paid")


def test_a_step_that_is_taken_up_again_asks_only_what_has_no_answer(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 6)
    wish = {"documents": docs, "count": {"document_qa": 24, "evolve": 4}, "per_request": 2}
    with pytest.raises(BudgetError):
        world(**wish, gemini={"budget_usd": 0.03, "concurrency": 2})
    asked = {entry.digest for entry in world.log}
    assert 0 < len(asked) < 16
    _, out, _ = world(**wish)
    again = [entry.digest for entry in world.log]
    # Another emulator is another endpoint: what was kept are the replies in the step's own folder.
    whole = (out / "rows.jsonl").read_bytes()
    replies = (out / "replies.jsonl").read_bytes()
    with (out / "replies.jsonl").open("ab") as file:
        file.write(b'{"key": "half a li')
    world(**wish)
    assert world.log == []
    assert ((out / "rows.jsonl").read_bytes(), (out / "replies.jsonl").read_bytes()) == (whole, replies)
    assert len(again) == len(set(again))


def test_a_failed_request_is_asked_again_the_next_time(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 3)
    wish = {"documents": docs, "count": {"document_qa": 6}, "per_request": 2, "gemini": {"attempts": 1}}
    _, out, _ = world(**wish, before=lambda emulator: emulator.fail("503", times=1))
    assert json.loads((out / "report.json").read_text())["rejected"]["error"] == 1
    kept = [reply for reply in lines_of(out / "replies.jsonl") if reply["end"] != "error"]
    (out / "replies.jsonl").write_text("".join(json.dumps(reply) + "\n" for reply in kept))
    _, out, emulator = world(**wish)
    assert len(emulator.log) == 1
    assert "error" not in json.loads((out / "report.json").read_text())["rejected"]


def test_rows_that_give_a_question_away_are_dropped_and_listed(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 4)
    task = tmp_path / "exam"
    task.mkdir()
    (task / "task.yaml").write_text(task_yaml("{path: data.jsonl}"))
    given_away = row(sentences(document(2))[1])["question"]
    (task / "data.jsonl").write_text(json.dumps({"prompt": given_away.upper(), "reference": "x"}) + "\n")
    _, out, _ = world(documents=docs, tasks=(task, ROOT / "eval" / "support_desk"), count={"document_qa": 32})
    report = json.loads((out / "report.json").read_text())
    assert [item["rows"] for item in report["overlap"]["tasks"]] == [1, 0]
    (dropped,) = report["overlap"]["dropped"]
    assert dropped["messages"][0]["content"] == given_away
    assert given_away not in {line["messages"][0]["content"] for line in lines_of(out / "rows.jsonl")}
    assert "exam" in (out / "card.md").read_text()


def test_a_judge_grades_each_row_and_kin_is_named(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 4)

    def judging(body):
        if "grade" not in (body.schema or {}).get("properties", {}):
            return teach(body)
        if "employee" in shown_row(body.last):
            return "no verdict"
        low = "euros" in shown_row(body.last)
        return json.dumps({"reason": "Prices change.", "grade": 2 if low else 5})

    metrics, out, emulator = world(
        judging, documents=docs, count={"document_qa": 32}, judge="gemini:gemini-3.5-flash-lite"
    )
    report = json.loads((out / "report.json").read_text())
    assert report["judge"]["dollars"] > 0
    assert metrics["dollars"] == pytest.approx(report["usage"]["dollars"] + report["judge"]["dollars"])
    rows = lines_of(out / "rows.jsonl")
    assert report["rejected"]["judge"] > 0
    assert report["rejected"]["not_judged"] > 0
    assert not [
        line for line in rows if "euros" in json.dumps(line["messages"]) or "employee" in json.dumps(line["messages"])
    ]
    assert all(
        line["provenance"]["judge"] == {"name": "gemini:gemini-3.5-flash-lite", "grade": 5, "related": True}
        for line in rows
    )
    card = (out / "card.md").read_text()
    assert "Related judge" in card
    assert f"It cost ${report['judge']['dollars']:.4f}" in card
    assert {entry.model for entry in emulator.log} == {"gemini-3.8-flash", "gemini-3.5-flash-lite"}


@pytest.mark.parametrize(
    "judge, front, told",
    [
        ("gemini:gemma-4-31b-it", "---\nprivacy: paid\n---\n", "may not see 8 of the sources, which are paid"),
        ("openai:http://judge.example/v1#qwen3", "---\nprivacy: paid\n---\n", "may not see 8 of the sources"),
        ("gemini:gemini-9-flash", "", "gemini-9-flash"),
        ("gemini:gemini-3.5-flash-lite@xhigh", "", "no thinking level"),
        ("tuned", "", "no model for it"),
    ],
)
def test_a_judge_that_cannot_grade_is_refused_before_the_teacher_is_paid(tmp_path, world, judge, front, told):
    docs = write_documents(tmp_path / "docs", 4, front=front)
    with pytest.raises((BoundaryError, ConfigError), match=told):
        world(documents=docs, count={"document_qa": 8, "evolve": 2}, per_request=1, judge=judge)
    assert world.log == []


def test_a_judge_without_a_budget_is_refused_before_the_local_teacher_writes(tmp_path, monkeypatch):
    docs = write_documents(tmp_path / "docs", 1)
    out = tmp_path / "runs" / "x" / "synthesize.partial"
    out.mkdir(parents=True)
    settings = SynthConfig(count={"document_qa": 1}, privacy="any", judge="gemini:gemini-3.5-flash-lite")
    with Emulator() as emulator:
        machine = machine_for(emulator, tmp_path, budget_usd=None).model_copy(update={"device": "cpu"})
        with pytest.raises(BudgetError, match=r"the judge .* costs money"):
            synthesize(out, settings, machine, base=WEIGHTS, documents=docs)
    assert not (out / "replies.jsonl").exists()


def shown_row(text):
    return re.search(r"<(row-[0-9a-f]{8})>\n(.*?)\n</\1>", text, re.DOTALL)[2]


def test_seeds_and_tools_become_rows_that_prepare_can_read(tmp_path, world):
    seeds = tmp_path / "seeds.jsonl"
    asked = [
        ("How do I reset the router?", "Hold the button for ten seconds."),
        ("Why is my bill higher?", "The offer has ended."),
    ]
    seeds.write_text("".join(json.dumps({"messages": chat(*pair)}) + "\n" for pair in asked))
    tools = tmp_path / "tools.json"
    schema = {"type": "object", "properties": {"order": {"type": "string"}}, "required": ["order"]}
    tools.write_text(json.dumps([{"name": "track", "description": "Where an order is.", "parameters": schema}]))

    def inventing(body):
        number = body.chance("which").randrange(10**6)
        if "tools" in body.last[:40]:
            wanted = {"two calls": 2, "no tool fits": 0}
            calls = next((count for words, count in wanted.items() if words in body.last), 1)
            called = [
                {"name": "track", "arguments": json.dumps({"order": f"A{number}{n}"}), "result": '{"at": "Kiel"}'}
                for n in range(calls)
            ]
            return json.dumps(
                {"rows": [{"question": f"Where is A{number}?", "calls": called, "answer": "It is in Kiel now."}]}
            )
        return json.dumps(
            {
                "rows": [
                    {"question": f"What does error {number} of the router mean?", "answer": f"Cable {number} is loose."}
                ]
            }
        )

    _, out, _ = world(inventing, seeds=seeds, tools=tools, count={"self_instruct": 4, "tool_calls": 4}, per_request=1)
    rows = lines_of(out / "rows.jsonl")
    methods = [line["provenance"]["method"] for line in rows]
    assert (methods.count("self_instruct"), methods.count("tool_calls")) == (4, 4)
    assert len({line["group"] for line in rows if line["provenance"]["method"] == "self_instruct"}) == 1
    calls = [turn.get("tool_calls", []) for line in rows for turn in line["messages"]]
    assert sorted({len(item) for item in calls}) == [0, 1, 2]
    folder = tmp_path / "prepared"
    folder.mkdir()
    prepare(
        folder, DataConfig(format="messages", privacy="any"), MachineConfig(), source=out / "rows.jsonl", model=WEIGHTS
    )
    read = [*lines_of(folder / "train.jsonl"), *lines_of(folder / "valid.jsonl")]
    assert len(read) == 8
    assert sum("tools" in line for line in read) == 4


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def test_prepare_keeps_documents_on_one_side_and_knows_the_teacher(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 12)
    (docs / "03-parental-leave.md").write_text("---\nprivacy: paid\n---\n" + document(3))
    _, out, _ = world(documents=docs, count={"document_qa": 80}, per_request=4)
    folder = tmp_path / "prepared"
    folder.mkdir()
    settings = DataConfig(format="messages", privacy="any", valid_share=0.4, near_duplicates=None)
    prepare(folder, settings, MachineConfig(), source=out / "rows.jsonl", model=WEIGHTS)
    sides = {side: lines_of(folder / f"{side}.jsonl") for side in ("train", "valid")}
    groups = {side: {line["group"] for line in rows} for side, rows in sides.items()}
    assert groups["train"]
    assert groups["valid"]
    assert not groups["train"] & groups["valid"]
    written = {line["id"]: line for line in lines_of(out / "rows.jsonl")}
    for line in [*sides["train"], *sides["valid"]]:
        assert (line["privacy"], line["group"]) == (written[line["id"]]["privacy"], written[line["id"]]["group"])
    report = json.loads((folder / "report.json").read_text())
    assert report["teachers"] == [
        {
            "name": TEACHER,
            "family": "gemini",
            "version": "gemini-3.8-flash",
            "terms": TERMS,
            "rehearsal": True,
            "rows": len(written),
        }
    ]
    assert TEACHER in (folder / "card.md").read_text()


def test_the_local_teacher_is_asked_batch_by_batch_and_can_fail_whole(tmp_path):
    """nano can't write such JSON: every reply is counted, none is taken for a row, and the step says so."""
    docs = write_documents(tmp_path / "docs", 1)
    out = tmp_path / "runs" / "x" / "synthesize.partial"
    out.mkdir(parents=True)
    settings = SynthConfig(count={"document_qa": 3}, per_request=1, max_new_tokens=64, section_words=60)
    with pytest.raises(DataError, match=r"no row is left of 0 that base wrote: (cut|invalid_reply)"):
        synthesize(out, settings, MachineConfig(eval_batch=2, device="cpu"), base=WEIGHTS, documents=docs)
    assert len(lines_of(out / "replies.jsonl")) == 3
    assert len(lines_of(out / "rejected.jsonl")) == 3


@pytest.mark.parametrize(
    "settings, told",
    [
        ({}, "asks for no rows"),
        ({"count": {"self_instruct": 5}}, "needs synth.seeds"),
        ({"count": {"tool_calls": 5}}, "needs synth.tools"),
        ({"count": {"evolve": 5}}, "no rows to start from"),
    ],
)
def test_a_method_without_material_is_refused_before_anything_is_asked(tmp_path, settings, told):
    docs = write_documents(tmp_path / "docs", 1)
    with pytest.raises(ConfigError, match=told):
        gather(SynthConfig(**settings), documents=docs, seeds=None, tools=None)


def test_rows_are_spread_over_documents_before_sections_and_the_order_stays(tmp_path):
    docs = write_documents(tmp_path / "docs", 20)
    settings = SynthConfig(count={"document_qa": 90}, per_request=2)
    pool = gather(settings, documents=docs, seeds=None, tools=None)
    items = first(settings, pool)
    assert sum(item.wanted for item in items) == 90
    names = [item.material.section.document.name for item in items]
    assert len(set(names[:20])) == 20
    assert len({(name, item.material.section.number) for name, item in zip(names, items, strict=True)}) == 40
    assert [item.turn for item in items] == [0] * 40 + [1] * 5
    assert items == first(settings, gather(settings, documents=docs, seeds=None, tools=None))
    assert items != first(settings.model_copy(update={"seed": 8}), pool)


def test_the_plan_bounds_what_the_run_then_spends(tmp_path, world):
    docs = write_documents(tmp_path / "docs", 5)
    synth = SynthConfig(
        teacher=TEACHER, privacy="any", documents=str(docs), count={"document_qa": 30, "evolve": 3}, per_request=3
    )
    config = RunConfig(synth=synth, machine={"gemini": {"tier": "paid", "budget_usd": 1.0}})
    made = estimate_synthesis(config, synthesis_inputs(synth))
    metrics, out, emulator = world(documents=docs, count={"document_qa": 30, "evolve": 3}, per_request=3)
    assert len(made.items) + made.later == metrics["requests"] == len(emulator.log)
    assert 0 < made.dollars < made.worst_dollars
    assert metrics["dollars"] <= made.worst_dollars
    usage = json.loads((out / "report.json").read_text())["usage"]
    assert usage["prompt_tokens"] <= made.prompt_tokens <= made.worst_prompt_tokens
    assert usage["new_tokens"] + usage["thought_tokens"] <= made.worst_new_tokens
    text = "\n".join(estimate_lines(made))
    for told in ("5 documents, 10 sections", "document_qa", "the budget of $1.00", f"{len(emulator.log):,}"):
        assert told in text
    local = estimate_synthesis(
        RunConfig(synth=synth.model_copy(update={"teacher": "base"})), synthesis_inputs(synth), "l4"
    )
    assert (local.dollars, local.seconds is not None) == (0.0, True)
    hidden = estimate_synthesis(
        RunConfig(synth=synth.model_copy(update={"privacy": "local_only"})), synthesis_inputs(synth)
    )
    assert len(hidden.hidden) == 10
    assert not hidden.items


def test_the_plan_counts_the_judge_and_bounds_all_that_is_reserved(tmp_path, world):
    """Every first reply is long and no JSON, so that every request is repaired."""
    docs = write_documents(tmp_path / "docs", 4)
    asked = {"count": {"document_qa": 12, "evolve": 2}, "per_request": 3, "max_new_tokens": 512}
    synth = SynthConfig(teacher=TEACHER, privacy="any", documents=str(docs), judge=JUDGE, **asked)
    machine = MachineConfig(gemini={"tier": "paid", "budget_usd": 1.0})
    made = estimate_synthesis(RunConfig(synth=synth, machine=machine), synthesis_inputs(synth))
    alone = synth.model_copy(update={"judge": None})
    without = estimate_synthesis(RunConfig(synth=alone, machine=machine), synthesis_inputs(alone))
    assert made.judge.requests == 14
    assert made.dollars == pytest.approx(without.dollars + made.judge.dollars)
    assert 0 < made.judge.dollars < made.judge.worst_dollars
    assert made.worst_dollars == pytest.approx(without.worst_dollars + made.judge.worst_dollars)
    text = "\n".join(estimate_lines(made))
    for told in (f"judge   {JUDGE} grades 14 rows", "teacher and judge together", "billed again", "the worst case"):
        assert told in text

    def wasteful(body):
        if len(body.texts) == 1:
            return EmulatedReply("nothing of the kind " * 90, thought_tokens=300)
        kind, found = body.schema["properties"], sentences(shown(body.texts[0]))
        if "grade" in kind:
            return json.dumps({"reason": "It is supported.", "grade": 5})
        rows = [row(sentence, "In short, ") for sentence in found[:3]]
        return json.dumps(rows[0] if "question" in kind else {"rows": rows})

    world(wasteful, documents=docs, judge=JUDGE, near_duplicates=None, **asked)
    worst = dict.fromkeys((TEACHER, JUDGE), 0)
    for entry in world.log:
        room = entry.body["generationConfig"]["maxOutputTokens"]
        name = TEACHER if entry.model in TEACHER else JUDGE
        worst[name] += prices.worst(entry.model, prices.prompt_bound(entry.body), room, tier="standard", at=NOW)
    assert without.dollars * prices.NANO < worst[TEACHER] <= without.worst_dollars * prices.NANO
    assert made.judge.dollars * prices.NANO < worst[JUDGE] <= made.judge.worst_dollars * prices.NANO


def test_the_bill_at_worst_is_what_a_full_reply_and_its_repair_reserve():
    """Text of many bytes, part of it not written yet, and a reply that fills its limit before it turns out to be
    invalid."""
    spec, shape, gemini = parse_target(TEACHER), judge_filter.Grade, GeminiConfig(tier="paid", budget_usd=1.0)
    schema, text, later = shape.model_json_schema(), "Größe ꙮ, zwölf Meter. " * 300, "später " * 500
    planned = PlannedBill("judge", chat(text, "")[:1], schema, 50, len(later.encode()))
    made = synthesis_bill([planned], spec, gemini, reply=512, output=100, use="judge")
    limit, turns = written(spec, 512), chat(text + later, "so on " * (BYTES * written(spec, 512) // 6))
    repair = [*turns, {"role": "user", "content": "That reply is not valid: rows: Field required\nReply again."}]
    reserved = 0
    for messages in (turns[:1], repair):
        body = request_wire.body(request(spec, Prompt(messages), 512, use="judge", schema=schema))
        reserved += prices.worst(spec.model, prices.prompt_bound(body), limit, tier="standard", at=NOW)
    slack = prices.request_price(spec.model, Usage(prompt=2048), tier="standard", at=NOW)
    assert reserved <= round(made.worst * prices.NANO) <= reserved + slack
    many = synthesis_bill([replace(planned, times=500)], spec, gemini, reply=512, output=100, use="judge")
    assert many.tiers == "batch tier"
    assert many.likely < 500 * made.likely
    # What an interrupted batch leaves may be too few for another, and then goes one by one.
    assert many.worst == pytest.approx(500 * made.worst)


def test_the_plan_says_when_the_run_would_refuse_its_judge(tmp_path):
    docs = write_documents(tmp_path / "docs", 1)
    synth = SynthConfig(documents=str(docs), count={"document_qa": 2}, judge=JUDGE)
    assert any(
        "may not be shown to the judge" in note
        for note in estimate_synthesis(RunConfig(synth=synth), synthesis_inputs(synth)).notes
    )
    abroad = synth.model_copy(update={"judge": "openai:http://judge.example/v1#qwen3"})
    made = estimate_synthesis(RunConfig(synth=abroad), synthesis_inputs(abroad))
    assert (made.dollars, made.worst_dollars, len(made.judge.hidden)) == (None, None, 1)
    assert "whatever openai:http://judge.example/v1#qwen3 asks" in "\n".join(estimate_lines(made))
    unknown = synth.model_copy(update={"judge": "gemini:gemini-9-flash"})
    with pytest.raises(ConfigError, match="gemini-9-flash"):
        estimate_synthesis(RunConfig(synth=unknown), synthesis_inputs(unknown))


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"synth\.documents .* does not exist"):
        synthesis_inputs(SynthConfig(documents=str(tmp_path / "none")))


def test_a_teacher_that_is_another_checkpoint_is_fetched():
    assert teacher_model(SynthConfig(teacher="google/gemma-4-31B-it")) == ModelConfig(base="google/gemma-4-31B-it")
    for name in ("base", TEACHER, "openai:http://localhost:8000/v1#qwen3", "gguf:a/b.gguf@c/d"):
        assert teacher_model(SynthConfig(teacher=name)) is None
