"""Shared fixtures: an environment without anybody's settings, no network, and a runner for the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# One thread: matrices this small lose more to waiting for each other than they gain, and results repeat everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
    TRANSFORMERS_VERBOSITY="error",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
)


# Under nohup and in some CI SIGINT is ignored, and children inherit that: tests that interrupt them would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "GOOGLE_API_KEY", "GEMINI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(tmp_path):
    """Run `gemma-ops` in a child process from an empty folder: `cli("run", "quickstart").returncode`."""

    def call(*arguments, cwd=tmp_path, timeout=300, env=None, check=False):
        return subprocess.run(
            [sys.executable, "-m", "gemma_ops", *map(str, arguments)],
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
            check=check,
            env={**os.environ, **(env or {})},
        )

    return call


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets, where there is one: `GEMMA_OPS_DATA`, or `../shared/data` beside the repository."""
    folder = Path(os.environ.get("GEMMA_OPS_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data here: set GEMMA_OPS_DATA to a folder with banking77/ and gsm8k/")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A function from a kind of `tiny_media` to its saved checkpoint, made once."""
    import tiny_media

    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tiny_media.save(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return make
