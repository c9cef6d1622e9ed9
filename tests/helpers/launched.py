"""Trainings for the tests of `training/launch`: small rows, twin bases, and a pair of processes that does many in one
start.

A start of two processes costs some ten CPU seconds, all of it imports, so that tests share them: `pair` gives a list of
jobs to one pair, which is this very file under torchrun. `python -m torch.distributed.run … tests/helpers/launched.py
plan.json`
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from gemma_ops.config import LaunchConfig, Machine, TrainConfig
from gemma_ops.runs import digest
from gemma_ops.training.launch import launch_engines
from gemma_ops.training.launch.job import TrainingJob
from tests.helpers import patience

STEADY = {
    "weights": "fp32",
    "learning_rate": 2e-3,
    "max_steps": 6,
    "batch": 8,
    "micro_batch": 2,
    "packing": False,
    "max_length": 256,
    "schedule": "constant",
    "warmup_share": 0.0,
    "samples": 0,
    "checkpointing": "none",
    "save_every": 2,
}
TWO = {"engine": "torchrun", "processes": 2}


def rows_into(folder):
    """48 training rows and 8 to validate."""
    from gemma_ops.nano import tickets

    made = [
        {"id": digest.of_json(row)[:16], **row, "source": "test:1", "privacy": "any", "group": "g"}
        for row in tickets.training_rows(56, 1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made[:48]))
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made[48:]))
    return folder


def base_into(folder, kind):
    """A base as the step `fetch` leaves it: nano's weights, or a twin's."""
    from gemma_ops.nano import WEIGHTS
    from tests.helpers.tiny_models import save

    folder.mkdir(parents=True)
    if kind == "nano":
        (folder / "weights").symlink_to(WEIGHTS)
    else:
        save(kind, folder / "weights")
    (folder / "model.json").write_text(json.dumps({"id": kind, "revision": None, "size": None, "files": {}}))
    return folder


def machine(**launch):
    return Machine(device="cpu", workers=1, launch=LaunchConfig(**launch))


def curve(out):
    """Losses and gradient norms, a step each."""
    records = [json.loads(line) for line in (out / "record.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    return [record["loss"] for record in steps], [record["grad_norm"] for record in steps]


def adapter(out):
    from safetensors.torch import load_file

    return load_file(out / "adapter" / "adapter_model.safetensors")


def apart(one, other):
    """The largest difference of two adapters, relative to the largest value."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one) / max(
        value.abs().max().item() for value in one.values()
    )


def pair(folder, entries):
    """Do `entries` in two processes; their jobs, by name. An entry is {name, base, data, …} as `_do` reads it."""
    plan = []
    for entry in entries:
        place = folder / f"{entry['name']}.job"
        out = entry.pop("out", folder / entry["name"])
        place.mkdir(parents=True)
        out.mkdir(exist_ok=True)
        settings = TrainConfig(**{**STEADY, **entry.pop("settings", {})})
        here = machine(**TWO, strategy=entry.pop("strategy", "ddp"))
        teacher = entry.pop("teacher", None)
        TrainingJob(place, out, settings, here, entry.pop("base"), entry.pop("data"), teacher).write()
        plan.append({"file": str(place / "job.json"), **entry})
    (folder / "plan.json").write_text(json.dumps(plan))
    launch = LaunchConfig(engine="torchrun", processes=2, restarts=0)
    command = [sys.executable, *launch_engines.torchrun_command(launch, "pair"), __file__, str(folder / "plan.json")]
    done = patience.run(command, env=launch_engines.environment(launch, 2), seconds=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return {entry["name"]: TrainingJob.read(Path(entry["file"])) for entry in plan}


def result(job):
    """The folder of a job of a pair that went well."""
    if job.error():
        raise job.error()
    return job.out


def wait_for(condition, seconds=90.0, every=0.05):
    return patience.until(condition, seconds, every=every)


def workers(job_file):
    """Process numbers of the workers of a job by rank: the first that writes each log, whoever started it."""
    logs = {str(path.resolve()): path for path in sorted(job_file.parent.glob("worker-*.log"))}
    found = {}
    for fd in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            log, pid = str(fd.readlink()), int(fd.parts[2])
        except OSError:
            continue
        if log in logs:
            found[log] = min(pid, found.get(log, pid))
    return [found[log] for log in logs if log in found]


def kill(pid):
    os.kill(pid, signal.SIGKILL)


class Stop(Exception):  # noqa: N818 - no error
    """Ends a training as a kill would, right after a checkpoint."""


def stop_at(step, patch=setattr):
    """Make trainings in this process stop after the checkpoint of a step."""
    from gemma_ops.training.follow import Follow

    saved = Follow.on_save

    def save(self, args, state, control, **kwargs):
        saved(self, args, state, control, **kwargs)
        if state.global_step == step:
            raise Stop

    patch(Follow, "on_save", save)


def _do(entry, job, rank):
    """One job of a pair's plan, with what its entry says to break first; everything is put right afterwards."""
    import accelerate.state
    import pytest

    from gemma_ops.training import sft, train_here

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))]:
            del os.environ[name]  # accelerate's, from the training before
        if "stop" in entry:
            stop_at(entry["stop"], patch.setattr)
        if entry.get("break") == "use_cpu":
            patch.delenv("ACCELERATE_USE_CPU")
            made = sft.sft_arguments
            patch.setattr(sft, "sft_arguments", lambda *args, **kwargs: made(*args, **{**kwargs, "device": "other"}))
        if entry.get("break") == "fsdp":
            patch.setattr(accelerate.state.AcceleratorState, "__init__", _PLAIN[0])
        if entry.get("break") == "storage":
            load = sft.load_model
            patch.setattr(sft, "load_model", lambda *args, **kwargs: load(*args, **{**kwargs, "sharded": False}))
        if entry.get("break") == "saving":
            patch.setattr(sft, "full_state", lambda model: {})
        try:
            metrics = train_here(job.out, job.settings, job.machine, base=job.base, data=job.data, teacher=job.teacher)
            if rank == 0:
                job.finish(metrics)
        except Stop:
            pass
        except Exception as error:
            job.fail(error, rank)


_PLAIN = []


def _main(plan):
    import accelerate.state

    from gemma_ops.training.launch import worker
    from gemma_ops.training.launch.world import barrier

    _PLAIN.append(accelerate.state.AcceleratorState.__init__)
    entries = json.loads(Path(plan).read_text())
    jobs = [TrainingJob.read(Path(entry["file"])) for entry in entries]
    leave = worker.join_group(jobs[0])
    for entry, job in zip(entries, jobs, strict=True):
        _do(entry, job, int(os.environ["RANK"]))
        barrier()
    leave()


if __name__ == "__main__":
    _main(sys.argv[1])
