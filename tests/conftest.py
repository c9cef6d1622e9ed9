"""Shared fixtures: an environment without anybody's settings, no network, and a runner for the command line."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers import once, patience

ROOT = Path(__file__).parent.parent
pytest_plugins = ["tests.helpers.emulated", "tests.helpers.batch_jobs"]
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


# Under nohup and in some CI SIGINT is ignored, and children inherit that: tests that interrupt them would wait for
# ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Files with slow tests first, the slowest of them by their number: what is begun last should not take long."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


SEEN = pytest.StashKey[tuple[int, int]]()
"""How many modules were loaded, and how often all garbage had been collected, when garbage was last looked for."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Set aside what a test leaves: every step of a run collects garbage, and would walk half a million objects of the
    libraries each time, and what MLflow keeps of each database before; a third of what a test of the registry takes.
    After the test is whole, so that nothing it held is set aside with them."""
    result = yield
    modules, collections = item.config.stash.get(SEEN, (0, 0))
    ran = gc.get_stats()[2]["collections"] - collections
    if len(sys.modules) > modules + 100 or ran > 3 or nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
        item.config.stash[SEEN] = (len(sys.modules), gc.get_stats()[2]["collections"])
    return result


@pytest.fixture(scope="session", autouse=True)
def _shared(tmp_path_factory):
    once.share(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _no_inherited_settings(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "GOOGLE_API_KEY", "GEMINI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(tmp_path):
    """Run `gemma-ops` in a child process from an empty folder: `cli("run", "quickstart").returncode`."""

    def call(*arguments, cwd=tmp_path, seconds=300, env=None, check=False):
        done = patience.run(
            [sys.executable, "-m", "gemma_ops", *map(str, arguments)],
            cwd=cwd,
            seconds=seconds,
            env={**os.environ, **(env or {})},
        )
        if check:
            done.check_returncode()
        return done

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
    from tests.helpers import tiny_media

    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tiny_media.save(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return make
