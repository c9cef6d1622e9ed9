"""`NAME` to `NAME-prod`: a copy without bytes, with a ledger and a policy of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gemma_ops import registry
from gemma_ops.config import ServeConfig
from gemma_ops.errors import ConfigError, GateError
from gemma_ops.registry import fetching, profile, promotion_ledger, stored
from gemma_ops.registry.copying import production_model
from gemma_ops.registry.policies import set_policy
from gemma_ops.runs import digest
from gemma_ops.serving.open_source import open_source
from tests.helpers import registry_runs as runs

NAME, PROD = "support-nano", "support-nano-prod"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two versions, the second made when the first was the champion."""
    root = tmp_path_factory.mktemp("production")
    first = runs.config(root, name="one", train={"seed": 1})
    runs.make(first)
    registry.promote(first.machine, NAME, reason="first")
    runs.make(runs.config(root, name="two", train={"seed": 2}))
    shutil.copytree(root / "mlflow" / "ledger", root / "ledger")
    return first.machine


@pytest.fixture
def machine(built, tmp_path, monkeypatch):
    monkeypatch.setenv("GEMMA_OPS_CACHE", str(tmp_path / "cache"))
    yield built
    root = Path(built.mlflow)
    tracking = profile.connect_mlflow(built)
    if stored.find_model(tracking, PROD):
        tracking.client.delete_registered_model(PROD)
    shutil.rmtree(root / "ledger")
    shutil.copytree(root.parent / "ledger", root / "ledger")


def ship(machine, version=1, **more):
    return registry.promote(machine, NAME, version=version, to=PROD, **{"reason": "to production"} | more)


def test_a_version_is_copied_with_its_origin_and_without_bytes(machine):
    before = sum(1 for _ in Path(machine.mlflow, "artifacts").rglob("*"))
    done = ship(machine)
    assert (done.name, done.alias, done.version, done.changed) == (PROD, "champion", "1", True)
    assert f"a copy of {NAME}/1" in done.lines()[0]
    assert [point.state for point in done.points] == ["pass"] * 11
    assert sum(1 for _ in Path(machine.mlflow, "artifacts").rglob("*")) == before
    version, policy, intent, moved = registry.history(machine, PROD)
    origin = version["origin"]
    assert (origin["model"], origin["version"]) == (NAME, "1")
    assert origin["ledger"].endswith(registry.verify_ledger(machine, NAME))
    assert policy["reason"].startswith(f"taken over from {NAME}: ")
    assert (intent["kind"], moved["kind"], moved["origin"]) == ("intent", "done", f"{NAME}/1")
    assert registry.show_policy(machine, PROD).digest == registry.show_policy(machine, NAME).digest
    assert not registry.audit(machine, PROD, everything=True).problems
    assert not registry.audit(machine, NAME).problems
    assert registry.show(machine, PROD).to_json()["versions"][0]["metrics"]


def test_what_was_promoted_is_pulled_and_served_under_the_other_name(machine, tmp_path):
    ship(machine)
    copy = fetching.pull_version(machine, f"{PROD}@champion", tmp_path / "copy")
    same = fetching.pull_version(machine, f"{NAME}/1", tmp_path / "same")
    assert copy.manifest == same.manifest
    assert digest.of_file(tmp_path / "copy/verdict.json") == digest.of_file(tmp_path / "same/verdict.json")
    served = open_source(f"{PROD}@champion", machine, ServeConfig(format="q8_0"))
    assert (served.model, served.version) == (PROD, "1")


def test_promoted_twice_it_is_copied_once(machine):
    ship(machine)
    again = ship(machine)
    assert (again.changed, again.version) == (False, "1")
    assert len(stored.registered_versions(profile.connect_mlflow(machine), PROD)) == 1


def test_the_next_version_replaces_it_and_both_ways_lead_back(machine):
    ship(machine)
    done = ship(machine, 2)
    assert (done.version, done.previous, done.compared_with) == ("2", "1", "1")
    assert registry.rollback(machine, PROD, reason="complaints").version == "1"
    assert registry.promote(machine, PROD, version=2, reason="mended").changed, "a copy may be promoted by its own name"
    assert not registry.audit(machine, PROD).problems


def test_a_policy_of_its_own_binds_whatever_the_other_one_asks(machine):
    ship(machine)
    policy = registry.show_policy(machine, PROD).policy
    asks = policy.asks.model_copy(update={"approval": True})
    set_policy(machine, PROD, policy.model_copy(update={"asks": asks}), reason="two pairs of eyes")
    with pytest.raises(GateError, match=r"approval .*the policy asks for somebody's approval"):
        ship(machine, 2)
    assert len(stored.registered_versions(profile.connect_mlflow(machine), PROD)) == 1, "what is refused is not copied"
    done = ship(machine, 2, approved_by="ada")
    assert registry.history(machine, PROD)[-1]["approved_by"] == "ada"
    assert any("by ada" in line for line in done.lines())
    assert not registry.show_policy(machine, NAME).policy.asks.approval


@pytest.mark.parametrize("after", ["copy_model_version", "append"])
def test_a_crash_in_between_is_finished_by_the_next_call(machine, monkeypatch, after):
    from mlflow import MlflowClient

    owner = MlflowClient if after == "copy_model_version" else promotion_ledger.PromotionLedger
    before = getattr(owner, after)

    def dying(self, *given, **named):
        before(self, *given, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, after, dying)
        with pytest.raises(KeyboardInterrupt):
            ship(machine)
    assert ship(machine).version == "1"
    assert [entry["kind"] for entry in registry.history(machine, PROD)] == ["version", "policy", "intent", "done"]
    assert not registry.audit(machine, PROD).problems


def test_where_a_promotion_goes():
    assert production_model(NAME, "champion") == (NAME, "champion")
    assert production_model(NAME, PROD) == (PROD, "champion")
    assert production_model(NAME, "other@live") == ("other", "live")
    with pytest.raises(ConfigError, match="names no alias"):
        production_model(NAME, "@live")


def test_a_version_may_be_held_to_the_champion_of_production(machine):
    """Its own model's champion has gone on since: what counts is the one that it is to replace."""
    root = Path(machine.mlflow).parent
    ship(machine)
    registry.promote(machine, NAME, version=2, reason="goes on")
    settings = {"machine": machine.model_dump(), "train": {"seed": 3}}
    own = runs.config(root, name="own", **settings)
    runs.make(own)
    with pytest.raises(GateError, match="compared with version 2, and version 1 is the champion now"):
        ship(machine, version=3)
    other = runs.config(root, name="other", **settings, register={"name": NAME, "champion_of": PROD})
    out = runs.make(other)["champion"].path
    facts = json.loads((out / "standard.json").read_text())
    assert (facts["champion"]["name"], facts["champion"]["version"]) == (PROD, "1")
    assert ship(machine, version=4).version == "2"
