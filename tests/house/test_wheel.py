"""The built wheel works where there is no checkout: in a new environment, from an empty folder; and offline it asks
nobody."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from gemma_ops.offline import guard
from tests.helpers import patience
from tests.helpers.networks import RECORDER, namespaces, unroutable

ROOT = Path(__file__).parents[2]
SHORT = {
    "train.max_steps": 2,
    "train.eval_every": 2,
    "data.max_rows": 300,
    "evaluate.rows": 8,
    "quantize.fidelity_rows": 2,
    "quantize.fit_rows": 4,
    "quantize.fit_steps": 2,
    "offline": "true",
}


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
    """A new environment holding only the wheel; its dependencies are those installed here, so that nothing is
    downloaded."""
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
        "share/configs/README.md",
        "share/recipes/jobs/json-output.md",
        "share/eval/support_desk/task.yaml",
        "share/eval/support_desk/train.jsonl",
        "share/eval/drawn_forms/forms/0000.png",
        "nano/weights/model.safetensors",
        "nano/drafter/model.safetensors",
        "data/gemma4_training.jinja",
        "py.typed",
    ):
        assert f"gemma_ops/{name}" in names
    pages = [path.relative_to(ROOT).as_posix() for path in (ROOT / "gemma_ops").rglob("templates/*")]
    assert len(pages) > 10
    assert set(pages) <= names
    assert not any(name.startswith(("tests/", "runs/")) for name in names)


@pytest.mark.slow
def test_the_quickstart_runs_offline_from_an_empty_folder_and_tries_nothing(installed, tmp_path):
    """Recipe, evaluation, registration and the verbs that look, by the wheel alone, in a network without a way out.

    Two witnesses: a recorder in every Python process, and the kernel's count of what found no route, which native code
    can't get around. The last lines show that both witnesses see an attempt.
    """
    witness = tmp_path / "witness"
    witness.mkdir()
    (witness / "sitecustomize.py").write_text(RECORDER)
    log, folder = witness / "sockets.log", tmp_path / "empty"
    folder.mkdir()
    verb, sets = f"{installed} -m gemma_ops", " ".join(f"-s {key}={value}" for key, value in SHORT.items())
    script = (
        f"{verb} run quickstart --json {sets} >{witness}/told.json"
        f" && {verb} show quickstart && GEMMA_OPS_OFFLINE=1 {verb} doctor\n"
        'echo "ended $?"; cat /proc/net/snmp\n'
        f"{installed} -c \"import socket; socket.socket().connect_ex(('192.0.2.1', 9))\"; cat /proc/net/snmp\n"
    )
    # HF_HUB_OFFLINE and its like come from conftest.py; here they must come from offline mode itself.
    kept = {name: value for name, value in os.environ.items() if name not in guard.ENVIRONMENT}
    alone = namespaces()
    result = patience.run(
        [*(["unshare", "-rn"] if alone else []), "sh", "-c", script],
        cwd=folder,
        seconds=600,
        env={**kept, "SOCKET_LOG": str(log), "PYTHONPATH": str(witness)},
    )
    assert "\nended 0\n" in result.stdout, result.stderr
    body = json.loads((witness / "told.json").read_text())
    assert body["version"]["version"] in (1, "1")
    assert (folder / body["report"]).exists()
    for made in ("evaluate/report.html", "evaluate/verdict.json", "register/artifact.json"):
        assert (folder / "runs" / "quickstart" / made).is_file()
    *noted, control = log.read_text().splitlines()
    assert "192.0.2.1" in control
    assert noted.count("started") >= 5  # three verbs, the child that makes MLflow's database, the control
    noted = [line for line in noted if line != "started" and not line.startswith("socket.connect (1, ")]
    assert [line for line in noted if not re.search(r"127\.0\.0\.1|::1|localhost", line)] == []
    if alone:
        before, after = (unroutable(part) for part in result.stdout.split("ended 0")[1].split("Icmp:", 1))
        assert (before, after) == (0, 1)
    else:
        pytest.skip(
            "the recorder saw nothing; the kernel's witness is missing, since `unshare -rn` is not allowed here"
        )


def test_what_runs_is_the_wheel(installed, tmp_path):
    code = "import gemma_ops; print(gemma_ops.__file__)"
    where = subprocess.run(
        [str(installed), "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(installed.parent.parent) in where.stdout
