"""Verified copies of versions: every byte as registered, resumed, shared through the cache, and no byte that was
changed."""

from __future__ import annotations

import json
import re

import pytest

from gemma_ops import registry
from gemma_ops.errors import GateError, OpsError
from gemma_ops.registry import fetching, profile, stored
from gemma_ops.runs import digest
from tests.helpers import registry_runs as runs


@pytest.fixture
def version(tmp_path, monkeypatch):
    """A champion, and the folder in which MLflow keeps its files."""
    monkeypatch.setenv("GEMMA_OPS_CACHE", str(tmp_path / "cache"))
    config = runs.config(tmp_path)
    runs.make(config)
    registry.promote(config.machine, "support-nano", reason="first")
    tracking = profile.connect_mlflow(config.machine)
    logged, _ = stored.version_manifest(tracking, stored.version(tracking, "support-nano", None))
    return config.machine, stored.local_store(logged)


def test_a_copy_has_every_byte_and_says_how_each_is_loaded(version, tmp_path):
    machine, _ = version
    done = fetching.pull_version(machine, "support-nano@champion", tmp_path / "copy")
    files = done.manifest["subject"]["files"]
    assert (done.name, done.version, done.alias) == ("support-nano", "1", "champion")
    assert {name: digest.of_file(tmp_path / "copy" / name) for name in files} == {
        name: file["sha256"] for name, file in files.items()
    }
    assert not any((tmp_path / "copy" / name).is_symlink() for name in files)
    assert "PeftModel" in (tmp_path / "copy" / "README.md").read_text()
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text())["digest"] == done.manifest["digest"]
    assert fetching.pull_version(machine, "support-nano/1", tmp_path / "again").version == "1"


def test_what_is_whole_in_the_cache_is_not_fetched_again(version, tmp_path, monkeypatch):
    machine, _ = version
    fetched, copy = [], fetching.shutil.copyfile

    def dying(source, target):
        if "/blobs/" in str(target):
            fetched.append(source)
            if len(fetched) == 3:
                raise KeyboardInterrupt
        return copy(source, target)

    monkeypatch.setattr(fetching.shutil, "copyfile", dying)
    with pytest.raises(KeyboardInterrupt):
        fetching.pull_version(machine, "support-nano@champion")
    done = fetching.pull_version(machine, "support-nano@champion")
    count = len({file["sha256"] for file in done.manifest["subject"]["files"].values()})
    assert len(fetched) == count + 1  # the one that was cut, twice
    fetching.pull_version(machine, "support-nano@champion", tmp_path / "copy")
    assert len(fetched) == count + 1


def test_a_flipped_byte_in_the_store_is_refused(version):
    machine, home = version
    path = next(home.rglob("*.safetensors"))
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(GateError, match=r"not what was registered: .*safetensors was changed"):
        fetching.pull_version(machine, "support-nano@champion")


def test_a_file_that_is_gone_is_told(version):
    machine, home = version
    next(home.rglob("*.safetensors")).unlink()
    with pytest.raises(GateError, match="is missing"):
        fetching.pull_version(machine, "support-nano@champion")


def test_a_cache_that_was_changed_is_no_source(version):
    machine, _ = version
    done = fetching.pull_version(machine, "support-nano@champion")
    name = next(name for name in done.manifest["subject"]["files"] if name.endswith(".safetensors"))
    kept = (done.folder / name).resolve()
    kept.write_bytes(b"other")
    done = fetching.pull_version(machine, "support-nano@champion")
    assert digest.of_file(done.folder / name) == done.manifest["subject"]["files"][name]["sha256"]


@pytest.mark.parametrize(
    ("source", "what", "fix"),
    [
        ("support-nano@chief", "no alias 'chief'", r"champion \(version 1\)"),
        ("support-nano/9", "no version 9", "versions: 1"),
        ("support-nan@champion", "no registered model", "did you mean support-nano"),
        ("support-nano", "names no version", "NAME@ALIAS"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(version, source, what, fix):
    machine, _ = version
    with pytest.raises(OpsError, match=what) as caught:
        fetching.pull_version(machine, source)
    assert re.search(fix, caught.value.fix)


def test_what_reads_like_a_version():
    assert fetching.is_version("support-nano@champion")
    assert fetching.is_version("support-nano/3")
    assert not any(map(fetching.is_version, ("support-nano", "a/b/3", "runs/x", "model.gguf@folder/x", "a@b@c")))
