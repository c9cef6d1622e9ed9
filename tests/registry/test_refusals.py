"""What was changed, was never evaluated or isn't signed is neither promoted nor pulled nor served, and it is said which
point failed."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gemma_ops import registry
from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.errors import GateError
from gemma_ops.registry import fetching, profile, stored
from gemma_ops.registry.signing import SIGNATURE
from gemma_ops.runs import digest
from gemma_ops.serving.open_source import open_source
from tests.helpers import registry_runs as runs
from tests.helpers.signing_keys import make_keys

NAME = "support-nano"


@dataclass
class Shop:
    """Three signed versions of one model: as it should be, with a verdict about other bytes, and of other questions."""

    root: Path
    trusting: MachineConfig
    """A machine that trusts the key they are signed with."""
    plain: MachineConfig
    """One that trusts none."""

    def home(self, number: int = 1) -> tuple[Any, Any, Path]:
        tracking = profile.connect_mlflow(self.plain)
        found = stored.version(tracking, NAME, number)
        logged = stored.logged_model(tracking, found)
        return tracking, logged, stored.local_store(logged)


def about_other_bytes(out, settings, machine, **inputs):
    done = runs.evaluate(out, settings, machine, **inputs)
    body = json.loads((out / "verdict.json").read_text())
    body["targets"]["q8_0"]["sha256"] = "0" * 64
    (out / "verdict.json").write_text(json.dumps(body))
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("refusals")
    private, public = make_keys(root, "release")
    plain = runs.config(root).machine
    signing = plain.model_copy(update={"signing_key": private})

    def config(name, seed, **changes):
        return runs.config(root, name=name, train={"seed": seed}, machine=signing.model_dump(), **changes)

    runs.make(config("one", 1))
    runs.make(config("two", 2), steps={"evaluate": about_other_bytes})
    runs.make(config("three", 3, evaluate={"tasks": ["other"]}))
    shutil.copytree(root / "mlflow" / "artifacts", root / "artifacts")
    return Shop(root, plain.model_copy(update={"trusted_keys": (public,)}), plain)


@pytest.fixture
def shop(built, tmp_path, monkeypatch):
    """The same, as it was built, with an empty cache."""
    monkeypatch.setenv("GEMMA_OPS_CACHE", str(tmp_path / "cache"))
    yield built
    shutil.rmtree(built.root / "mlflow" / "artifacts")
    shutil.copytree(built.root / "artifacts", built.root / "mlflow" / "artifacts")
    tracking, logged, home = built.home()
    _retag(tracking, logged, home)


def promote(machine, number=1):
    return registry.promote(machine, NAME, version=number, to="challenger", reason="x", override="I insist")


def pull(machine, number=1):
    return fetching.pull_version(machine, f"{NAME}/{number}")


def serve(machine, number=1):
    return open_source(f"{NAME}/{number}", machine, ServeConfig(format="q8_0"))


USES = [promote, pull, serve]


def _retag(tracking, logged, home) -> None:
    """Make all digests in MLflow those of the files as they are."""
    body = json.loads((home / "manifest.json").read_text())
    tags = {tag: digest.of_file(home / name) for name, tag in stored.OWN.items()} | {stored.TAG: body["digest"]}
    tracking.client.set_logged_model_tags(logged.model_id, tags)
    for key, value in tags.items():
        tracking.client.set_model_version_tag(NAME, "1", key, value)


def forge(shop, name: str, content: bytes) -> None:
    """Change a file, and make the manifest and every digest in MLflow fit."""
    tracking, logged, home = shop.home()
    (home / name).write_bytes(content)
    body = json.loads((home / "manifest.json").read_text())
    file = {"sha256": digest.of_file(home / name), "bytes": len(content)}
    body["subject"]["files"][name] = file
    form = name.split("/")[1] if name.endswith(".gguf") else None
    if form:
        body["subject"]["quantized"]["formats"][form] = file
    body["digest"] = digest.of_json(body["subject"])
    (home / "manifest.json").write_text(json.dumps(body))
    _retag(tracking, logged, home)


def a_flipped_byte(shop):
    file = shop.home()[2] / "quantized/q8_0/model.gguf"
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


def another_verdict(shop):
    """One that was made of the same model before."""
    body = json.loads((shop.home()[2] / "verdict.json").read_text())
    forge(shop, "verdict.json", json.dumps(body | {"verdict": "pass", "confidence": 0.9}).encode())


def other_weights(shop):
    before = (shop.home()[2] / "quantized/q8_0/model.gguf").read_bytes()
    forge(shop, "quantized/q8_0/model.gguf", before[:-1] + bytes([before[-1] ^ 1]))


def no_signature(shop):
    (shop.home()[2] / SIGNATURE).unlink()


def a_signature_of_another_version(shop):
    shutil.copyfile(shop.home(3)[2] / SIGNATURE, shop.home()[2] / SIGNATURE)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("change", "point"),
    [
        (a_flipped_byte, r"integrity: .*q8_0/model\.gguf was changed"),
        (another_verdict, "lineage: .* carries another verdict than its evaluation had made"),
        (no_signature, "integrity: the signature of .* does not hold: it is not signed"),
        (a_signature_of_another_version, "integrity: the signature of .* does not hold: it was made of other bytes"),
        (other_weights, r"integrity: the signature of .* does not hold: it was made of other bytes of .*model\.gguf"),
    ],
)
def test_what_was_changed_is_refused_and_the_point_is_named(shop, use, change, point):
    change(shop)
    with pytest.raises(GateError, match=point):
        use(shop.trusting)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "adapter/adapter_model.safetensors", "summary.md"])
def test_a_pickle_by_any_name_is_refused_though_every_digest_fits(shop, use, name):
    if use is serve and name.endswith(".safetensors"):
        pytest.skip("what is served needs no adapter, and leaves it where it is")
    forge(shop, name, pickle.dumps({"x": print}) * 3)
    with pytest.raises(GateError, match=rf"integrity: .*{name}: it is no"):
        use(shop.plain)


@pytest.mark.parametrize("use", USES)
def test_a_verdict_about_other_bytes_is_refused(shop, use):
    with pytest.raises(GateError, match=r"evaluated is served.*the verdict is about another file of q8_0") as caught:
        registry.promote(shop.trusting, NAME, version=2, reason="x") if use is promote else use(shop.trusting, 2)
    assert caught.value.exit_code == 9


def test_another_evaluation_set_than_the_policys_is_refused(shop):
    """Whether a version meets the policy is asked when it is promoted; by its number it may still be looked at."""
    with pytest.raises(GateError, match=r"quality.*its task support_desk has other content"):
        registry.promote(shop.trusting, NAME, version=3, reason="x")
    assert pull(shop.trusting, 3).version == "3"


def test_forged_throughout_the_ledger_still_knows_the_version(shop):
    """Without keys: the weights, the manifest and every tag in MLflow fit each other, and the ledger says otherwise."""
    other_weights(shop)
    with pytest.raises(GateError, match="integrity: the ledger of support-nano knows version 1 by another manifest"):
        promote(shop.plain)


@pytest.mark.parametrize("use", USES)
def test_as_it_was_registered_it_is_taken(shop, use):
    done = use(shop.trusting)
    assert done.version == "1"
    if use is promote:
        assert done.points[0].why[0].endswith(f"signed by {_key(shop)}")


def _key(shop) -> str:
    path = Path(shop.trusting.trusted_keys[0])
    return f"{path.name} ({digest.of_file(path)[:12]})"
