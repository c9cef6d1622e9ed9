"""CPU threads where nobody has said how many: none that would only wait, and none that spins while it waits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from gemma_ops.modeling import threads
from gemma_ops.nano import WEIGHTS


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_small_models_get_one_thread_and_larger_ones_the_usual(monkeypatch):
    usual = threads._usual()
    assert threads.settle_threads(WEIGHTS, None) == torch.get_num_threads() == 1
    monkeypatch.setattr(threads, "SMALL", 0)
    assert threads.settle_threads(WEIGHTS, None) == torch.get_num_threads() == usual


def test_what_somebody_said_holds(monkeypatch):
    assert threads.settle_threads(WEIGHTS, 3) == torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.settle_threads(WEIGHTS, None) == threads._usual()


@pytest.mark.parametrize(("said", "holds"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_is_passive_unless_the_environment_says_otherwise(said, holds):
    given = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    code = "import os, gemma_ops; print(os.environ['OMP_WAIT_POLICY'])"
    env = given | ({"OMP_WAIT_POLICY": said} if said else {})
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == holds
