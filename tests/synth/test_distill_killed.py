"""A distillation through the emulator, killed at random moments: the same rows, nothing paid twice, the cap never
passed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from gemma_ops.config.loading import read_run_config
from gemma_ops.emulator import Emulator
from gemma_ops.gemini.ledger import SpendingLedger
from gemma_ops.gemini.prices import nanodollars
from gemma_ops.recipes.finding import find_recipe
from gemma_ops.runs.artifact import verify_artifact
from tests.helpers import patience
from tests.helpers.company import teach, write_documents
from tests.helpers.emulated import KEY, TERMS

CAP = 0.5


def configuration(folder, url):
    """A configuration whose run asks the emulator, with everything below `folder`."""
    folder.mkdir()
    settings = {
        "name": "distilled",
        "recipe": "distill",
        "model": {"base": "nano"},
        "synth": {
            "documents": "../documents",
            "teacher": "gemini:gemini-3.8-flash@low",
            "privacy": "any",
            "count": {"document_qa": 100, "evolve": 20, "preferences": 20},
            "per_request": 2,
        },
        "data": {"format": "messages", "privacy": "any", "valid_share": 0.2},
        "evaluate": {"tasks": ["support_desk"]},
        "machine": {
            "runs": str(folder / "runs"),
            "mlflow": None,
            "gemini": {
                "base_url": url, "accept_terms": TERMS, "tier": "paid", "budget_usd": CAP, "concurrency": 4,
            },
        },
    }  # fmt: skip
    path = folder / "distilled.yaml"
    path.write_text(json.dumps(settings))
    return path


def start(path):
    return subprocess.Popen(
        [sys.executable, "-m", "gemma_ops", "synth", "run", str(path)],
        env={**os.environ, "GEMINI_API_KEY": KEY},
        cwd=path.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(path):
    process = start(path)
    out, err = patience.finish(process, 120)
    assert process.returncode == 0, err
    return out


def spent(path):
    ledger = SpendingLedger(
        path.parent / "runs" / "gemini.rehearsal.sqlite", run="distilled", run_cap=None, project_cap=None
    )
    try:
        return ledger.spent()
    finally:
        ledger.close()


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_rows_and_pays_for_nothing_twice(tmp_path):
    """The main process is killed with SIGKILL at random moments of its requests, three times; then it is run to the
    end.

    At most 30 of the 80 requests are waited for, so that even with what a slow machine sends after each wait the last
    kill still meets a run that has something to ask.
    """
    write_documents(tmp_path / "documents", 20)
    seed = random.randrange(10**6)
    draw, told = random.Random(seed), [f"seed {seed}"]
    with Emulator(teach, seed=5, latency=0.12) as calm:
        whole = configuration(tmp_path / "whole", calm.url)
        finish(whole)
    with Emulator(teach, seed=5, latency=0.12) as emulator:
        path = configuration(tmp_path / "killed", emulator.url)
        for _ in range(3):
            process, before = start(path), len(emulator.log)
            wanted = draw.randint(1, 10)
            patience.until(
                lambda: len(emulator.log) - before >= wanted or process.poll() is not None,  # noqa: B023
                60,
                of=process.pid,
                every=0.005,
            )
            time.sleep(draw.uniform(0, 0.15))
            assert process.poll() is None, (told, process.communicate())
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            told.append(f"after {len(emulator.log) - before} requests")
            assert not (path.parent / "runs" / "distilled" / "synthesize").exists()
            paid = spent(path)
            assert paid.total <= nanodollars(CAP), told
        finish(path)
        log, bill = emulator.log, emulator.billed()
    steps = [folder.parent / "runs" / "distilled" / "synthesize" for folder in (whole, path)]
    for name in ("rows.jsonl", "preferences.jsonl", "rejected.jsonl", "replies.jsonl", "report.json", "card.md"):
        assert (steps[0] / name).read_bytes() == (steps[1] / name).read_bytes(), (name, told)
    for step in steps:
        verify_artifact(step)
    asked = Counter(entry.digest for entry in log)
    assert max(asked.values()) == 1, told
    assert len(bill) == len(log) == len(calm.log), told
    # The ledger knows each request the service would bill, and agrees with it to the token.
    paid = spent(path)
    assert (paid.requests, paid.reserved, paid.lost) == (len(bill), 0, 0), told
    assert paid.settled == spent(whole).settled
    usage = json.loads((steps[1] / "report.json").read_text())["usage"]
    assert usage["requests"] == len(bill)
    assert usage["thought_tokens"] == sum(entry.usage.get("thoughtsTokenCount", 0) for entry in bill)
    assert usage["dollars"] == pytest.approx(paid.settled / 1e9, abs=1e-9)
    assert paid.settled <= nanodollars(CAP)


@pytest.mark.slow
def test_the_recipe_carries_the_rows_into_training(cli, tmp_path):
    write_documents(tmp_path / "documents", 8)
    with Emulator(teach) as emulator:
        path = configuration(tmp_path / "run", emulator.url)
        few = {"synth.count.document_qa": 32, "train.max_steps": 2, "train.weights": "fp32", "train.max_length": 128}
        sets = [part for key, value in few.items() for part in ("--set", f"{key}={value}")]
        result = cli("train", path, *sets, env={"GEMINI_API_KEY": KEY, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run" / "runs" / "distilled"
    made = [json.loads((run / step / "artifact.json").read_text())["metrics"] for step in ("synthesize", "prepare")]
    assert made[0]["rows"] == made[1]["rows"] > 20
    assert (run / "train" / "adapter").is_dir()
    report = json.loads((run / "prepare" / "report.json").read_text())
    assert [item["family"] for item in report["teachers"]] == ["gemini"]
    assert report["split"]["groups"] == 8
    assert {task["name"] for task in report["overlap"]["tasks"]} >= {"support_desk"}


def test_the_recipe_names_its_steps():
    names = {
        *("fetch", "teacher", "synthesize", "prepare", "train"),
        *("merge", "quantize", "stock_drafter", "draft", "champion", "evaluate", "register"),
    }
    assert set(find_recipe("distill").steps) == names


def test_the_plan_of_a_configuration_asks_nothing_and_says_what_it_may_cost(cli, tmp_path):
    write_documents(tmp_path / "documents", 20)
    with Emulator(teach) as emulator:
        path = configuration(tmp_path / "run", emulator.url)
        result = cli("synth", "plan", path, "--json")
        assert result.returncode == 0, result.stderr
        assert emulator.log == []
    body = json.loads(result.stdout)
    assert body["coverage"]["documents"] == [20, 20]
    assert body["requests"] == 50 + 20 + 10
    assert 0 < body["dollars"] < body["worst_dollars"]
    assert not (tmp_path / "run" / "runs").exists()


def test_documents_count_from_the_folder_of_the_configuration(tmp_path):
    write_documents(tmp_path / "documents", 1)
    path = configuration(tmp_path / "run", "http://127.0.0.1:1")
    assert read_run_config([path]).synth.documents == str(tmp_path / "documents")
