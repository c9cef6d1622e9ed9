"""The verb `draft` names what it needs, the plan says what a recording takes, and a summary says whether to use the
drafter."""

from __future__ import annotations

import json

import pytest

from gemma_ops.cli.run_summary import of_folder, summary_lines
from gemma_ops.config import DraftConfig
from gemma_ops.family import SIZES
from gemma_ops.planning.drafter_bytes import recorded_bytes, recorded_token_bytes
from tests.helpers.drafter_records import drafter_record


def test_a_run_without_a_drafter_has_none_to_tune(cli):
    done = cli("draft", "quickstart")
    assert done.returncode == 2
    assert "draft.base is none" in done.stderr
    assert "draft.base=stock" in done.stderr


def test_stock_of_a_folder_is_refused_before_the_first_step(cli, tmp_path):
    (tmp_path / "model").mkdir()
    done = cli("draft", "quickstart", "--set", "draft.base=stock", "--set", f"model.base={tmp_path / 'model'}")
    assert done.returncode == 2
    assert "whose drafter has no name" in done.stderr
    assert not (tmp_path / "runs" / "quickstart" / "fetch").exists()


@pytest.mark.parametrize(
    ("size", "numbers"),
    [("E2B", 1536 + 2 * 256 + 2 * 512), ("31B", 5376 + 2 * 16 * 256 + 2 * 4 * 512)],
)
def test_a_recorded_token_is_a_state_and_two_layers_of_keys_and_values(size, numbers):
    shape = SIZES[size].shape
    assert recorded_token_bytes(shape) == 2 * numbers
    settings = DraftConfig(rows=10, answer_tokens=50)
    assert recorded_bytes(shape, settings, 100.0) == 2 * numbers * 10 * 150


def test_the_plan_says_what_a_recording_takes(cli):
    without = cli("plan", "quickstart", check=True).stdout
    made = cli("plan", "quickstart", "--set", "draft.base=stock", check=True).stdout
    assert "the step draft records up to" in " ".join(made.split())
    assert "step draft" not in without


def test_a_summary_says_whether_to_use_the_drafter(tmp_path):
    folder = tmp_path / "mine"
    (folder / "draft").mkdir(parents=True)
    metrics = {"q8_0/tokens_per_step": 3.6, "q8_0/was": 1.4, "q8_0/speed": 1.5, "q8_0/equal": 1.0}
    body = {"step": "draft", "digest": "d" * 64, "metrics": metrics, "made": {"at": "2026", "seconds": 1.0}}
    (folder / "draft" / "artifact.json").write_text(json.dumps(body))
    (folder / "draft" / "drafter.json").write_text(drafter_record({"q8_0": ("s", True), "q4_0": ("t", False)}).text())
    lines = summary_lines(of_folder(folder))
    assert "  draft     dddddddddddd  q8_0/tokens_per_step 3.6  q8_0/was 1.4  q8_0/speed 1.5" in lines
    assert "drafter    q8_0: use it. routing: 1.50× (1.40 to 1.60) the tokens a second" in lines
    assert "drafter    q4_0: leave it off. routing: slower" in lines
