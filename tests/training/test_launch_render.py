"""`launch render`: the text of every form, word for word, and what its own tools say of it where they are installed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import gemma_ops
from gemma_ops.cli import app

GOLDEN = Path(__file__).parents[1] / "golden"
JOBS = {
    "one": ["e2b-lora", "--set", "launch.gpu=l4"],
    "many": [
        "31b-qlora", "--set", "launch.nodes=2", "--set", "launch.processes=4", "--set", "launch.strategy=fsdp",
        "--set", "launch.gpu=h100", "--set", "launch.hours=5", "--set", "launch.image=registry.example/gemma-ops:1",
    ],
}  # fmt: skip
FORMS = ("torchrun", "ray", "skypilot", "slurm", "kubeflow")


def render(form, *arguments):
    done = CliRunner().invoke(app, ["launch", "render", *arguments, "--as", form])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("form", "job"), [(form, job) for form in FORMS for job in JOBS if (form, job) != ("kubeflow", "one")]
)
def test_the_text_is_word_for_word_what_was_reviewed(form, job):
    made = render(form, *JOBS[job]).replace(gemma_ops.__version__, "VERSION")
    file = GOLDEN / f"launch-{job}-{form}.txt"
    assert file.exists(), f"review this, and keep it as {file}:\n{made}"
    assert made == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("form", ["torchrun", "ray", "slurm"])
def test_scripts_are_scripts(form, job):
    done = subprocess.run(["bash", "-n"], input=render(form, *JOBS[job]), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_slurm_asks_what_the_plan_says():
    text = render("slurm", *JOBS["many"])
    assert "#SBATCH --nodes=2" in text
    assert "#SBATCH --gpus-per-node=h100:4" in text
    assert "#SBATCH --time=05:00:00" in text or "#SBATCH --time=5:00:00" in text
    assert 'if [ "$SLURM_NODEID" = 0 ]' in text


def test_skypilot_is_a_task():
    body = yaml.safe_load(render("skypilot", *JOBS["many"]))
    assert body["num_nodes"] == 2
    assert body["resources"]["accelerators"] == "H100:4"
    assert "gemma-ops launch join" in body["run"]


@pytest.mark.parametrize("job", JOBS)
def test_skypilot_takes_it_for_a_task(job):
    """By its own schemas, with which it reads any task first; what comes after asks for its catalog, over the
    network."""
    schemas = pytest.importorskip("sky.utils.schemas", reason="SkyPilot, some 90 packages, is not installed")
    from sky.utils.common_utils import validate_schema

    body = yaml.safe_load(render("skypilot", *JOBS[job]))
    validate_schema(body, schemas.get_task_schema(), "task: ")
    validate_schema(body["resources"], schemas.get_resources_schema(), "resources: ")


def test_kubeflow_is_a_trainjob():
    (body, *rest) = [part for part in yaml.safe_load_all(render("kubeflow", *JOBS["many"])) if part]
    kinds = {part["kind"]: part for part in (body, *rest)}
    job = kinds["TrainJob"]
    assert job["apiVersion"].startswith("trainer.kubeflow.org/")
    assert job["spec"]["trainer"]["numNodes"] == 2
    assert job["spec"]["trainer"]["image"] == "registry.example/gemma-ops:1"
    assert (
        job["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["name"]
        == "node"
    )


def test_kubeflow_takes_it_for_a_trainjob():
    """By its own models of version 2: every field is of the type they ask for, and none is unknown to them."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed")
    body = yaml.safe_load(render("kubeflow", *JOBS["many"], "--set", "launch.volume=ours"))
    assert models.TrainerV1alpha1TrainJob.from_dict(body).to_dict() == body
    assert models.TrainerV1alpha1TrainJob.from_dict({**body, "odd": 1}).to_dict() == body
    assert "claimName': 'ours'" in str(body)


def test_no_secret_is_ever_written(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    for form in FORMS:
        assert "hf_abcdefgh" not in render(form, *JOBS["many"])


def test_refusals():
    asked = [
        ("kubeflow", [], "a TrainJob runs in a container image"),
        ("slurm", ["--set", "launch.gpu=nothing"], "nothing"),
        ("slurm", ["--set", "launch.gpu=cpu"], "launch.gpu"),
    ]
    for form, more, why in asked:
        done = CliRunner().invoke(app, ["launch", "render", "e2b-lora", *more, "--as", form])
        assert done.exit_code != 0
        assert why in f"{done.output} {done.exception}"
