"""The eleven points: what each asks, on one registered version whose evidence is changed."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest

from gemma_ops import registry
from gemma_ops.config import PromotionAsks
from gemma_ops.config.policy import softer
from gemma_ops.errors import GateError
from gemma_ops.registry import profile, promotion_ledger, stored
from gemma_ops.registry.objections import Incumbent
from gemma_ops.registry.points import POINTS, kept_words, points_table
from gemma_ops.registry.policies import policy_in_force
from gemma_ops.registry.served import ServeNeeds, not_what_is_served, served_words
from gemma_ops.registry.verification import verify_version
from gemma_ops.registry.weighing import Move, weigh_version
from gemma_ops.verdicts import Verdict
from tests.helpers import registry_runs as runs
from tests.helpers.bare_verdict import bare_verdict

NAME = "support-nano"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    config = runs.config(tmp_path_factory.mktemp("points"))
    runs.make(config)
    tracking = profile.connect_mlflow(config.machine)
    entries = promotion_ledger.PromotionLedger(tracking, NAME).entries()
    return verify_version(tracking, stored.version(tracking, NAME, 1)), policy_in_force(NAME, entries), entries, config


def weighed(world, *, change=None, manifest=None, asks=None, incumbent=None, approved_by=None, **needs):
    """The version weighed after `change` to its verdict's JSON and `manifest` to its manifest's subject."""
    checked, policy, entries, _ = world
    if change:
        body = checked.verdict.to_json()
        change(body)
        checked = replace(checked, verdict=Verdict.parse(body))
    if manifest:
        body = copy.deepcopy(dict(checked.manifest))
        manifest(body["subject"])
        checked = replace(checked, manifest=body)
    if asks:
        policy = replace(policy, policy=policy.policy.model_copy(update={"asks": PromotionAsks(**asks)}))
    move = Move(NAME, "champion", None, entries, approved_by, ServeNeeds(**needs))
    return weigh_version(checked, policy, incumbent, entries, move)


def point(weighing, name):
    return next(one for one in weighing.points if one.name == name)


def test_all_eleven_hold_in_order_and_each_says_why(world):
    done = weighed(world)
    assert tuple(one.name for one in done.points) == POINTS
    assert len(POINTS) == 11
    assert not done.against
    assert all(one.state == "pass" and one.why[0] for one in done.points)
    assert point(done, "integrity").why == (
        "9 files byte for byte as registered, none that can run code; no key is trusted here",
    )
    assert point(done, "approval").why == ("the policy asks for none",)


def speechless(body):
    for result in body["results"]:
        if result["target"] == "q4_0":
            result["speed"] = {}


def unasked(body):
    body["targets"].pop("q4_0")


CASES = {
    "no canary": ("evaluated is served", "missing", "no canary was recorded of q4_0", {
        "change": lambda body: body["canary"].pop("q4_0")}),
    "never asked": ("evaluated is served", "missing", "q4_0 would be served, and q4_0 answered no question", {
        "change": unasked}),
    "other bytes": ("evaluated is served", "fail", "the verdict is about another file of q8_0", {
        "change": lambda body: body["targets"]["q8_0"].update(sha256="0" * 64)}),
    "bytes not said": ("evaluated is served", "missing", "doesn't say which file of q8_0 answered", {
        "change": lambda body: body["targets"]["q8_0"].pop("sha256")}),
    "other engine": ("evaluated is served", "fail", "q8_0 answered in transformers, and llama.cpp serves it", {
        "change": lambda body: body["targets"]["q8_0"].update(engine="transformers")}),
    "other checkpoint": ("evaluated is served", "fail", "the verdict is about another tuned", {
        "change": lambda body: body["targets"]["tuned"].update(artifact="0" * 64)}),
    "no speed": ("resources", "missing", "no speed of q4_0 was measured", {"change": speechless}),
    "no shape": ("resources", "missing", "keys and values is not known", {"change": lambda body: body.pop("kv")}),
    "too large": ("resources", "fail", "and the policy's limit is 100.0 kB", {"asks": {"memory_gb": 0.0001}}),
    "not probed": ("safety", "missing", "nothing was probed", {"change": lambda body: body.pop("safety")}),
    "given away": ("safety", "fail", "3 of 40 probed training rows were given away, and the policy takes 5%", {
        "change": lambda body: body["safety"]["memorized"].update(said=3)}),
    "no row probed": ("safety", "missing", "no training row was probed", {
        "change": lambda body: body["safety"].update(memorized=None)}),
    "refusals lost": ("safety", "fail", "2 of the 12 refusals of its base were lost", {
        "change": lambda body: body["safety"]["refused"].update(base=12, lost=2)}),
    "never compared": ("contamination", "missing", "were compared with no question", {
        "manifest": lambda subject: subject["data"].pop("overlap")}),
    "another task": ("contamination", "missing", "were not compared with support_desk", {
        "manifest": lambda subject: subject["data"]["overlap"].update(tasks={"gsm8k": 0})}),
    "kept": ("contamination", "fail", "7 training rows also stand in support_desk", {
        "manifest": lambda subject: subject["data"].update(overlap={"mode": "report", "tasks": {"support_desk": 7}})}),
    "unknown file": ("lineage", "fail", "q8_0 is another file than its step quantize made", {
        "manifest": lambda subject: subject["quantized"]["formats"]["q8_0"].update(sha256="0" * 64)}),
    "approval": ("approval", "missing", "asks for somebody's approval", {"asks": {"approval": True}}),
    "signature": ("integrity", "missing", "this machine trusts no key", {"asks": {"signature": True}}),
    "champion": ("quality", "fail", "it was compared with no champion, and version 9 is", {
        "incumbent": Incumbent("9", "ff")}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_point_that_does_not_hold_says_so_and_is_the_only_one(world, case):
    name, state, why, changes = CASES[case]
    done = weighed(world, **changes)
    found = point(done, name)
    assert found.state == state
    assert any(why in line for line in found.why)
    assert [one.name for one in done.points if not one.good] == [name]
    assert all(line.startswith(f"{name}: ") for line in done.against)
    assert kept_words([one.kept() for one in done.points]) == f"10 of 11 points ({name} {state})"


def test_what_holds_says_what_was_found(world):
    done = weighed(world, approved_by="ada", asks={"approval": True}, context=1000, slots=2)
    assert point(done, "approval").why == ("by ada",)
    assert "2 requests, q8_0 takes 1.0 MB (weights 12.1 kB, keys and values 1.0 MB)" in point(done, "resources").why[0]
    assert "95% of answers within 0.20 s, 300 tokens/s" in point(done, "resources").why[0]
    assert point(done, "contamination").why == ("no training row stands in support_desk",)
    left_out = weighed(world, manifest=lambda subject: subject["data"]["overlap"].update(tasks={"support_desk": 2}))
    assert point(left_out, "contamination").why[0].endswith("; 2 were left out")
    assert points_table(done.points)[1].startswith("  pass     lineage              nano and 34 rows → weights → q")


def test_a_version_that_was_never_evaluated_lacks_what_an_evaluation_shows(world):
    checked, *rest = world
    done = weighed((replace(checked, verdict=None, own=()), *rest))
    assert [one.name for one in done.points if one.state != "pass"] == [
        "contamination", "quality", "evaluated is served", "resources", "safety", "card",
    ]  # fmt: skip
    assert "sbom.cdx.json" in point(done, "card").why[0]


def test_the_table_is_printed_and_kept(world):
    *_, config = world
    done = registry.promote(config.machine, NAME, to="trial", reason="to see the table")
    assert sum(line.startswith("  pass  ") for line in done.lines()) == 11
    told = json.loads(json.dumps(done.to_json()))["points"]
    assert [(one["point"], one["state"]) for one in told] == [(name, "pass") for name in POINTS]
    last = registry.history(config.machine, NAME)[-1]
    assert [name for name, *_ in last["points"]] == list(POINTS)


def test_a_refusal_shows_the_points_that_do_not_hold(tmp_path):
    def evaluate(out, settings, machine, **inputs):
        done = runs.evaluate(out, settings, machine, **inputs)
        body = json.loads((out / "verdict.json").read_text())
        body["canary"].pop("q4_0")
        (out / "verdict.json").write_text(json.dumps(body))
        return done

    config = runs.config(tmp_path)
    runs.make(config, steps={"evaluate": evaluate})
    with pytest.raises(GateError, match="missing  evaluated is served  no canary was recorded of q4_0") as caught:
        registry.promote(config.machine, NAME, reason="x")
    assert "integrity" not in caught.value.what
    done = registry.promote(config.machine, NAME, reason="x", override="no server will take it")
    assert done.overrides == ("evaluated is served: no canary was recorded of q4_0",)
    assert registry.show(config.machine, NAME).lines()[-1].endswith("10 of 11 points (evaluated is served missing)")


def test_what_is_asked_less_of_is_told():
    policy = runs_policy()
    strict = policy.model_copy(update={"asks": PromotionAsks(memorized=0.0, approval=True, memory_gb=1.0)})
    assert softer(strict, policy) == [
        "memorized 0.05 instead of 0", "memory_gb unlimited instead of 1", "no approval asked",
    ]  # fmt: skip
    assert softer(policy, strict) == []


def runs_policy():
    from gemma_ops.config.policy import PolicyTask, PromotionPolicy

    task = PolicyTask(digest="d", rows=1, primary="exact_match")
    return PromotionPolicy(gates=({**runs.GATES[0], "task": "t"},), tasks={"t": task}, confidence=0.95)


def test_a_policy_that_asks_the_usual_keeps_its_digest():
    """Policies of before there was `asks` stand in ledgers by their digest."""
    from gemma_ops.runs import digest

    policy = runs_policy()
    body = policy.model_dump(mode="json")
    assert "asks" not in body
    assert digest.of_json(policy) == digest.of_json(body)
    asks = policy.model_copy(update={"asks": PromotionAsks(approval=True)})
    assert asks.model_dump(mode="json")["asks"]["approval"] is True
    assert digest.of_json(asks) != digest.of_json(policy)


def test_a_checkpoint_that_would_be_served_needs_a_canary_too():
    subject = {"files": {"merged/config.json": {"bytes": 1}}, "merged": {"digest": "d"}}
    body = bare_verdict(targets={"tuned": {"identity": "i", "artifact": "d", "engine": "transformers"}})
    body["tasks"] = {"t": {"digest": "d", "primary": "exact_match", "rows": 1, "privacy": {"any": 1}}}
    result = {"task": "t", "target": "tuned", "rows": 1, "ends": {"stop": 1}, "failed": 0, "metrics": {}, "slices": {}}
    body["results"] = [result | {"speed": {}, "cost": {"usd_per_1k": None}}]
    assert not_what_is_served(Verdict.parse(body), subject) == ([], ["no canary was recorded of tuned"])
    sung = Verdict.parse(body | {"canary": {"tuned": 16}})
    assert not_what_is_served(sung, subject) == ([], [])
    assert served_words(sung, subject) == ["merged d answered in transformers, 16 answers recorded"]
