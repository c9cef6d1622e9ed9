"""Every failure a person can cause ends in one clear message with the fix, the right exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from gemma_ops.nano import WEIGHTS, tickets
from tests.helpers import patience

QUICK = [
    "--set",
    "train.max_steps=2",
    "--set",
    "train.batch=4",
    "--set",
    "train.micro_batch=4",
    "--set",
    "machine.mlflow=null",
    "--set",
    "data.near_duplicates=null",
]


def jsonl(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.fixture
def rows():
    return tickets.training_rows(40, seed=5)


def refused(result, code, *parts):
    """The command ended with `code` and its last two lines are the error and the way out."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    tail = result.stderr[result.stderr.index("error: ") :]
    assert "\ntry: " in tail
    for part in parts:
        assert part in tail, tail
    return tail


def test_unknown_key_and_wrong_type(cli, tmp_path):
    (tmp_path / "c.yaml").write_text("train:\n  epoch: 3\n  batch: many\n")
    refused(
        cli("run", "c.yaml"), 2, "c.yaml:2: train.epoch: unknown key, did you mean epochs?", "c.yaml:3: train.batch"
    )


def test_missing_files(cli):
    refused(cli("run", "nowhere.yaml"), 2, "nowhere.yaml", "quickstart")
    refused(
        cli("train", "quickstart", "--set", "data.path=gone.jsonl", *QUICK), 2, "data.path 'gone.jsonl' does not exist"
    )
    refused(cli("train", "quickstart", "--set", "recipe=lorra"), 2, "did you mean lora?")
    refused(cli("train", "quickstart", "--set", "evaluate.tasks=[support_dsk]"), 2, "did you mean support_desk?")


def test_empty_data_set(cli, tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    refused(cli("train", "quickstart", "--set", "data.path=rows.jsonl", *QUICK), 3, "rows.jsonl")


def test_broken_json_in_line_7(cli, tmp_path, rows):
    jsonl(tmp_path / "rows.jsonl", [*rows[:6], '{"messages": [', *rows[6:]])
    refused(cli("train", "quickstart", "--set", "data.path=rows.jsonl", *QUICK), 3, "rows.jsonl:7", "rejected.jsonl")
    kept = (tmp_path / "runs" / "quickstart" / "prepare.partial" / "rejected.jsonl").read_text()
    assert json.loads(kept.splitlines()[0])["line"] == 7


def test_a_row_with_no_assistant_turn(cli, tmp_path, rows):
    jsonl(tmp_path / "rows.jsonl", [*rows, {"messages": [{"role": "user", "content": "hello?"}]}])
    refused(cli("train", "quickstart", "--set", "data.path=rows.jsonl", *QUICK), 3, "rows.jsonl:41", "assistant")


@pytest.mark.slow
def test_a_2_gb_line_is_not_read_into_memory(cli, tmp_path, rows):
    """A sparse file: two gigabytes of zeros in one line, then good rows. Memory is capped well below the line."""
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.seek(2 << 30)
        file.write(b"\n" + "".join(json.dumps(row) + "\n" for row in rows).encode())
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); from gemma_ops.cli import "
        "main; sys.argv = ['gemma-ops', *sys.argv[1:]]; main()"
    )
    command = [sys.executable, "-c", code, "train", "quickstart", "--set", "data.path=rows.jsonl", *QUICK]
    result = patience.run(command, cwd=tmp_path, seconds=300)
    refused(result, 3, "rows.jsonl:1", "max_line_mb")


