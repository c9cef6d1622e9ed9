"""`doctor`: version windows, combinations known to go wrong, and what each size can do on a device."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gemma_ops import family
from gemma_ops.planning import devices, doctor

GOOD = {"torch": "2.13.0+cpu", "transformers": "5.17.0", "mlflow": "3.17.2"}


def _found(versions, gpus=(), environment=None):
    return {check.name: check for check in doctor._combinations(versions, list(gpus), environment or {})}


def test_it_answers_here_and_without_torch():
    code = (
        "import sys, time\n"
        "from gemma_ops.planning.doctor import examine\n"
        "begun = time.process_time()\n"
        "examine().lines()\n"
        "taken = time.process_time() - begun\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'bitsandbytes', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} {taken}' if heavy or taken > 2 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_tested_environment_is_in_order():
    report = doctor.examine()
    assert [check for check in report.checks if check.status == "bad"] == []
    names = [check.name for check in report.checks]
    assert {"python", "packages", "extras", "cpu", "disk"} <= set(names)
    body = json.loads(json.dumps(report.to_json()))
    assert [one["size"] for one in body["sizes"]] == list(family.SIZES)
    assert len(body["traps"]) == len(family.TRAPS)
    assert any("E2B" in line and "GiB" in line for line in report.lines())


@pytest.mark.parametrize(
    ("version", "window", "expected"),
    [
        ("5.23.0", ">=5.23,<5.24", True),
        ("5.24.0", ">=5.23,<5.24", False),
        ("5.23", ">=5.23,<5.24", True),
        ("5.22.9", ">=5.23,<5.24", False),
        ("2.13.0+cpu", "<2.15,>=2.11", True),
        ("3.17.2", ">=3.17,<3.18", True),
        ("3.18.0rc1", "<3.18,>=3.17", False),
        ("10.0", ">=9", True),
        ("2026.10.11549", ">=2026.10", True),
        ("1.0", "", True),
        ("3.17.0.dev1", ">=3.17", False),
        ("2.14.0.dev20261101+cu130", ">=2.11,<2.15", True),
        ("3.16.1", "~=3.16.0", True),
        ("3.17", "~=3.16.0", False),
        ("unknown", ">=3.17", False),
    ],
)
def test_version_windows(version, window, expected):
    assert doctor.inside_window(version, window) is expected


def test_requirements_as_metadata_spells_them():
    lines = [
        "transformers<5.24,>=5.23",
        'xllamacpp>=2026.10; extra == "gguf"',
        "ray[train]>=2.60; extra == 'ray'",
        "triton<3.8; (sys_platform == 'nowhere') and extra == 'dev'",
        "pillow>=10 ; (sys_platform != 'nowhere') and extra == 'dev'",
        "uvloop; sys_platform == 'nowhere'",
    ]
    found = [(each.name, str(each.specifier), extra) for each, extra in doctor.required(lines, ["dev", "gguf", "ray"])]
    assert found == [
        ("transformers", "<5.24,>=5.23", None),
        ("xllamacpp", ">=2026.10", "gguf"),
        ("ray", ">=2.60", "ray"),
        ("pillow", ">=10", "dev"),
    ]


def test_packages_outside_their_window_or_missing_are_told(monkeypatch):
    versions = {"transformers": "5.25.1", "trl": None}
    real = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: versions.get(name, real(name)) if name in versions else real(name)
    )
    found = {check.name: check for check in doctor._packages()}
    assert found["transformers"].status == "warn"
    assert "5.25.1" in found["transformers"].what
    assert found["trl"].status == "bad"
    assert found["trl"].fix


def test_combinations_that_install_and_fail_later():
    assert {check.status for check in _found(GOOD).values()} <= {"ok"}
    assert _found(GOOD | {"torchvision": "0.28.0"})["torchvision"].status == "bad"
    assert "torchvision" not in _found(GOOD | {"torchvision": "0.28.0+cpu"})
    assert _found(GOOD | {"flash-attn": "2.8"})["flash-attn"].status == "warn"
    assert "reentrant" in _found(GOOD | {"deepspeed": "0.18"})["deepspeed"].what
    assert _found(GOOD, environment={"ACCELERATE_MIXED_PRECISION": "fp16"})["environment"].status == "bad"
    assert _found(GOOD, environment={"TRANSFORMERS_SDPA_FORCE_GQA": "1"})["environment"].status == "warn"
    assert "registered as files" in _found(GOOD | {"transformers": "5.23.0"})["mlflow"].what


def test_a_gpu_and_the_wrong_torch_or_no_bfloat16():
    found = _found(GOOD, [devices.get_device("t4")])
    assert found["torch"].status == "bad"
    assert found["t4"].status == "warn"
    assert "torch" not in _found(GOOD | {"torch": "2.13.0+cu130"}, [devices.get_device("h100")])


@pytest.mark.parametrize(
    ("device", "lora", "qlora"),
    [
        ("rtx-4090", {"E2B", "E4B"}, {"E2B", "E4B", "12B", "26B-A4B"}),
        ("a100-40", {"E2B", "E4B", "12B"}, {"E2B", "E4B", "12B", "26B-A4B", "31B"}),
        ("h100", set(family.SIZES), set(family.SIZES)),
    ],
)
def test_what_each_size_can_do(device, lora, qlora):
    able = [doctor._ability(key, devices.get_device(device)) for key in family.SIZES]
    assert lora <= {one.size for one in able if one.lora != "no"}
    assert qlora <= {one.size for one in able if one.qlora == "yes"}
    # The mixture's bf16 experts need 80 GB; in 4 bits it trains where it can be served.
    mixture = next(one for one in able if one.size == "26B-A4B")
    assert (mixture.lora == "no") == (devices.get_device(device).memory < 45)
    assert mixture.qlora == mixture.serve == "yes"
