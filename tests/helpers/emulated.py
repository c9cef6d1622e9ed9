"""The Gemini emulator for tests: the real client, a real socket, no cost.

Every test may ask for the fixtures `emulator` and `machine`:

    def test_something(emulator, machine):
        emulator.fail("429", times=2, seconds=0.05)
        ...  # anything that takes a MachineConfig
        assert len(emulator.billed()) == 1
"""

from __future__ import annotations

import pytest

from gemma_ops.config.gemini import GeminiConfig
from gemma_ops.config.machine import MachineConfig
from gemma_ops.emulator import Emulator
from gemma_ops.gemini.notice import TERMS

KEY = "a-key-for-tests"


def machine_for(emulator, folder, **gemini):
    """Machine settings that lead to the emulator: terms accepted, paid tier, a budget, runs in `folder`.

    `gemini` overrides keys of `machine.gemini`, for example `budget_usd=0.1`.
    """
    settings = {
        "accept_terms": TERMS,
        "tier": "paid",
        "budget_usd": 10.0,
        "base_url": emulator.url,
        "timeout_seconds": 20.0,
    }
    return MachineConfig(runs=str(folder / "runs"), mlflow=None, gemini=GeminiConfig(**(settings | gemini)))


def client_of(emulator, version=None):
    """google-genai itself, talking to the emulator; `version` of the API, v1 by default."""
    from google import genai
    from google.genai import types

    http = types.HttpOptions(base_url=emulator.url, api_version=version, timeout=5000)
    return genai.Client(api_key=KEY, http_options=http)


@pytest.fixture
def emulator(monkeypatch):
    """A running Emulator with the default responder; `GEMINI_API_KEY` is set."""
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with Emulator() as started:
        yield started


@pytest.fixture
def machine(emulator, tmp_path):
    """Machine settings that lead to `emulator`; runs lie in `tmp_path / "runs"`."""
    return machine_for(emulator, tmp_path)
