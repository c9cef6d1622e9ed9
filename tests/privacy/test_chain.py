"""One boundary around everything: of 1,000 rows, 30 of them `local_only`, spread over every way to Gemini, none of the
30 is in the request log of the service, in the store of answers, or in a log of ours."""

from __future__ import annotations

import json
import sqlite3

import pytest

from gemma_ops.config import EvaluateConfig, SynthConfig
from gemma_ops.config.evaluation import JudgeConfig
from gemma_ops.emulator import Emulator
from gemma_ops.emulator.planted import planted_judge
from gemma_ops.errors import BoundaryError
from gemma_ops.evaluation import evaluate_step, provenance
from gemma_ops.gemini import open_gemini
from gemma_ops.gemini.request import Request
from gemma_ops.judging import judge_run as judging
from gemma_ops.judging import pairs as comparing
from gemma_ops.runs import journal
from gemma_ops.synth import synthesize
from gemma_ops.targets import open_target
from gemma_ops.targets.run_models import RunModels
from tests.helpers.company import document, teach
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.evaluations import Echo, make_task

GEMINI = "gemini:gemini-3.8-flash@low"
SECRET = "zeppelin"
ROUTES = {"documents": (400, 12), "questions": (300, 9), "judged": (200, 6), "batched": (100, 3)}
"""Rows of each route to Gemini, and how many of them are local_only."""


def secret(route, number):
    """Whether a row is one of the private ones, spread evenly."""
    count, hidden = ROUTES[route]
    return number % (count // hidden) == 3 and number // (count // hidden) < hidden


def privacy(route, number):
    return "local_only" if secret(route, number) else "paid"


def word(route, number):
    return f"{SECRET}-{route}-{number}" if secret(route, number) else f"kite-{route}-{number}"


def answers(body):
    """Teacher, rival and judge in one: whoever reads the request can tell."""
    text = "\n".join(body.texts)
    if body.schema and "rows" in json.dumps(body.schema):
        return teach(body)
    if body.schema:
        return planted_judge(lambda *_: "tie")(body)
    return f"heard: {text[-40:]}"


@pytest.fixture
def emulator(monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Emulator(answers) as started:
        yield started


def synthesis(folder, machine, hidden):
    documents = folder / "documents.jsonl"
    with documents.open("w", encoding="utf-8") as file:
        for number in range(ROUTES["documents"][0]):
            text = f"{document(number % 20)}\nThe keyword is {word('documents', number)}, as everybody knows."
            row = {"id": f"d{number}", "text": text, "privacy": privacy("documents", number)}
            file.write(json.dumps(row) + "\n")
    out = folder / "runs" / f"s-{hidden}" / "synthesize.partial"
    out.mkdir(parents=True)
    settings = SynthConfig(
        teacher=GEMINI, privacy="paid", hidden=hidden, count={"document_qa": 400}, per_request=1, section_words=2000
    )
    metrics = synthesize(
        out,
        settings,
        machine,
        base=None,
        teacher=None,
        documents=documents,
        seeds=None,
        tools=None,
        tasks=(),
        source=None,
    )
    return metrics, out


def baseline(folder, machine, hidden):
    rows = [
        {
            "id": f"q{number}",
            "prompt": f"question {number} about {word('questions', number)}",
            "reference": f"a{number}",
            "privacy": privacy("questions", number),
        }
        for number in range(ROUTES["questions"][0])
    ]
    task = make_task(folder / f"t-{hidden}", rows=rows, privacy="paid")
    out = folder / "runs" / f"e-{hidden}" / "evaluate.partial"
    out.mkdir(parents=True)
    config = EvaluateConfig(targets=("tuned", GEMINI), hidden=hidden)
    tasks = evaluate_step.load_checked(config, (task,), None)
    targets = [Echo("tuned", 100), open_target(GEMINI, machine, run="e", use="evaluate")]
    facts = provenance.collect_provenance(targets, machine, RunModels(), data=None)
    evaluate_step.run_evaluation(out, config, tasks, targets, facts, batch=50)
    return json.loads((out / "verdict.json").read_text())


def judgement(folder, machine, *, private):
    for name in ("first", "second"):
        lines = [
            {
                "id": f"j{number}",
                "prompt": "Which word is meant?",
                "answer": f"The {name} says {word('judged', number)}",
                "privacy": privacy("judged", number),
            }
            for number in range(ROUTES["judged"][0])
            if private or not secret("judged", number)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pairs = comparing.of_files(folder / "first.jsonl", folder / "second.jsonl", "The word is right.")
    judges = judging.open_judges((GEMINI,), machine, run="j")
    return judging.judge_all(
        folder / f"judged-{private}", [pairs], judges, JudgeConfig(judges=(GEMINI,)), EvaluateConfig(), batch=50
    )


def batched(machine, *, private):
    requests = [
        Request(
            "gemini-3.8-flash",
            ({"role": "user", "content": f"What is {word('batched', number)}?"},),
            64,
            "evaluate",
            privacy=privacy("batched", number),
            id=f"b{number}",
        )
        for number in range(ROUTES["batched"][0])
        if private or not secret("batched", number)
    ]
    with open_gemini(machine, run="b") as gemini:
        return gemini.ask(requests)


@pytest.mark.slow
def test_none_of_the_private_rows_leaves_whatever_the_way(tmp_path, emulator, capfd):
    assert sum(count for count, _ in ROUTES.values()) == 1000
    marked = [(route, n) for route, (count, _) in ROUTES.items() for n in range(count) if secret(route, n)]
    assert len(marked) == 30
    machine = machine_for(emulator, tmp_path, concurrency=32, batch="never")
    by_batch = machine_for(emulator, tmp_path, batch="always")
    with journal.writing(tmp_path / "logs", "all"):
        # Where private rows are not set aside, every way refuses before it sends anything at all.
        for way in (
            lambda: synthesis(tmp_path, machine, "refuse"),
            lambda: baseline(tmp_path, machine, "refuse"),
            lambda: judgement(tmp_path, machine, private=True),
            lambda: batched(by_batch, private=True),
        ):
            with pytest.raises(BoundaryError) as refused:
                way()
            assert SECRET not in str(refused.value)
        assert emulator.log == []
        # Set aside, the other 970 go.
        metrics, out = synthesis(tmp_path, machine, "skip")
        verdict = baseline(tmp_path, machine, "skip")
        judged = judgement(tmp_path, machine, private=False)
        replies = batched(by_batch, private=False)
    shown = len(json.loads((out / "report.json").read_text())["hidden"]["names"])
    assert (shown, metrics["requests"]) == (12, 388)
    assert {result["target"]: result["hidden"] for result in verdict["results"]} == {"tuned": 0, GEMINI: 9}
    assert judged[0].body["pairs"] == 194
    assert len(replies) == 97
    assert {reply.tier for reply in replies} == {"batch"}

    sent = json.dumps([[entry.path, entry.body] for entry in emulator.log])
    for route in ROUTES:
        assert f"kite-{route}-0" in sent  # the way was taken
    assert SECRET not in sent
    kept = b"".join(path.read_bytes() for path in (tmp_path / "runs").glob("gemini*"))
    with sqlite3.connect(tmp_path / "runs" / "gemini.rehearsal.sqlite") as store:
        assert SECRET not in "\n".join(store.iterdump())
    assert SECRET.encode() not in kept
    logs = "".join(path.read_text() for path in (tmp_path / "logs").glob("*.jsonl"))
    assert '"gemini"' in logs
    assert SECRET not in logs
    assert SECRET not in "".join(capfd.readouterr())
