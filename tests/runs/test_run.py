"""Steps are kept, refused, resumed and locked; nothing half-written is taken for whole."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time

import pytest

from gemma_ops.config import MachineConfig, QuantizeConfig, RunConfig
from gemma_ops.errors import BusyError, DriftError, MachineError, OpsError
from gemma_ops.runs import journal
from gemma_ops.runs.artifact import MANIFEST, Reads, difference, read_artifact, verify_artifact
from gemma_ops.runs.run import Run, StopHere


def make(tmp_path, **machine):
    return RunConfig(name="r", machine=MachineConfig(runs=str(tmp_path / "runs"), **machine))


def write(out, settings, machine, **inputs):
    (out / "file.txt").write_text(settings["text"])
    journal.record(step=1, loss=2.0)
    return {"size": float(len(settings["text"]))}


def test_a_step_is_made_once_and_kept(tmp_path):
    with Run(make(tmp_path)) as run:
        first = run.step(write, {"text": "a"})
    with Run(make(tmp_path, device="cpu")) as run:
        again = run.step(write, {"text": "a"})
    assert (first.kept, again.kept) == (False, True)
    assert first.digest == again.digest
    assert again.metrics == {"size": 1.0}
    lines = [json.loads(line) for line in (run.path / "logs" / "write.1.jsonl").read_text().splitlines()]
    assert [line.get("loss") for line in lines] == [None, 2.0, None]


def test_changed_settings_are_refused_with_the_difference_and_the_ways_out(tmp_path):
    with Run(make(tmp_path)) as run:
        run.step(write, {"text": "a", "deep": {"x": 1}})
    with Run(make(tmp_path)) as run, pytest.raises(DriftError) as caught:
        run.step(write, {"text": "b", "deep": {"x": 1}})
    assert 'settings.text: "a" -> "b"' in caught.value.what
    assert "deep" not in caught.value.what
    assert "--redo write" in caught.value.fix


def test_changed_input_is_refused_and_redo_makes_it_again(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("1")
    with Run(make(tmp_path)) as run:
        run.step(write, {"text": "a"}, source=source)
    source.write_text("2")
    with Run(make(tmp_path)) as run, pytest.raises(DriftError, match=r"inputs\.source"):
        run.step(write, {"text": "a"}, source=source)
    with Run(make(tmp_path), redo=("write",)) as run:
        assert not run.step(write, {"text": "a"}, source=source).kept


def test_a_later_step_sees_a_changed_earlier_one(tmp_path):
    with Run(make(tmp_path)) as run:
        first = run.step(write, {"text": "a"}, name="one")
        run.step(write, {"text": "z"}, name="two", before=first)
    with Run(make(tmp_path), redo=("one",)) as run:
        first = run.step(write, {"text": "b"}, name="one")
        with pytest.raises(DriftError, match=r"inputs\.before"):
            run.step(write, {"text": "z"}, name="two", before=first)


def test_a_failed_step_leaves_no_artifact_and_goes_on_in_the_same_folder(tmp_path):
    def fails(out, settings, machine):
        (out / "part").write_text("half")
        raise ValueError("boom")

    def goes_on(out, settings, machine):
        assert (out / "part").read_text() == "half"
        return {}

    with Run(make(tmp_path)) as run:
        with pytest.raises(ValueError, match="boom"):
            run.step(fails, {}, name="s")
        assert read_artifact(run.path / "s") is None
        assert (run.path / "s.partial" / "part").exists()
        assert not run.step(goes_on, {}, name="s").kept


def test_unfinished_work_for_other_settings_is_not_thrown_away(tmp_path):
    def fails(out, settings, machine):
        raise ValueError("boom")

    with Run(make(tmp_path)) as run:
        with pytest.raises(ValueError, match="boom"):
            run.step(fails, {"a": 1}, name="s")
        with pytest.raises(DriftError):
            run.step(fails, {"a": 2}, name="s")


def _forever(folder):
    with Run(make(folder)) as run:

        def slow(out, settings, machine):
            (out / "count").write_text("1")
            time.sleep(60)
            return {}

        run.step(slow, {}, name="s")


def test_the_fix_that_was_printed_works_after_a_refusal(tmp_path):
    """A step that failed for a reason it told may be asked for differently: its leftovers are no unfinished work."""

    def refuses(out, settings, machine):
        (out / "left").write_text("over")
        if settings["bad"]:
            raise OpsError("bad", "make it good")
        assert not (out / "left.old").exists()
        return {}

    with Run(make(tmp_path)) as run:
        with pytest.raises(OpsError, match="bad"):
            run.step(refuses, {"bad": True}, name="s")
        assert (run.path / "s.partial" / "left").exists()
        assert not run.step(refuses, {"bad": False}, name="s").kept


def test_redo_that_fails_leaves_the_old_artifact_aside_and_never_half(tmp_path):
    def fails(out, settings, machine):
        raise ValueError("boom")

    with Run(make(tmp_path)) as run:
        run.step(write, {"text": "a"}, name="s")
    with Run(make(tmp_path), redo=("s",)) as run:
        with pytest.raises(ValueError, match="boom"):
            run.step(fails, {"text": "a"}, name="s")
        assert not (run.path / "s").exists()
        assert read_artifact(run.path / "s.old")
        assert not run.step(write, {"text": "a"}, name="s").kept
        assert not (run.path / "s.old").exists()


def test_a_kept_step_that_lost_a_file_is_not_kept(tmp_path):
    with Run(make(tmp_path)) as run:
        artifact = run.step(write, {"text": "a"})
    (artifact.path / "file.txt").unlink()
    with Run(make(tmp_path)) as run, pytest.raises(OpsError, match="is missing or was changed"):
        run.step(write, {"text": "a"})


def test_files_behind_links_count(tmp_path):
    (tmp_path / "real.txt").write_text("1")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.txt").symlink_to(tmp_path / "real.txt")
    with Run(make(tmp_path)) as run:
        run.step(write, {"text": "a"}, source=folder)
    (tmp_path / "real.txt").write_text("22")
    with Run(make(tmp_path)) as run, pytest.raises(DriftError, match=r"inputs\.source"):
        run.step(write, {"text": "a"}, source=folder)


def test_folders_of_one_name_are_told_apart(tmp_path):
    folders = []
    for parent in ("a", "b"):
        (tmp_path / parent / "mine").mkdir(parents=True)
        (tmp_path / parent / "mine" / "f").write_text(parent)
        folders.append(tmp_path / parent / "mine")
    with Run(make(tmp_path)) as run:
        run.step(write, {"text": "a"}, tasks=tuple(folders))
    (folders[0] / "f").write_text("changed")
    with Run(make(tmp_path)) as run, pytest.raises(DriftError, match=r"inputs\.tasks"):
        run.step(write, {"text": "a"}, tasks=tuple(folders))


def test_only_what_is_read_counts(tmp_path):
    (tmp_path / "read.txt").write_text("1")
    source = Reads(tmp_path, (tmp_path / "read.txt",))
    with Run(make(tmp_path)) as run:
        run.step(write, {"text": "a"}, source=source)
    (tmp_path / "other.txt").write_text("new")
    with Run(make(tmp_path)) as run:
        assert run.step(write, {"text": "a"}, source=source).kept


def test_a_refused_run_leaves_the_settings_of_what_is_there(tmp_path):
    with Run(make(tmp_path)) as run:
        run.step(write, {"text": "a"})
    before = (run.path / "config.json").read_text()
    with pytest.raises(DriftError), Run(make(tmp_path, device="cpu")) as run:
        run.step(write, {"text": "b"})
    assert (run.path / "config.json").read_text() == before


def test_sigkill_in_the_middle_then_again(tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=_forever, args=(tmp_path,))
    child.start()
    partial = tmp_path / "runs" / "r" / "s.partial" / "count"
    for _ in range(200):
        if partial.exists():
            break
        time.sleep(0.1)
    with pytest.raises(BusyError, match=str(child.pid)), Run(make(tmp_path)):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.join()

    def goes_on(out, settings, machine):
        assert (out / "count").read_text() == "1"
        return {"went_on": 1.0}

    with Run(make(tmp_path)) as run:
        assert read_artifact(run.path / "s") is None
        assert run.step(goes_on, {}, name="s").metrics == {"went_on": 1.0}


def test_a_full_disk_is_said_plainly_and_keeps_the_work(tmp_path):
    def full(out, settings, machine):
        (out / "part").write_text("kept")
        raise OSError(errno.ENOSPC, "No space left on device")

    with Run(make(tmp_path)) as run, pytest.raises(MachineError, match="disk is full") as caught:
        run.step(full, {}, name="s")
    assert "finished steps are kept" in caught.value.fix
    assert not (run.path / "s").exists()


def test_until_stops_after_its_step(tmp_path):
    with Run(make(tmp_path), until="one") as run, pytest.raises(StopHere):
        run.step(write, {"text": "a"}, name="one")
    assert read_artifact(run.path / "one")


def test_verify_finds_a_changed_byte(tmp_path):
    with Run(make(tmp_path)) as run:
        artifact = run.step(write, {"text": "a"})
    verify_artifact(artifact.path)
    (artifact.path / "file.txt").write_text("b")
    with pytest.raises(OpsError, match="was changed"):
        verify_artifact(artifact.path)
    (artifact.path / "file.txt").unlink()
    with pytest.raises(OpsError, match="is missing"):
        verify_artifact(artifact.path)


def test_the_digest_covers_files_and_nothing_else(tmp_path):
    digests = set()
    for name in ("a", "b"):
        with Run(RunConfig(name=name, machine=MachineConfig(runs=str(tmp_path)))) as run:
            digests.add(run.step(write, {"text": "same"}).digest)
    assert len(digests) == 1
    body = json.loads((tmp_path / "a" / "write" / MANIFEST).read_text())
    assert set(body["files"]) == {"file.txt"}
    assert body["settings"] == {"text": "same"}


def test_settings_models_are_fingerprinted_by_content(tmp_path):
    def nothing(out, settings, machine):
        return {}

    with Run(make(tmp_path)) as run:
        run.step(nothing, QuantizeConfig(), name="q")
        with pytest.raises(DriftError, match=r"settings\.fidelity_rows: 24 -> 5"):
            run.step(nothing, QuantizeConfig(fidelity_rows=5), name="q")


def test_difference_goes_into_sections():
    assert difference({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}}) == ["a.c: 2 -> 4", "d: 3 -> null"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with (
        pytest.raises(MachineError, match="can't be written"),
        Run(RunConfig(machine=MachineConfig(runs=str(blocked)))),
    ):
        pass
