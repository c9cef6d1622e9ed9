"""The built wheel works where there is no checkout: in a new environment, from an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import patience
import pytest

ROOT = Path(__file__).parent.parent
SMALL = [
    "train.max_steps=20",
    "train.eval_every=20",
    "evaluate.rows=12",
    "quantize.fidelity_rows=4",
    "quantize.formats=[q8_0]",
    "evaluate.targets=[base,tuned,q8_0]",
    "data.max_rows=200",
    "evaluate.gates=[]",
    "register.artifacts=[adapter,q8_0]",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment holding only the wheel; its dependencies are those installed here, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            str(site),
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    return folder / "bin" / "python"


def test_the_wheel_carries_what_is_found_by_path(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "share/recipes/lora.py",
        "share/configs/quickstart.yaml",
        "share/eval/support_desk/task.yaml",
        "share/eval/support_desk/train.jsonl",
        "nano/weights/model.safetensors",
        "data/gemma4_training.jinja",
        "py.typed",
    ):
        assert f"gemma_ops/{name}" in names
    assert not any(name.startswith(("tests/", "gemma_ops/runs")) for name in names)


@pytest.mark.slow
def test_the_quickstart_runs_from_an_empty_folder(installed, tmp_path):
    command = [str(installed), "-m", "gemma_ops", "run", "quickstart", "--json"]
    for item in SMALL:
        command += ["--set", item]
    result = patience.run(command, cwd=tmp_path, seconds=500, env={**os.environ, "PYTHONPATH": ""})
    assert result.returncode == 0, result.stderr
    body = json.loads(result.stdout)
    assert body["version"]["version"] in (1, "1")
    assert (tmp_path / body["report"]).exists()
    where = subprocess.run(
        [str(installed), "-c", "import gemma_ops; print(gemma_ops.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed.parent.parent) in where.stdout
