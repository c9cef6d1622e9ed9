"""Nothing that was changed is promoted: bytes, verdicts, ledgers, and files that are other than their names say."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import struct
import zipfile
from pathlib import Path

import pytest

from gemma_ops import registry
from gemma_ops.errors import DataError, GateError
from gemma_ops.registry import profile, promotion_ledger, stored
from gemma_ops.registry.contents import content_problem
from gemma_ops.registry.policies import set_policy
from gemma_ops.runs import digest
from tests.helpers import registry_runs as runs

NAME = "support-nano"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two versions of which the first is the champion."""
    root = tmp_path_factory.mktemp("tampering")
    config = runs.config(root, name="one", train={"seed": 1})
    runs.make(config)
    registry.promote(config.machine, NAME, reason="first")
    runs.make(runs.config(root, name="two", train={"seed": 2}))
    shutil.copytree(root / "mlflow" / "ledger", root / "ledger")
    return config


@pytest.fixture
def config(made):
    root = Path(made.machine.mlflow)
    shutil.rmtree(root / "ledger")
    shutil.copytree(root.parent / "ledger", root / "ledger")
    tracking = profile.connect_mlflow(made.machine)
    book = promotion_ledger.PromotionLedger(tracking, NAME)
    tracking.client.set_registered_model_tag(NAME, promotion_ledger.HEAD, promotion_ledger.anchor(book.entries()))
    return made


def home(config, number) -> Path:
    tracking = profile.connect_mlflow(config.machine)
    return stored.local_store(stored.logged_model(tracking, stored.version(tracking, NAME, number)))


def flip(file: Path) -> bytes:
    before = file.read_bytes()
    body = bytearray(before)
    body[len(body) // 2] ^= 1
    file.write_bytes(body)
    return before


@pytest.mark.parametrize("name", ["card.md", "report.html", "tokenizer/tokenizer.json", "summary.md"])
def test_a_flipped_bit_in_any_stored_file_is_refused(config, name):
    file = home(config, 2) / name
    before = flip(file)
    with pytest.raises(GateError, match=rf"is not what was registered: {re.escape(name)} was changed"):
        registry.promote(config.machine, NAME, version=2, reason="x", override="I insist")
    file.write_bytes(before)


def test_the_account_of_the_code_in_the_manifest_is_held_too(config):
    """`made` is no part of the digest that names the version, so its bytes have a digest of their own."""
    file = home(config, 2) / "manifest.json"
    before = file.read_bytes()
    body = json.loads(before)
    body["made"]["commit"] = "0" * 40
    file.write_text(json.dumps(body))
    with pytest.raises(GateError, match=r"manifest\.json was changed"):
        registry.promote(config.machine, NAME, version=2, reason="x", override="I insist")
    tracking = profile.connect_mlflow(config.machine)
    logged = stored.logged_model(tracking, stored.version(tracking, NAME, 2))
    tag = stored.OWN["manifest.json"]
    tracking.client.set_logged_model_tags(logged.model_id, {tag: digest.of_file(file)})
    with pytest.raises(GateError, match=r"manifest\.json is another than the version was registered with"):
        registry.promote(config.machine, NAME, version=2, reason="x", override="I insist")
    file.write_bytes(before)
    tracking.client.set_logged_model_tags(logged.model_id, {tag: digest.of_file(file)})


def edited(verdict: Path) -> None:
    body = json.loads(verdict.read_text())
    body["verdict"] = "pass"
    body["gates"] = [gate | {"outcome": "pass"} for gate in body["gates"]]
    verdict.write_text(json.dumps(body))


def test_a_verdict_edited_before_it_is_registered_is_refused(tmp_path):
    config = runs.config(tmp_path, evaluate={"seed": 8})
    made = runs.make(config, until="evaluate")
    edited(made["evaluate"].path / "verdict.json")
    inputs = {"model": made["fetch"].path, "adapter": made["train"].path, "evaluation": made["evaluate"].path}
    with pytest.raises(DataError, match=r"verdict\.json was changed after the step evaluate had made it"):
        registry.register(tmp_path / "runs/support", config.registration(), config.machine, **inputs)
    artifact = made["evaluate"].path / "artifact.json"
    body = json.loads(artifact.read_text())
    body["files"]["verdict.json"]["sha256"] = digest.of_file(made["evaluate"].path / "verdict.json")
    artifact.write_text(json.dumps(body))
    with pytest.raises(DataError, match="the manifest of the step evaluate was changed"):
        registry.register(tmp_path / "runs/support", config.registration(), config.machine, **inputs)


@pytest.mark.parametrize("name", ["extra.safetensors", "extra.json", "extra.txt"])
def test_a_pickle_under_another_name_is_not_registered(tmp_path, name):
    def train(out, settings, machine, *, base, data):
        done = runs.train(out, settings, machine, base=base, data=data)
        (out / "adapter" / name).write_bytes(pickle.dumps({"x": print}))
        return done

    with pytest.raises(DataError, match=f"{name} may not go into a registered version: it is no"):
        runs.make(runs.config(tmp_path, None), steps={"train": train})


def test_files_are_what_their_names_say(tmp_path):
    good = runs.tensors(b"abc")
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", pickle.dumps(print))
    kept = tmp_path / "held.safetensors"

    def said(name, body):
        (tmp_path / name).write_bytes(body)
        return content_problem(tmp_path / name)

    assert said("a.safetensors", good) is None
    assert said("b.safetensors", good + archive.read_bytes()) == "it holds more, or less, than its tensors"
    assert said("c.safetensors", good[:-1]) == "it holds more, or less, than its tensors"
    hole = json.dumps({"w": {"dtype": "U8", "shape": [1], "data_offsets": [9, 10]}}).encode()
    assert said("d.safetensors", struct.pack("<Q", len(hole)) + hole + b"x" * 10) == (
        "its tensors do not lie one behind the other"
    )
    assert said("e.safetensors", archive.read_bytes()) == "it is no safetensors file"
    assert said("f.safetensors", b"") == "it is no safetensors file"
    assert said("g.safetensors", struct.pack("<Q", 4) + b"[[]]") == "it is no safetensors file"
    assert said("a.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0)) is None
    assert said("b.gguf", pickle.dumps(print)) == "it is no GGUF file"
    assert said("c.gguf", b"GGUF" + pickle.dumps(list(range(99)))) == "it is no GGUF file of version 2 or 3"
    assert said("a.json", b'{"a": 1}') is None
    assert said("b.json", b"{a: 1}") == "it is no JSON"
    assert said("a.jinja", b"\x80\x04") == "it is no text"
    assert said("b.txt", b"a\0b") == "it is no text"
    assert "only" in str(said("a.bin", b"x"))
    assert said("other.html", b"<p>") != said("report.html", b"<p>") is None
    kept.write_bytes(good)
    assert content_problem(archive, "adapter/x.safetensors") == "it is no safetensors file"


def file_of(config) -> Path:
    return Path(config.machine.mlflow) / "ledger" / f"{NAME}.jsonl"


def rewritten(lines: list[bytes]) -> bytes:
    """The whole chain again with another reason, every hash made to fit."""
    last, out = promotion_ledger.START, []
    for line in lines:
        entry = json.loads(line)
        entry.pop("hash")
        entry |= {"prev": last} | ({"reason": "nothing to see"} if "reason" in entry else {})
        entry["hash"] = last = digest.of_json(entry)
        out.append(json.dumps(entry).encode() + b"\n")
    return b"".join(out)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda _: None, "it has no entry, and the registered model was written when it had"),
        (lambda lines: b"".join(lines[:-2]), "entries, and the registered model was written when it had"),
        (rewritten, "is another than the one that the registered model knows"),
    ],
    ids=["deleted", "cut", "rewritten"],
)
def test_a_ledger_that_was_lost_or_rewritten_is_refused_by_everything(config, change, why):
    body = change(file_of(config).read_bytes().splitlines(keepends=True))
    file_of(config).unlink()
    if body is not None:
        file_of(config).write_bytes(body)
    second = runs.config(Path(config.machine.mlflow).parent, name="two", train={"seed": 2})
    for use in (
        lambda: registry.promote(config.machine, NAME, reason="x", override="I insist"),
        lambda: registry.rollback(config.machine, NAME, reason="x"),
        lambda: registry.show(config.machine, NAME),
        lambda: registry.show_policy(config.machine, NAME),
        lambda: registry.pull_champion(file_of(config).parent, config.registered_model(), config.machine),
        lambda: runs.make(second, redo=("register",)),
    ):
        with pytest.raises(GateError, match=why) as caught:
            use()
        assert "--new-ledger" in caught.value.fix


