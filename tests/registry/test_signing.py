"""Signatures and bills of materials: made at registration, verified by the projects that define them, and audited."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gemma_ops import registry
from gemma_ops.config import MachineConfig
from gemma_ops.errors import ConfigError, GateError
from gemma_ops.registry import fetching, flavor, profile, sealing, stored
from gemma_ops.registry.signing import PASSPHRASE, SIGNATURE, check_signature, sign_files
from gemma_ops.runs import digest
from tests.helpers import registry_runs as runs
from tests.helpers.signing_keys import make_keys

NAME = "support-nano"
MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
)
FILES = {"a.json": "11" * 32, "weights/model.gguf": "22" * 32}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_keys(folder, name) for name in ("release", "other")} | {"folder": folder}


@pytest.fixture(scope="module")
def signed(tmp_path_factory, keys):
    """A signed version, and a copy of it in a folder."""
    root = tmp_path_factory.mktemp("signed")
    plain = runs.config(root)
    machine = plain.machine.model_copy(
        update={"signing_key": keys["release"][0], "trusted_keys": (keys["release"][1],)}
    )
    runs.make(runs.config(root, machine=machine.model_dump()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_OPS_CACHE", str(root / "cache"))
        fetching.pull_version(machine, f"{NAME}/1", root / "copy")
    return machine, root / "copy"


def test_a_signature_holds_for_its_files_and_its_key_only(keys, tmp_path):
    private, public = keys["release"]
    sign_files(FILES, "m", private, tmp_path / SIGNATURE)
    told = check_signature(FILES, "m", tmp_path / SIGNATURE, [keys["other"][1], public])
    assert told == f"release.pub ({digest.of_file(Path(public))[:12]})"
    for files, why in (
        (FILES | {"a.json": "33" * 32}, "made of other bytes of a.json"),
        (FILES | {"b.json": "33" * 32}, "doesn't cover b.json"),
        ({"a.json": FILES["a.json"]}, "covers weights/model.gguf, which isn't there"),
    ):
        with pytest.raises(GateError, match=why):
            check_signature(files, "m", tmp_path / SIGNATURE, [keys["other"][1], public])
    with pytest.raises(GateError, match="none of the trusted keys made it"):
        check_signature(FILES, "m", tmp_path / SIGNATURE, [keys["other"][1]])
    (tmp_path / SIGNATURE).write_text("{}")
    with pytest.raises(GateError, match="does not hold"):
        check_signature(FILES, "m", tmp_path / SIGNATURE, [public])


def test_keys_that_cannot_be_used_are_told(keys, tmp_path, monkeypatch):
    locked, public = make_keys(tmp_path, "locked", "open sesame")
    for key, why in (
        (locked, "private key is encrypted"),
        (str(tmp_path / "none.pem"), "No such file"),
        ("gcpkms://projects/p/keys/k", "gcpkms is no kind of key"),
        ("pkcs11:token=t;object=k?module-path=/no/such.so", r"PKCS #11 functionality requires|such\.so"),
    ):
        with pytest.raises(ConfigError, match=why) as caught:
            sign_files(FILES, "m", key, tmp_path / SIGNATURE)
        assert "pkcs11: URI" in caught.value.fix
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    sign_files(FILES, "m", locked, tmp_path / SIGNATURE)
    assert check_signature(FILES, "m", tmp_path / SIGNATURE, [public])
    with pytest.raises(ConfigError, match="is no public key"):
        check_signature(FILES, "m", tmp_path / SIGNATURE, [locked])


def test_a_token_signs_with_its_pin_from_the_environment(tmp_path, monkeypatch):
    """SoftHSM stands for the hardware: Debian's softhsm2, and the package model-signing[pkcs11]."""
    module = next((path for path in map(Path, MODULES) if path.is_file()), None)
    if module is None or not shutil.which("softhsm2-util"):
        pytest.skip("SoftHSM is not installed")
    pytest.importorskip("PyKCS11", reason="tokens need model-signing[pkcs11]")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    private, public = make_keys(tmp_path, "release")
    for words in (
        "--init-token --free --label gemma --pin 1234 --so-pin 5678",
        f"--import {private} --token gemma --label release --id 01 --pin 1234",
    ):
        subprocess.run(["softhsm2-util", *words.split()], check=True, capture_output=True)
    uri = f"pkcs11:token=gemma;object=release?module-path={module}"
    monkeypatch.setenv(PASSPHRASE, "4321")
    with pytest.raises(ConfigError, match="can't sign: CKR_PIN_INCORRECT"):
        sign_files(FILES, "m", uri, tmp_path / SIGNATURE)
    monkeypatch.setenv(PASSPHRASE, "1234")
    sign_files(FILES, "m", uri, tmp_path / SIGNATURE)
    assert check_signature(FILES, "m", tmp_path / SIGNATURE, [public]).startswith("release.pub")


def test_a_pin_has_no_place_in_a_configuration():
    with pytest.raises(ValueError, match="leave pin-value out"):
        MachineConfig(signing_key="pkcs11:token=t;object=k?pin-value=1234")


def test_the_projects_own_command_verifies_a_pulled_copy(signed, keys):
    _, copy = signed
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(copy), "--signature", str(copy / SIGNATURE)]
    asked = [*command, "--public_key", keys["release"][1]]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    before = (copy / "summary.md").read_bytes()
    (copy / "summary.md").write_bytes(before + b" ")
    assert subprocess.run(asked, capture_output=True, text=True).returncode != 0
    (copy / "summary.md").write_bytes(before)


