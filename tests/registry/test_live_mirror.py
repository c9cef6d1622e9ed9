"""A run's live mirror in MLflow, on a real sqlite store."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemma_ops import registry
from gemma_ops.registry import describe, profile, run_reader, sync
from gemma_ops.runs import digest, journal
from tests.helpers import patience
from tests.helpers import registry_runs as runs

ROOT = Path(__file__).parents[2]


def client(config):
    return profile.connect_mlflow(config.machine).client


def remembered(config):
    body = json.loads((Path(config.machine.runs) / config.name / "mlflow.json").read_text())
    return body[profile.locate_mlflow(config.machine).uri]


def everything(config):
    tracking = profile.connect_mlflow(config.machine)
    return tracking.client.search_runs([tracking.experiment_id], max_results=200)


def mirror(config, said=None):
    return registry.mirror(config.machine, say=(said if said is not None else []).append, every=0.05)


def named(config, name):
    return [run for run in everything(config) if run.info.run_name == name]


def test_a_run_stands_in_mlflow_with_its_steps_settings_curves_and_provenance(tmp_path):
    config = runs.config(
        tmp_path, train={"lora": {"rank": 8}, "learning_rate": 2e-4}, data={"path": str(tmp_path / "rows.jsonl")}
    )
    said: list[str] = []
    artifacts = runs.make(config, mirror(config, said))
    assert said == []
    here, state = client(config), remembered(config)
    parent = here.get_run(state["run_id"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["train.lora.rank"] == "8"
    assert parent.data.params["train.learning_rate"] == "0.0002"
    assert parent.data.params["model.base"] == "nano"
    assert not any(key.startswith("machine") for key in parent.data.params)
    assert parent.data.params["data.path"] == "rows.jsonl"
    assert not any(str(tmp_path) in value for value in parent.data.params.values())
    assert parent.data.tags["verdict"] == "pass"
    assert parent.data.tags["gemma_ops.config"] == state["config"]
    assert "tuned − base" in parent.data.tags["mlflow.note.content"]
    assert parent.data.metrics["train/loss"] == 0.2
    assert parent.data.metrics["support_desk/tuned/exact_match"] == 0.93
    assert parent.data.metrics["system/cpu_utilization_percentage"] >= 0
    children = {
        run.info.run_name: run
        for run in everything(config)
        if run.data.tags.get("mlflow.parentRunId") == state["run_id"]
    }
    assert set(children) == {"fetch", "prepare", "train", "quantize", "champion", "evaluate", "register"}
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    train = children["train"]
    assert train.data.params["lora.rank"] == "8"
    assert train.data.tags["gemma_ops.input.data"] == artifacts["prepare"].digest
    curve = here.get_metric_history(train.info.run_id, "loss")
    assert [(point.step, point.value) for point in sorted(curve, key=lambda point: point.step)] == [
        (n, 4.0 / n) for n in range(1, 21)
    ]
    assert {"support_desk/tuned/tokens_per_second", "support_desk/q4_0/tokens_per_second"} <= set(
        children["evaluate"].data.metrics
    )


def test_data_sets_carry_our_digests_not_those_of_mlflow(tmp_path):
    config = runs.config(tmp_path)
    artifacts = runs.make(config, mirror(config))
    inputs = client(config).get_run(remembered(config)["run_id"]).inputs.dataset_inputs
    found = {tag.value: one.dataset for one in inputs for tag in one.tags if tag.key == "sha256"}
    assert set(found) == {
        digest.of_file(artifacts["prepare"].path / "train.jsonl"),
        digest.of_file(artifacts["prepare"].path / "valid.jsonl"), "dd" * 32,
    }  # fmt: skip
    train = found[digest.of_file(artifacts["prepare"].path / "train.jsonl")]
    assert json.loads(train.profile) == {"num_rows": 30}


def test_the_files_a_reviewer_needs_are_there_byte_for_byte(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config, mirror(config))
    here, run_id = client(config), remembered(config)["run_id"]
    names = {item.path for item in here.list_artifacts(run_id)} | {
        item.path for item in here.list_artifacts(run_id, "data")
    }
    assert {
        "config.json",
        "report.html",
        "summary.md",
        "verdict.json",
        "card.md",
        "manifest.json",
        "data/card.md",
    } <= names
    stored = Path(here.download_artifacts(run_id, "report.html"))
    assert stored.read_bytes() == (tmp_path / "runs/support/evaluate/report.html").read_bytes()


def test_run_again_with_every_step_kept_nothing_is_added_and_mlflow_is_not_imported(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config, mirror(config))
    before = len(everything(config))
    (tmp_path / "config.json").write_text(config.model_dump_json(by_alias=True))
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from tests.helpers import registry_runs as runs
from gemma_ops import registry
from gemma_ops.config import RunConfig
config = RunConfig.model_validate_json(open({str(tmp_path / "config.json")!r}).read())
assert all(artifact.kept for artifact in runs.make(config, registry.mirror(config.machine)).values())
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert len(everything(config)) == before


def test_a_step_made_again_gets_a_run_of_its_own_and_kept_ones_do_not(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config, mirror(config))
    runs.make(config, mirror(config), redo=("evaluate", "register"))
    assert len(named(config, "evaluate")) == 2
    assert len(named(config, "train")) == 1
    assert len(named(config, "support")) == 1


def test_other_settings_get_another_parent_and_kept_steps_stay_where_they_are(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config, mirror(config), until="quantize")
    first = remembered(config)["run_id"]
    changed = runs.config(tmp_path, evaluate={"seed": 8})
    runs.make(changed, mirror(changed))
    second = remembered(changed)["run_id"]
    assert first != second
    assert len(named(changed, "train")) == 1
    parent = client(changed).get_run(second)
    assert parent.data.metrics["train/loss"] == 0.2
    assert parent.data.tags["verdict"] == "fail"


def interrupted(error: BaseException):
    def train(out, settings, machine, *, base, data):
        journal.record(step=1, loss=4.0)
        raise error

    return train


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("row 7: Jane Doe"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_interrupted_run_says_so_and_is_taken_up_again_in_the_same_run(tmp_path, error, status):
    config = runs.config(tmp_path)
    with pytest.raises(type(error)):
        runs.make(config, mirror(config), steps={"train": interrupted(error)})
    (parent,) = named(config, "support")
    assert (parent.info.status, named(config, "train")[0].info.status) == (status, status)
    assert type(error).__name__ in parent.data.tags["gemma_ops.error"]
    assert "Jane" not in json.dumps(parent.data.tags), "messages of other people's code may quote data"
    runs.make(config, mirror(config))
    (again,) = named(config, "support")
    assert (again.info.run_id, again.info.status) == (parent.info.run_id, "FINISHED")
    assert "gemma_ops.error" not in again.data.tags
    (train,) = named(config, "train")
    assert train.info.status == "FINISHED"
    assert len(client(config).get_metric_history(train.info.run_id, "loss")) == 21


def test_killed_in_the_middle_every_record_is_there_after_the_next_run(tmp_path):
    config = runs.config(tmp_path)
    (tmp_path / "config.json").write_text(config.model_dump_json(by_alias=True))
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from tests.helpers import registry_runs as runs
from gemma_ops import registry
from gemma_ops.runs import journal
from gemma_ops.config import RunConfig
def train(out, settings, machine, *, base, data):
    for step in range(1, 1000):
        journal.record(step=step, loss=1.0 / step)
        time.sleep(0.01)
config = RunConfig.model_validate_json(open({str(tmp_path / "config.json")!r}).read())
runs.make(config, registry.mirror(config.machine, every=0.05), steps={{"train": train}})
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    state = tmp_path / "runs/support/mlflow.json"
    while not (state.exists() and '"train.1.jsonl"' in state.read_text()):
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    logged = [
        record for record, _ in run_reader.records(tmp_path / "runs/support/logs/train.1.jsonl") if "loss" in record
    ]
    runs.make(config, mirror(config))
    (train,) = named(config, "train")
    assert len(named(config, "support")) == 1
    history = client(config).get_metric_history(train.info.run_id, "loss")
    assert len(history) == len(logged) + 20


def test_a_run_made_without_tracking_is_mirrored_when_it_is_run_again_with_it(tmp_path):
    off = runs.config(tmp_path, None)
    runs.make(off, registry.mirror(off.machine), until="evaluate")
    on = runs.config(tmp_path)
    runs.make(on, mirror(on), until="evaluate")
    (train,) = named(on, "train")
    assert len(client(on).get_metric_history(train.info.run_id, "loss")) == 20
    assert named(on, "support")[0].info.status == "FINISHED"


def test_what_somebody_deleted_in_mlflow_is_made_again(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config, mirror(config), until="prepare")
    tracking = profile.connect_mlflow(config.machine)
    state = remembered(config)
    tracking.client.delete_run(state["run_id"])
    runs.make(config, mirror(config), until="train")
    new = tracking.client.get_run(remembered(config)["run_id"])
    assert new.info.run_id != state["run_id"]
    assert new.info.status == "FINISHED"


def test_a_loss_that_is_not_a_number_is_shown_as_such(tmp_path):
    config = runs.config(tmp_path)

    def train(out, settings, machine, *, base, data):
        journal.record(step=1, loss=math.nan, grad_norm=math.inf, note="text", fine=True, deep={"a": {"b": 2}})
        return runs.train(out, settings, machine, base=base, data=data)

    runs.make(config, mirror(config), steps={"train": train}, until="train")
    (run,) = named(config, "train")
    history = client(config).get_metric_history(run.info.run_id, "loss")
    assert sum(math.isnan(point.value) for point in history) == 1
    assert run.data.metrics["deep/a/b"] == 2
    assert not {"note", "fine"} & set(run.data.metrics)


def test_a_defect_in_the_mirror_does_not_touch_the_run_and_is_told(tmp_path):
    """The store refuses everything: its tables were dropped after the run began."""
    config = runs.config(tmp_path)
    said: list[str] = []

    def prepare(out, settings, machine):
        database = tmp_path / "mlflow" / "mlflow.db"
        state = tmp_path / "runs/support/mlflow.json"
        patience.until(lambda: state.exists() and "fetch.1.jsonl" in state.read_text(), 30)
        with sqlite3.connect(database, timeout=20) as connection:
            connection.execute("drop table metrics")
            connection.execute("drop table tags")
        return runs.prepare(out, settings, machine)

    artifacts = runs.make(config, mirror(config, said), steps={"prepare": prepare}, until="train")
    assert artifacts["train"].metrics["loss"] == 0.2
    assert len(said) == 1
    assert "not mirrored" in said[0]
    assert (tmp_path / "runs/support/logs/mlflow-error.txt").read_text().startswith("Traceback")


def test_rows_that_may_not_leave_stay_when_mlflow_is_another_machine(tmp_path):
    config = runs.config(tmp_path, data={"privacy": "local_only"})
    runs.make(config, until="evaluate")
    assert describe.keeps_rows(tmp_path / "runs/support") is True
    open_ = runs.config(tmp_path, name="open")
    runs.make(open_, until="evaluate")
    assert describe.keeps_rows(tmp_path / "runs/open") is False
    assert describe.keeps_rows(tmp_path / "nowhere") is True, "what can't be seen is assumed to be private"


def test_pending_counts_what_mlflow_has_not_seen(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config, until="train")
    place = profile.locate_mlflow(config.machine)
    assert sync.pending_records(tmp_path / "runs/support", place) == 20 + 3 * 2
    runs.make(config, mirror(config), until="train")
    assert sync.pending_records(tmp_path / "runs/support", place) == 0


@pytest.mark.parametrize(
    ("settings", "flat"),
    [
        ({"a": {"b": 1, "c": None}, "d": [1, "x"], "e": "", "f": []}, {"a.b": "1", "d": '[1, "x"]'}),
        ({"text": "y" * 900}, {"text": "y" * 499 + "…"}),
    ],
)
def test_settings_as_parameters(settings, flat):
    assert run_reader.flatten(settings) == flat