def test_with_the_models_tag_gone_the_versions_still_know(config):
    file_of(config).unlink()
    profile.connect_mlflow(config.machine).client.delete_registered_model_tag(NAME, promotion_ledger.HEAD)
    client = profile.connect_mlflow(config.machine).client
    with pytest.raises(GateError, match="it has no entry, and version 2 was written when it had"):
        registry.show(config.machine, NAME)
    marks = {number: client.get_model_version(NAME, number).tags[promotion_ledger.HEAD] for number in "12"}
    for number in marks:
        client.delete_model_version_tag(NAME, number, promotion_ledger.HEAD)
    with pytest.raises(GateError, match="it has no entry, and the manifest of version 2 was written when it had"):
        registry.promote(config.machine, NAME, version=2, reason="x", override="I insist")
    for number, mark in marks.items():
        client.set_model_version_tag(NAME, number, promotion_ledger.HEAD, mark)


def test_a_new_ledger_says_that_the_old_one_was_lost(config):
    policy = registry.show_policy(config.machine, NAME).policy
    before = registry.verify_ledger(config.machine, NAME)
    file_of(config).write_bytes(b"{}\n")
    set_policy(config.machine, NAME, policy, reason="the disk was lost", new_ledger=True)
    first, second = registry.history(config.machine, NAME)
    assert (first["kind"], first["reason"], second["kind"]) == ("restart", "the disk was lost", "policy")
    assert first["replaces"].endswith(before)
    assert first["versions"] == ["2", "1"]
    assert Path(first["kept"]).read_bytes() == b"{}\n"
    assert registry.promote(config.machine, NAME, version=2, reason="x", override="a test").changed
