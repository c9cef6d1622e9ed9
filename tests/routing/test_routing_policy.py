"""Routing policies: read strictly, held to their own probes, and never laxer than a class allows."""

from __future__ import annotations

import json

import pytest

from gemma_ops.config.shipped import root
from gemma_ops.errors import ConfigError
from gemma_ops.routing.policy_probes import check_probes
from gemma_ops.routing.routing_policy import RoutingPolicy, load_policy


@pytest.fixture
def write(tmp_path):
    def made(text):
        file = tmp_path / "policy.yaml"
        file.write_text(text)
        return str(file)

    return made


def test_the_shipped_policy_is_the_default_and_holds_its_probes():
    policy = load_policy("default")
    results = check_probes(policy)
    assert len(results) > 15
    assert [one.words for one in results if not one.passed] == []
    assert {one.decision.lane for one in results} == {"local", "gemini", "refuse"}


def test_what_the_shipped_file_says_is_what_holds_without_a_file():
    """A key left out of somebody's policy must not mean another thing than it does there."""
    assert load_policy("default").digest == RoutingPolicy().digest


def test_probes_decide_nothing_and_everything_else_does():
    policy = RoutingPolicy()
    assert policy.model_copy(update={"probes": load_policy("default").probes}).digest == policy.digest
    assert RoutingPolicy.model_validate({"latency": {"waiting": 9}}).digest != policy.digest


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("classes:\n  local_only: [gemini]\n", 2, "classes.local_only"),
        ("classes:\n  any: [cloud]\n", 2, "classes.any"),
        ("gemini:\n  modle: x\n", 2, "did you mean model?"),
        ("detectors:\n  kinds: {EMIAL: paid}\n", 1, "no detector is called EMIAL"),
        ("gemini:\n  hosted_tools: [search]\n", 2, "hosted_tools"),
        ("probes:\n  - name: x\n    given: {privacy: public}\n    lane: local\n", 3, "privacy"),
        ("unclassified: any\n", 1, "unknown key"),
        ("budget: {dollars_per_day: -1}\n", 1, "dollars_per_day"),
    ],
)
def test_a_policy_that_is_wrong_is_told_with_its_line(write, text, line, words):
    with pytest.raises(ConfigError, match=rf"policy\.yaml:{line}: ") as caught:
        load_policy(write(text))
    assert words in caught.value.what


def test_a_failing_probe_fails_the_check(write, cli):
    good = (root() / "configs" / "routing" / "default.yaml").read_text()
    done = cli("route", "check", write(good))
    assert (done.returncode, "probes hold" in done.stdout) == (0, True)
    # Somebody opens a class, and forgets what the probes hold them to.
    done = cli("route", "check", write(good.replace("paid: [local] ", "paid: [local, gemini] ")))
    assert done.returncode == 9
    assert "FAIL work for paid terms stays here: gemini, not local" in done.stdout
    assert "1 of 21 probes fail" in done.stderr


def test_explain_reads_both_protocols_and_sends_nothing(write, cli, tmp_path):
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    body = {"model": "auto", "metadata": {"privacy": "any"}, "messages": [{"role": "user", "content": [shown]}]}
    (tmp_path / "openai.json").write_text(json.dumps(body))
    found = json.loads(cli("route", "explain", str(tmp_path / "openai.json"), "--json").stdout)
    assert (found["lane"], found["privacy"], found["signals"]["modalities"]) == ("gemini", "any", ["text", "image"])
    turn = {"role": "user", "parts": [{"text": "call me: 4111 1111 1111 1111"}]}
    (tmp_path / "gemini.json").write_text(json.dumps({"contents": [turn], "tools": [{"google_search": {}}]}))
    found = json.loads(cli("route", "explain", str(tmp_path / "gemini.json"), "--privacy", "any", "--json").stdout)
    assert (found["lane"], found["privacy"], found["signals"]["hosted"]) == ("refuse", "local_only", ["search"])
    assert found["signals"]["found"] == ["CARD"]
    done = cli("route", "explain", "--text", "hello", "--privacy", "any", "--waiting", "30")
    assert done.stdout.splitlines()[0] == "gemini"
    assert "30 requests wait here" in done.stdout
    assert cli("route", "explain").returncode == 2
