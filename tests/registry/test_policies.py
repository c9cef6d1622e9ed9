"""The policy of a registered model: who sets it, and that no detour leads around it."""

from __future__ import annotations

import json

import pytest

from gemma_ops import registry
from gemma_ops.config import GateConfig
from gemma_ops.config.policy import PolicyTask, PromotionPolicy, make_policy, softer
from gemma_ops.errors import ConfigError, GateError, OpsError
from gemma_ops.registry import profile, stored
from gemma_ops.registry.objections import Incumbent, objections
from gemma_ops.registry.policies import PolicyInForce
from gemma_ops.registry.version_records import looks_before
from gemma_ops.verdicts import Verdict
from tests.helpers import registry_runs as runs
from tests.helpers.bare_verdict import bare_verdict

NAME = "support-nano"
EASY = ({"metric": "exact_match", "target": "tuned", "test": "at_least", "margin": 0.001},)
TASKS = {"support_desk": PolicyTask(digest="dd" * 32, rows=120, primary="exact_match")}


def versions(config):
    return registry.show(config.machine, NAME).versions


def of_old(out, settings, machine, *, champion=None, **inputs):
    """An evaluation by a recipe that asks no registry: it knows neither policy nor champion."""
    return runs.evaluate(out, settings, machine, **inputs)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Version 1 passed and is the champion; version 2 failed the gates that version 1 had proposed as policy."""
    root = tmp_path_factory.mktemp("shop")
    good = runs.config(root, name="good", train={"seed": 1})
    runs.make(good)
    promoted = registry.promote(good.machine, NAME, reason="first")
    bad = runs.config(root, name="bad", train={"seed": 2}, evaluate={"seed": 8})
    runs.make(bad)
    return root, promoted


def test_the_first_version_proposes_the_policy_and_is_promoted_without_another_command(shop):
    root, promoted = shop
    config = runs.config(root)
    assert (promoted.version, promoted.overrides, promoted.compared_with) == ("1", (), None)
    assert "proposed by version 1 from the gates of run good" in promoted.policy
    found = registry.show_policy(config.machine, NAME)
    wanted = [(gate.target, gate.test, gate.versus, gate.margin) for gate in found.policy.gates]
    assert wanted == [("tuned", "superior", "base", 0.5), ("tuned", "noninferior", "champion", 0.05)]
    assert found.policy.tasks == TASKS
    assert any("asked on at least 120 questions of support_desk" in line for line in found.lines())


def test_a_version_is_judged_by_the_policy_and_against_the_champion(shop):
    root, _ = shop
    config = runs.config(root)
    with pytest.raises(GateError) as caught:
        registry.promote(config.machine, NAME, version=2, reason="x")
    assert "its verdict is fail" in caught.value.what
    assert (
        "ended fail: tuned not worse than champion by 0.05 or more (exact_match) on support_desk" in caught.value.what
    )
    assert "policy" in caught.value.fix
    verdict = json.loads((root / "runs/bad/evaluate/verdict.json").read_text())
    champion = {key: value for key, value in verdict["standard"]["champion"].items() if key != "base"}
    assert champion == {
        "name": NAME, "version": "1", "manifest": versions(config)[-1]["manifest"], "form": "q8_0",
        "learned": "local_only",
    }  # fmt: skip
    assert [result["target"] for result in verdict["results"]] == ["base", "tuned", "q8_0", "q4_0", "champion"]


DETOURS = {
    "gates that any model passes": ({"gates": EASY}, None, ["a gate of the policy ended fail: tuned better than base"]),
    "a recipe that asks no registry": (
        {"gates": EASY},
        of_old,
        [
            "a gate of the policy was not asked: tuned better than base by more than 0.5",
            "it was compared with no champion, and version 1 is the champion now",
        ],
    ),
    "a smaller margin": (
        {"gates": [{**runs.GATES[0], "margin": 0.1}]},
        of_old,
        ["its margin is 0.1 where the policy's is 0.5: tuned better than base"],
    ),
    "a lower confidence": ({"confidence": 0.8}, of_old, ["its confidence is 0.8, the policy's 0.95"]),
    "other content of the task": (
        {"gates": EASY, "tasks": ["other"]},
        None,
        ["its task support_desk has other content (eeeeeeeeeeee) than the policy's (dddddddddddd)"],
    ),
    "fewer questions": ({"rows": 20, "gates": EASY}, None, [("it was asked 20 questions of support_desk, and the "
                                                            "policy wants 120")]),
}  # fmt: skip


@pytest.mark.parametrize("detour", DETOURS)
def test_no_detour_leads_around_the_policy(shop, detour):
    """The weights of version 2, which failed, come again in another run, under other gates, rows or questions."""
    root, _ = shop
    changes, step, reasons = DETOURS[detour]
    name = detour.replace(" ", "-")
    config = runs.config(root, name=name, train={"seed": 2}, evaluate={"seed": 8} | changes)
    made = runs.make(config, steps={"evaluate": step} if step else None)
    number = int(made["register"].metrics["version"])
    with pytest.raises(GateError, match="may not be promoted") as caught:
        registry.promote(config.machine, NAME, version=number, reason="x")
    for reason in [*reasons, "version 2 held the same weights, and its verdict was fail"]:
        assert reason in caught.value.what
    assert registry.show(config.machine, NAME).aliases["champion"] == "1"


def test_graded_again_or_registered_again_it_is_refused_again(shop):
    root, _ = shop
    config = runs.config(root, name="bad", train={"seed": 2}, evaluate={"seed": 8, "gates": EASY})
    runs.make(config, redo=("evaluate", "register"))
    assert versions(config)[0]["verdict"] == "fail", "the policy's gates were asked besides"
    with pytest.raises(GateError, match="a gate of the policy ended fail"):
        registry.promote(config.machine, NAME, reason="x")
    log = (root / "runs/bad/logs/register.2.jsonl").read_text()
    assert "version 2 held the same weights, and its verdict was fail" in log


def test_what_an_override_overrides_is_kept(tmp_path):
    good = runs.config(tmp_path, name="good", train={"seed": 1})
    runs.make(good)
    registry.promote(good.machine, NAME, reason="first")
    runs.make(runs.config(tmp_path, name="bad", train={"seed": 2}, evaluate={"seed": 8}))
    done = registry.promote(good.machine, NAME, reason="demo", override="shown to the board")
    assert "quality: its verdict is fail" in done.overrides
    entry = registry.history(good.machine, NAME)[-1]
    assert entry["overrides"] == list(done.overrides)
    assert entry["policy"] == registry.show_policy(good.machine, NAME).digest
    assert any("its verdict is fail" in line for line in done.lines())
    assert "against: quality: its verdict is fail" in registry.show(good.machine, NAME).lines()[-1]


def test_a_better_version_is_compared_with_the_champion_and_promoted(tmp_path):
    runs.make(runs.config(tmp_path, name="one", train={"seed": 1}))
    registry.promote(runs.config(tmp_path).machine, NAME, reason="first")
    own = [{**EASY[0], "margin": 0.92}]
    config = runs.config(tmp_path, name="two", train={"seed": 2}, evaluate={"gates": own})
    runs.make(config)
    gates = json.loads((tmp_path / "runs/two/evaluate/verdict.json").read_text())["gates"]
    assert [gate["versus"] for gate in gates] == ["base", "champion", None], "its own gate came on top"
    done = registry.promote(config.machine, NAME, reason="better")
    assert (done.version, done.compared_with, done.overrides) == ("2", "1", ())
    with pytest.raises(GateError, match="it was compared with no champion, and version 2 is the champion now"):
        registry.promote(config.machine, NAME, version=1, reason="back by promotion")


def test_a_policy_is_changed_with_a_reason_and_everybody_reads_what_got_softer(tmp_path):
    config = runs.config(tmp_path, name="bad", evaluate={"seed": 8})
    runs.make(config)
    easy = make_policy([GateConfig(**EASY[0])], TASKS, 0.9)
    with pytest.raises(ConfigError, match="--reason is empty"):
        registry.set_policy(config.machine, NAME, easy, reason=" ")
    with pytest.raises(ConfigError, match="a policy needs a gate"):
        registry.set_policy(config.machine, NAME, None, reason="x")
    found = registry.set_policy(config.machine, NAME, easy, reason="the board wants a demo")
    assert "no more: tuned better than base by more than 0.5 (exact_match) on support_desk" in found.softer
    assert "confidence 0.9 instead of 0.95" in found.softer
    assert registry.set_policy(config.machine, NAME, easy, reason="again").number == found.number, "nothing changed"
    runs.make(runs.config(tmp_path, name="again", evaluate={"seed": 8, "gates": EASY}))
    done = registry.promote(config.machine, NAME, reason="demo")
    assert "the board wants a demo" in done.policy
    assert done.notes == ("version 1 held the same weights, and its verdict was fail",)


def test_a_model_without_gates_has_no_policy_and_promotes_nothing(tmp_path):
    config = runs.config(tmp_path, evaluate={"gates": []})
    runs.make(config)
    with pytest.raises(OpsError, match="has no policy"):
        registry.show_policy(config.machine, NAME)
    with pytest.raises(GateError, match="the registered model has no policy"):
        registry.promote(config.machine, NAME, reason="x")


def test_a_version_deleted_in_mlflow_is_noticed(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config)
    folder = tmp_path / "runs" / "support"
    assert registry.lost_version(config.machine, folder) is None
    client = profile.connect_mlflow(config.machine).client
    client.delete_model_version(NAME, "1")
    lost = registry.lost_version(config.machine, folder)
    assert lost == f"version 1 of {NAME} was deleted in MLflow: it is registered again as a new version"
    with pytest.raises(OpsError, match="version 1 of support-nano was deleted in MLflow"):
        registry.promote(config.machine, NAME, reason="x")
    runs.make(config, redo=("register",))
    shown = registry.show(config.machine, NAME)
    assert ([version["version"] for version in shown.versions], shown.gone) == (["2"], ["1"])
    assert "  version 1 was deleted in MLflow" in shown.lines()
    client.delete_registered_model(NAME)
    assert registry.lost_version(config.machine, folder)
    (tmp_path / "mlflow" / "mlflow.db").rename(tmp_path / "gone.db")
    assert "is gone with" in registry.lost_version(config.machine, folder)


def test_the_latest_that_is_left_says_which_later_one_was_deleted(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config)
    runs.make(runs.config(tmp_path, name="two", train={"seed": 2}))
    profile.connect_mlflow(config.machine).client.delete_model_version(NAME, "2")
    done = registry.promote(config.machine, NAME, reason="x")
    assert (done.version, done.notes) == ("1", ("version 2 was deleted in MLflow, so 1 is the latest that is left",))


def test_the_champion_that_is_pulled_is_what_was_registered(tmp_path):
    config = runs.config(tmp_path)
    runs.make(config)
    registry.promote(config.machine, NAME, reason="x")
    out = tmp_path / "pulled"
    out.mkdir()
    registry.pull_champion(out, config.registered_model(), config.machine)
    assert (out / "model/model.gguf").read_bytes() == (tmp_path / "runs/support/quantize/q8_0/model.gguf").read_bytes()
    assert (out / "tokenizer/tokenizer.json").is_file()
    tracking = profile.connect_mlflow(config.machine)
    home = stored.local_store(stored.logged_model(tracking, stored.version(tracking, NAME, 1)))
    body = bytearray((home / "quantized/q8_0/model.gguf").read_bytes())
    body[-1] ^= 1
    (home / "quantized/q8_0/model.gguf").write_bytes(body)
    with pytest.raises(GateError, match=r"quantized/q8_0/model\.gguf was changed"):
        registry.pull_champion(out, config.registered_model(), config.machine)


def policy(*gates: GateConfig, tasks=TASKS, confidence=0.95) -> PromotionPolicy:
    found = make_policy(gates, tasks, confidence)
    assert found
    return found


def held() -> PolicyInForce:
    """A policy in force that asks nothing by itself."""
    return PolicyInForce(
        NAME, policy(GateConfig(**EASY[0])).model_copy(update={"gates": (), "tasks": {}}), 1, "", "", "", ()
    )


def test_a_policy_that_only_grew_stricter_is_not_called_softer():
    gate = GateConfig(task="support_desk", metric="exact_match", test="noninferior", versus="base", margin=0.05)
    before = policy(gate)
    stricter = policy(gate.model_copy(update={"margin": 0.01}), GateConfig(**EASY[0]), confidence=0.99)
    assert softer(before, stricter) == []
    more = {"support_desk": TASKS["support_desk"].model_copy(update={"rows": 60, "digest": "ee" * 32})}
    assert len(softer(before, policy(gate.model_copy(update={"margin": 0.2}), tasks=more))) == 3


def passed(**facts):
    """A verdict that passed with no gate and no task."""
    return Verdict.parse(bare_verdict(verdict="pass", **facts))


def test_looks_of_earlier_versions_that_a_verdict_does_not_count_speak_against_it():
    """A run that was moved elsewhere begins with a clean slate; the registry knows better."""

    def look(evidence):
        return {"subjects": ["support_desk aa bb"], "evidence": evidence, "rows": 9, "level": 0.02, "verdict": "fail"}

    def against(earlier):
        own = {**look("own"), "number": 2, "later": 0.01, "earlier": earlier}
        body = passed(look=own)
        entries = [
            {"kind": "version", "version": "1", "look": look("first")},
            {"kind": "version", "version": "2", "look": look("own")},
            {"kind": "version", "version": "3", "look": look("later")},
        ]
        return objections(body, (), held(), None, looks_before(entries, "2"))

    assert against([]) == [
        "version 1 looked at the same models before, and its verdict spent the level as if nobody had"
    ]
    assert against([look("first")]) == []


def test_a_verdict_against_another_champion_speaks_against_it():
    body = passed(standard={"champion": {"version": "3", "manifest": "aa"}})
    assert objections(body, (), None, None, {}) == ["the registered model has no policy"]
    assert objections(body, (), held(), Incumbent("4", "bb"), {}) == [
        "it was compared with version 3, and version 4 is the champion now"
    ]
    assert objections(body, (), held(), Incumbent("3", "aa"), {}) == []
    assert objections(None, ("the seed",), held(), None, {}) == [
        "it was never evaluated",
        "its manifest lacks the seed",
    ]
