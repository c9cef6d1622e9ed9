"""`data check` says what a run will refuse or leave out: of all rows, with the tasks, and by its exit code."""

from __future__ import annotations

import json
import random

import pytest

WORDS = [
    "harbour",
    "ferry",
    "anchor",
    "crane",
    "tide",
    "lock",
    "quay",
    "barge",
    "buoy",
    "pilot",
    "mast",
    "rope",
    "sail",
    "deck",
    "hull",
    "keel",
]


def rows(count, seed=0):
    draw = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": f"{n}: " + " ".join(draw.choices(WORDS, k=12))},
                {"role": "assistant", "content": f"berth {n}"},
            ]
        }
        for n in range(count)
    ]


@pytest.fixture
def check(cli, tmp_path):
    def go(given, *arguments, **settings):
        (tmp_path / "rows.jsonl").write_text(
            "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in given)
        )
        sets = [part for key, value in settings.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
        done = cli("data", "check", "quickstart", "--rows", "0", *arguments, "--set", "data.path=rows.jsonl", *sets)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return go


def test_good_rows_pass(check):
    done = check(rows(40))
    assert done.returncode == 0
    assert "nothing to complain about" in done.stdout


def test_a_bad_row_behind_the_first_thousand_is_found_and_refused(check):
    done = check([*rows(1100), "{"])
    assert done.returncode == 3
    assert "rows.jsonl:1101" in done.stdout
    assert "the run would refuse: 1 of 1101 rows" in done.stdout
    assert "1,101 rows" in done.stdout
    first = check([*rows(1100), "{"], "--first", "100")
    assert first.returncode == 0
    assert "the first 100 rows" in first.stdout


def test_overlap_with_the_tasks_duplicates_and_contradictions_are_told(check, tmp_path):
    made = rows(30)
    folder = tmp_path / "task"
    folder.mkdir()
    asked = made[7]["messages"][0]["content"]
    (folder / "data.jsonl").write_text(json.dumps({"id": "q", "prompt": asked, "reference": "berth 7"}) + "\n")
    (folder / "task.yaml").write_text(
        "schema: gemma-ops/eval-task@1\nname: berths\nversion: 1\nprivacy: any\ndata: {path: data.jsonl}\n"
        "generation: {max_new_tokens: 8}\nmetrics: [exact_match]\nprimary: exact_match\n"
    )
    other = json.loads(json.dumps(made[3]))
    other["messages"][1]["content"] = "no berth"
    given = [*made, made[0], other]
    done = check(given, evaluate__tasks=f'["{folder}"]', evaluate__gates="[]")
    assert done.returncode == 3
    assert "the run would refuse: 1 training rows also stand in an evaluation task (1 in berths)" in done.stdout
    assert "1 rows train the very same as an earlier one" in done.stdout
    assert "1 rows ask what an earlier row asked and answer it differently" in done.stdout
    dropped = check(given, evaluate__tasks=f'["{folder}"]', evaluate__gates="[]", data__overlap="drop")
    assert dropped.returncode == 0
    assert "1 rows also stand in an evaluation task and would be left out" in dropped.stdout


def test_what_the_training_would_refuse_is_told(check):
    done = check(rows(12), data__valid_share=0, train__batch=16, train__max_steps="null", train__epochs=1)
    assert done.returncode == 3
    assert "one step long" in done.stdout
    pairs = check(rows(30), train__method="dpo")
    assert pairs.returncode == 3
    assert "the run would refuse" in pairs.stdout


def test_json_says_the_same(check):
    body = json.loads(check(["{", *rows(30)], "--json").stdout)
    assert body["checked"] == 31
    assert "1 of 31 rows" in body["refusals"][0]["what"]


def test_no_task_is_needed_to_look_at_data(check):
    assert check(rows(30), evaluate__tasks="[]", evaluate__gates="[]").returncode == 0


def test_pages_and_copies_into_folders_that_cannot_be_written_are_told(check, cli):
    done = check(rows(30), "--html", "/proc/nowhere/page.html")
    assert done.returncode == 5
    assert "can't be written" in done.stderr
    done = cli("init", "quickstart", "--to", "/proc/nowhere")
    assert done.returncode == 5
    assert "can't be written" in done.stderr