def test_training_rows_that_stand_in_the_evaluation_set(cli, tmp_path, rows):
    stolen = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["reference"]}]}
        for row in tickets.test_rows(3, 0)
    ]
    task = tmp_path / "eval" / "mine"
    task.mkdir(parents=True)
    jsonl(task / "data.jsonl", tickets.test_rows(10, 0))
    (task / "task.yaml").write_text(
        "schema: gemma-ops/eval-task@1\nname: mine\nversion: 1\ndata: {path: data.jsonl}\ngeneration: {max_new_tokens: "
        "32}\nmetrics: [{id: exact_match}]\nprimary: exact_match\n"
    )
    jsonl(tmp_path / "rows.jsonl", [*rows, *stolen])
    arguments = [
        "train",
        "quickstart",
        "--set",
        "data.path=rows.jsonl",
        "--set",
        "evaluate.tasks=[mine]",
        "--set",
        "data.overlap=refuse",
        *QUICK,
    ]
    refused(cli(*arguments), 3, "mine", "data.overlap")


def test_a_model_folder_with_missing_shards(cli, tmp_path):
    folder = shutil.copytree(WEIGHTS, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    )
    refused(cli("train", "quickstart", "--set", "model.base=./model", *QUICK), 4, "lacks 2 of 2 weight files")


@pytest.mark.slow
def test_disk_full_during_a_save(cli, tmp_path):
    """A file system of 700 kB: the adapter and its first checkpoint don't fit. With more space the same command goes
    on."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small file system can't be mounted here: needs root")
    arguments = ["train", "quickstart", *QUICK, "--set", "data.max_rows=60", "--set", f"machine.runs={small}"]
    try:
        refused(cli(*arguments), 5, "the disk is full", "finished steps are kept")
        assert not (small / "quickstart" / "train").exists()
        assert (small / "quickstart" / "fetch" / "artifact.json").exists()
        subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
        again = cli(*arguments)
        assert again.returncode == 0, again.stderr
        assert "kept" in again.stderr
    finally:
        subprocess.run(["umount", str(small)], check=False)


def _start(tmp_path, *arguments):
    """A child that can be interrupted, even where the tests run in the background and their children ignore it."""
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from gemma_ops.cli import main\n"
        "sys.argv = ['gemma-ops', *sys.argv[1:]]\n"
        "main()"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(path, child):
    for _ in range(2400):
        if path.exists():
            return
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    raise AssertionError(f"{path} never appeared")


@pytest.mark.slow
def test_ctrl_c_and_two_runs_in_one_folder(cli, tmp_path):
    arguments = [
        "train",
        "quickstart",
        *QUICK,
        "--set",
        "train.max_steps=4000",
        "--set",
        "train.save_every=1",
        "--set",
        "train.batch=4",
    ]
    child = _start(tmp_path, *arguments)
    _wait_for(tmp_path / "runs" / "quickstart" / "train.partial" / "checkpoints" / "checkpoint-1" / "complete", child)
    refused(cli(*arguments), 8, f"in use by process {child.pid}", "--set name=")
    child.send_signal(signal.SIGINT)
    _, stderr = patience.finish(child, 60)
    assert child.returncode == 130
    assert "Traceback" not in stderr
    assert "error: interrupted" in stderr
    assert "try: run the same command again" in stderr
    assert not (tmp_path / "runs" / "quickstart" / "train").exists()
    assert list((tmp_path / "runs" / "quickstart" / "train.partial" / "checkpoints").glob("checkpoint-*/complete"))


@pytest.mark.parametrize("answers", [False, True])
def test_an_mlflow_server_that_is_down(cli, answers):
    """Refused, or accepting and silent: either way the command ends in seconds, before anything is computed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:
            listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = cli("run", "quickstart", "--set", f"machine.mlflow={url}", seconds=30)
    refused(result, 6, url, "machine.mlflow")


def test_a_folder_that_is_not_writable_is_said(cli, tmp_path):
    (tmp_path / "runs").write_text("a file")
    refused(cli("run", "quickstart", "--set", "machine.mlflow=null"), 5, "can't be written")


def test_no_environment_leaks_into_the_message(cli, tmp_path):
    result = cli("run", "quickstart", "--set", "data.path=gone.jsonl", env={"GEMINI_API_KEY": "very-secret"})
    assert "very-secret" not in result.stderr + result.stdout
    assert os.environ.get("GEMINI_API_KEY") is None