def test_a_version_registered_without_a_key_is_signed_when_it_is_registered_again(tmp_path, keys):
    config = runs.config(tmp_path)
    runs.make(config)
    trusting = config.machine.model_copy(update={"trusted_keys": (keys["release"][1],)})
    with pytest.raises(GateError, match="it is not signed"):
        registry.promote(trusting, NAME, reason="x", override="y")
    signing = trusting.model_copy(update={"signing_key": keys["release"][0]})
    runs.make(runs.config(tmp_path, machine=signing.model_dump()), redo=("register",))
    done = registry.promote(trusting, NAME, reason="x")
    assert (done.version, done.points[0].state) == ("1", "pass")
    assert "signed by release.pub" in done.points[0].why[0]


def test_a_version_of_before_gets_what_it_lacks_when_it_is_registered_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delitem(stored.OWN, stored.SBOM)
        patch.delitem(stored.OWN, flavor.MLMODEL)
        patch.setattr(sealing, "write_own", _as_before)
        config = runs.config(tmp_path)
        runs.make(config)
    with pytest.raises(GateError, match=r"missing  card  it carries no sbom\.cdx\.json"):
        registry.promote(config.machine, NAME, reason="x")
    out = runs.make(config, redo=("register",))["register"].path
    assert registry.promote(config.machine, NAME, reason="x").version == "1"
    assert (out / "MLmodel").is_file()


def _as_before(folder, body, card):
    sealing.write_json(folder / "manifest.json", body)
    (folder / "card.md").write_text(card)


def test_the_bill_of_materials_is_valid_and_names_what_the_model_was_made_of(signed):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    _, copy = signed
    text = (copy / stored.SBOM).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bad = json.loads(text) | {"specVersion": "1.6", "unheard": 1}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bad)) is not None
    body, manifest = json.loads(text), json.loads((copy / "manifest.json").read_text())
    model = body["metadata"]["component"]
    assert {one["name"]: one["hashes"][0]["content"] for one in model["components"]} == {
        name: file["sha256"] for name, file in manifest["subject"]["files"].items()
    }
    found = {one["bom-ref"]: one for one in body["components"]}
    assert found["base-model"]["name"] == "nano"
    assert (
        found["data:train.jsonl"]["hashes"][0]["content"]
        == (manifest["subject"]["data"]["files"]["train.jsonl"]["sha256"])
    )
    assert found["task:support_desk"]["hashes"][0]["content"] == "dd" * 32
    assert any(ref.startswith("pkg:pypi/torch@") for ref in found)
    depends = next(one for one in body["dependencies"] if one["ref"] == "model")["dependsOn"]
    assert set(depends) == set(found)


def test_an_audit_holds_then_says_each_thing_that_does_not(signed):
    machine, _ = signed
    registry.promote(machine, NAME, reason="first")
    whole = registry.audit(machine, NAME, everything=True)
    assert not whole.problems
    assert whole.to_json()["holds"] is True
    assert any("promote champion none → 1: first; 11 of 11 points" in line for line in whole.lines())
    tracking = profile.connect_mlflow(machine)
    home = stored.local_store(stored.logged_model(tracking, stored.version(tracking, NAME, 1)))
    kept = home.with_name("kept")
    shutil.copytree(home, kept)
    (home / "summary.md").write_text("x" * (home / "summary.md").stat().st_size)
    (home / SIGNATURE).unlink()
    tracking.client.set_registered_model_alias(NAME, "live", "1")
    told = registry.audit(machine, NAME)
    assert {(one.about, one.check) for one in told.problems} == {
        ("version 1", "files"), ("version 1", "signature"), ("alias live", "stands"),
    }  # fmt: skip
    assert "summary.md was changed" in told.problems[0].why
    assert "moved without gemma-ops" in told.problems[-1].why
    assert told.lines()[-1].startswith("3 of ")
    ledger = Path(machine.mlflow) / "ledger" / f"{NAME}.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b"first", b"fresh"))
    assert registry.audit(machine, NAME).problems[0].check == "chain"


def test_small_files_are_read_and_large_ones_when_asked(signed, monkeypatch):
    machine, _ = signed
    monkeypatch.setattr("gemma_ops.registry.audit_report._SMALL", 10)
    assert not any("summary.md was changed" in one.why for one in registry.audit(machine, NAME).problems)
    assert any("summary.md was changed" in one.why for one in registry.audit(machine, NAME, everything=True).problems)


def test_the_verb_leaves_with_nine_where_something_does_not_hold(cli, tmp_path):
    config = runs.config(tmp_path)
    runs.make(config)
    place = ["--set", f"machine.mlflow={config.machine.mlflow}"]
    profile.connect_mlflow(config.machine).client.set_registered_model_alias(NAME, "champion", "1")
    done = cli("audit", NAME, *place, "--json")
    assert done.returncode == 9
    assert json.loads(done.stdout)["holds"] is False
    done = cli("promote", f"{NAME}/1", "--to", f"{NAME}-prod", "--reason", "x", *place, "--json", check=True)
    assert json.loads(done.stdout)["name"] == f"{NAME}-prod"
