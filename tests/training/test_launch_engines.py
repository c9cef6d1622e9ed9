"""torchrun and Ray start the processes of a training; the run that asked follows, replaces who dies, and tells what
failed."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from gemma_ops.config import LaunchConfig, Machine, RunConfig, TrainConfig
from gemma_ops.errors import ConfigError, MachineError, OpsError
from gemma_ops.runs import journal
from gemma_ops.training import train
from gemma_ops.training.arguments import sft_arguments
from gemma_ops.training.launch import join, launch_checks, launch_engines, strategy
from gemma_ops.training.launch.job import TrainingJob, WorkerError
from tests.helpers import patience
from tests.helpers.launched import STEADY, adapter, apart, base_into, curve, kill, machine, rows_into, wait_for, workers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    return {"base": base_into(folder / "e2b", "e2b"), "data": rows_into(folder / "data"), "folder": folder}


@pytest.fixture(scope="module")
def one(there):
    out = there["folder"] / "one"
    out.mkdir()
    metrics = train(out, TrainConfig(**STEADY), machine(), base=there["base"], data=there["data"])
    return out, metrics


def follow(there, name, *, killed, **launch):
    """Train in two processes; with `killed`, one of them is killed after the checkpoint of the second step."""
    out, found = there["folder"] / name, {}
    out.mkdir()
    here = Path(os.path.relpath(out))  # as `runs/` is
    records = []

    def run():
        try:
            with journal.sending(records.append):
                found["metrics"] = train(
                    here, TrainConfig(**STEADY), machine(processes=2, **launch), base=there["base"], data=there["data"]
                )
        except BaseException as error:
            found["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    if killed:
        job = out.with_name(f"{name}.workers") / "job.json"
        saved = out / "checkpoints" / "checkpoint-2" / "complete"
        wait_for(lambda: found or (saved.exists() and workers(job)))
        if not found:
            kill(workers(job)[-1])
    assert patience.joined(thread, 180)
    if "error" in found:
        raise found["error"]
    assert killed == any(record.get("event") == "restarted" for record in records)
    return out, found["metrics"], records


def same(out, metrics, one):
    truth, reference = one
    assert curve(out)[0] == pytest.approx(curve(truth)[0], rel=1e-5)
    assert apart(adapter(out), adapter(truth)) < 1e-3
    assert metrics["loss"] == pytest.approx(reference["loss"], rel=1e-5)
    assert metrics["steps"] == reference["steps"]


def test_torchrun_reaches_the_loss_of_one_process_though_a_worker_is_killed(there, one):
    out, metrics, records = follow(there, "torchrun", killed=True, engine="torchrun")
    same(out, metrics, one)
    assert not (out / "checkpoints").exists()
    steps = [record["step"] for record in records if "loss" in record]
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]
    assert len(steps) <= 6 + STEADY["save_every"] + 1  # what the kill cost: the steps since the last checkpoint


def test_ray_reaches_it_too(there, one):
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    out, metrics, _ = follow(there, "ray", killed=True, engine="ray")
    same(out, metrics, one)


def pretend(monkeypatch, there, name, does):
    """A training whose launcher is a few lines of Python, given the job as `job`: what the run makes of what it
    reports."""
    out = there["folder"] / name
    out.mkdir()
    head = "import sys; from pathlib import Path; from gemma_ops.training.launch.job import TrainingJob as Job\n"
    script = f"{head}job = Job.read(Path(sys.argv[1]))\n{does}"
    monkeypatch.setattr(
        launch_engines, "launch_command", lambda launch, file, name: [sys.executable, "-c", script, str(file)]
    )
    return train(
        out, TrainConfig(**STEADY), machine(engine="torchrun", processes=2), base=there["base"], data=there["data"]
    )


def test_what_a_worker_refuses_is_told_as_if_it_had_happened_here(there, monkeypatch):
    does = "from gemma_ops.errors import ConfigError\njob.fail(ConfigError('no_such_key is unknown', 'take it out'), 1)"
    with pytest.raises(ConfigError, match="no_such_key is unknown") as told:
        pretend(monkeypatch, there, "refused", f"{does}\nimport time; time.sleep(60)")  # and is ended at once
    assert told.value.fix == "take it out"


def test_a_defect_in_a_worker_comes_with_its_traceback(there, monkeypatch):
    with pytest.raises(WorkerError, match=r"process 1 of the training failed:\n(?s:.)*ValueError: odd"):
        pretend(monkeypatch, there, "odd", "job.fail(ValueError('odd'), 1)")


def test_workers_that_die_too_often_end_the_training(there, monkeypatch):
    with pytest.raises(
        MachineError, match=r"ended early \(exit code 3, launch.restarts is 3\): see the logs in /.*dying.work"
    ):
        pretend(monkeypatch, there, "dying", "sys.exit(3)")


def found(launch=None, train=None, **more):
    config = RunConfig(launch=launch or {}, train=train or {}, machine=more)
    return [error.what for error in launch_checks.launch_problems(config.train, config.launch, config.machine)]


@pytest.mark.parametrize(
    ("launch", "settings", "problem"),
    [
        ({"processes": 2}, {}, "launch.engine=local is one process, and launch asks for 2"),
        ({"strategy": "fsdp"}, {}, "launch.strategy=fsdp needs more than one process"),
        ({"engine": "torchrun", "strategy": "fsdp"}, {}, "launch.strategy=fsdp needs more than one process"),
        ({"engine": "torchrun", "nodes": 2}, {}, "launch.rendezvous does not say where they meet"),
        (
            {"engine": "torchrun", "processes": 2, "strategy": "fsdp"},
            {"optimizer": "adamw_8bit"},
            "keeps its moments in blocks that FSDP can't cut",
        ),
        ({"engine": "torchrun", "processes": 2}, {"method": "dpo"}, "train.method=dpo trains in one process"),
    ],
)
def test_what_a_launch_needs_is_told_before_it_starts(launch, settings, problem):
    assert any(problem in what for what in found(launch, settings, device="cpu"))
    with pytest.raises(OpsError, match=r"launch|train"):
        launch_checks.refuse_launch(TrainConfig(**settings), Machine(device="cpu", launch=LaunchConfig(**launch)))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert found({"engine": "torchrun", "processes": 2}) == ["launch.processes is 2, one a GPU, and this machine has 1"]
    assert found({"engine": "torchrun", "processes": 2}, device="cpu") == []


def test_ray_that_is_not_installed_is_told(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    assert "launch.engine is ray, and Ray is not installed" in found({"engine": "ray"}, device="cpu")


def test_a_process_that_somebody_else_started_as_one_of_several_is_refused(there, monkeypatch):
    """`torchrun -m gemma_ops train`: two trainings into one folder, each alone."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="somebody else's launcher started this process as one of several"):
        train(there["folder"], TrainConfig(), machine(), base=there["base"], data=there["data"])


