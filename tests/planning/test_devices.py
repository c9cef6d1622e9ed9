"""Devices by name, and what `nvidia-smi` says is there."""

from __future__ import annotations

import pytest

from gemma_ops.errors import ConfigError
from gemma_ops.planning import devices


def _smi(tmp_path, monkeypatch, script):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("Tesla T4, 15360", "t4"),
        ("NVIDIA L4, 23034", "l4"),
        ("NVIDIA L40S, 46068", "l40s"),
        ("NVIDIA A10G, 23028", "a10"),
        ("NVIDIA A100-SXM4-40GB, 40960", "a100-40"),
        ("NVIDIA A100 80GB PCIe, 81920", "a100-80"),
        ("NVIDIA GeForce RTX 4090, 24564", "rtx-4090"),
        ("NVIDIA H100 80GB HBM3, 81559", "h100"),
        ("NVIDIA H200, 143771", "h200"),
        ("NVIDIA B200, 183359", "b200"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition, 97887", "rtx-pro-6000"),
    ],
)
def test_a_present_gpu_is_recognised(tmp_path, monkeypatch, line, key):
    _smi(tmp_path, monkeypatch, f"echo '{line}'")
    assert [device.key for device in devices.present_devices()] == [key]


def test_an_unknown_gpu_keeps_its_memory_and_has_no_speed(tmp_path, monkeypatch):
    _smi(tmp_path, monkeypatch, "echo 'NVIDIA GeForce RTX 3060, 12288'\necho 'NVIDIA H100 NVL, 95830'")
    large, small = devices.present_devices()
    assert large.name == "NVIDIA H100 NVL"  # not the 80 GB card of that name
    assert small.memory == pytest.approx(11.6, abs=0.1)
    assert small.peak == 0
    assert small.dollars is None


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "echo"])
def test_no_gpu_is_no_error(tmp_path, monkeypatch, script):
    _smi(tmp_path, monkeypatch, script)
    assert devices.present_devices() == []


def test_no_driver_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.present_devices() == []


def test_a_wrong_key_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean rtx-4090"):
        devices.get_device("RTX 4090")
    with pytest.raises(ConfigError, match="unknown device 'tpu'") as caught:
        devices.get_device("tpu")
    assert "a100-40" in caught.value.fix
    assert "cpu" in caught.value.fix


def test_the_table_is_plausible():
    for key, device in devices.DEVICES.items():
        assert key == device.key
        assert 10 < device.memory < 200
        assert 0 < device.sustained <= 1
        assert 0 < device.dollars < 20
        assert device.matches
    assert not devices.get_device("t4").bf16
    here = devices.get_device("cpu")
    assert not here.cuda
    assert here.memory > 0.5