def test_workers_inherit_nothing_of_another_launcher_and_share_the_cores():
    launch = LaunchConfig(engine="torchrun", processes=2)
    given = {"RANK": "3", "WORLD_SIZE": "4", "ACCELERATE_USE_FSDP": "1", "PATH": "/bin"}
    made = launch_engines.environment(launch, 8, given)
    assert not {"RANK", "WORLD_SIZE", "ACCELERATE_USE_FSDP"} & made.keys()
    assert made["OMP_NUM_THREADS"] == "4"
    assert made["GLOO_SOCKET_IFNAME"] == "lo"
    assert made["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"  # or new workers look for dead ones


def test_the_keys_of_a_launch_reach_torchrun():
    launch = LaunchConfig(engine="torchrun", processes=4, nodes=2, restarts=5, rendezvous="one.example:29500")
    line = launch_engines.launch_command(launch, Path("job.json"), "x")
    assert line[1:3] == ["-m", "torch.distributed.run"]
    assert line[-1] == "job.json"
    asked = {"--nnodes=2", "--nproc-per-node=4", "--max-restarts=5", "--rdzv-endpoint=one.example:29500", "--rdzv-id=x"}
    assert asked <= set(line)
    assert not any(word.startswith("--local-addr") for word in line)  # others must reach this machine
    assert "GLOO_SOCKET_IFNAME" not in launch_engines.environment(launch, 8, {})


@pytest.mark.parametrize("key", sorted(strategy.REFUSED))
def test_what_a_launch_decides_is_not_taken_from_elsewhere(key, tmp_path):
    """Among them DeepSpeed, whose ZeRO-3 with reentrant checkpointing trains on other gradients and saves nothing."""
    settings = TrainConfig(trl={key: "x"})
    with pytest.raises(ConfigError, match=f"train.trl.{key} is set by gemma-ops: "):
        sft_arguments(settings, tmp_path, has_valid=False, rate=1e-3, device="cpu")


@pytest.mark.parametrize("launch", [{}, {"engine": "ray", "nodes": 2}, {"engine": "torchrun", "nodes": 2}])
def test_there_is_nothing_to_join_but_torchrun_on_several_machines(launch):
    with pytest.raises(ConfigError, match="nothing to join"):
        join.join_training(RunConfig(launch=launch), say=print, patience=0)


def test_a_machine_joins_the_training_that_lives(there):
    """Not one that ended, nor one whose run was killed: its mark of life stands still."""
    logs = there["folder"] / "run" / "logs"
    for name in ("old", "killed", "now"):
        (logs / f"{name}.workers").mkdir(parents=True)
        here = machine(engine="torchrun", nodes=2, rendezvous="127.0.0.1:1")
        TrainingJob(
            logs / f"{name}.workers", there["folder"], TrainConfig(), here, there["base"], there["data"]
        ).write()
    jobs = {name: TrainingJob.read(logs / f"{name}.workers" / "job.json") for name in ("old", "killed", "now")}
    for job in jobs.values():
        job.mark()
    jobs["old"].end()
    with pytest.raises(MachineError, match="no training began"):
        join._await(logs, 0.1)
    stop = threading.Event()

    def live():
        while not stop.wait(0.05):
            jobs["now"].mark()
            jobs["old"].mark()

    thread = threading.Thread(target=live)
    thread.start()
    try:
        assert join._await(logs, 30.0).folder == jobs["now"].folder
    finally:
        stop.set()
        thread.join()
