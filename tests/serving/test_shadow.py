"""A shadow keeps what two versions said to the same request, and what was kept is compared as evaluation compares."""

from __future__ import annotations

import asyncio
import json
import stat
from dataclasses import replace

import pytest

from gemma_ops.config import MachineConfig, ServeConfig
from gemma_ops.config.serve import ChallengerConfig
from gemma_ops.errors import DataError
from gemma_ops.nano import WEIGHTS
from gemma_ops.serving.comparing import compare_live
from gemma_ops.serving.deployment import Deployment
from gemma_ops.serving.model import Said
from gemma_ops.serving.open_source import open_source
from gemma_ops.serving.prometheus import render_metrics
from gemma_ops.serving.server import opened_server
from gemma_ops.serving.shadow import PAIR_SCHEMA, Shadow
from gemma_ops.wire.ask import Ask
from tests.helpers.live_server import make_files


def pair(number, first="stop", second="stop", *, text="a", failed="", versions=("1", "2")):
    def answer(version, end, said, why=""):
        return {
            "version": version, "format": "q8_0", "text": said, "calls": [], "end": end, "failed": why, "seconds": 0.1,
            "tokens": 4, "thought_tokens": 0,
        }  # fmt: skip

    return {
        "schema": PAIR_SCHEMA, "at": 0.0, "ask": {"messages": [{"role": "user", "content": f"q{number}"}]},
        "first": answer(versions[0], first, "a"), "second": answer(versions[1], second, text, failed),
    }  # fmt: skip


def written(path, pairs):
    path.write_text("".join(json.dumps(one) + "\n" for one in pairs))
    return path


def test_a_challenger_that_ends_as_well_passes_once_there_are_enough(tmp_path):
    few = compare_live(written(tmp_path / "m.pairs.jsonl", [pair(n) for n in range(50)]))
    assert (few.decision.outcome, few.looks) == ("inconclusive", 1)
    assert few.decision.n_needed > 100
    many = compare_live(written(tmp_path / "m.pairs.jsonl", [pair(n, text="ab"[n % 2]) for n in range(400)]))
    assert (many.decision.outcome, many.looks, many.pairs) == ("pass", 2, 400)
    assert many.same.value == 0.5
    assert "on 400 live requests (look 2)" in many.lines()[0]
    assert json.loads(json.dumps(many.to_json()))["versions"] == ["1", "2"]


@pytest.mark.parametrize("worse", [{"second": "length"}, {"second": "", "failed": "schema"}])
def test_a_challenger_that_is_cut_or_fails_more_often_does_not_pass(tmp_path, worse):
    pairs = [pair(n, **(worse if n % 5 == 0 else {})) for n in range(400)]
    found = compare_live(written(tmp_path / "m.pairs.jsonl", pairs))
    assert found.decision.outcome == "fail"
    assert found.ended == (1.0, 0.8)


def test_one_question_asked_often_counts_once(tmp_path):
    found = compare_live(written(tmp_path / "m.pairs.jsonl", [pair(n % 3) for n in range(400)]))
    assert found.decision.outcome == "inconclusive"
    assert found.decision.clusters == 3


def test_looking_again_at_the_same_pairs_spends_nothing_and_at_more_does(tmp_path):
    path = written(tmp_path / "m.pairs.jsonl", [pair(n) for n in range(60)])
    levels = [compare_live(path).decision.level for _ in range(3)]
    assert len(set(levels)) == 1
    more = compare_live(written(path, [pair(n) for n in range(61)])).decision.level
    assert 1 - more < 1 - levels[0]


def test_only_pairs_of_the_newest_two_versions_count(tmp_path):
    old = [pair(n, second="length") for n in range(100)]
    new = [pair(n, versions=("2", "3")) for n in range(30)]
    found = compare_live(written(tmp_path / "m.pairs.jsonl", old + new))
    assert (found.versions, found.pairs, found.ended) == (("2", "3"), 30, (1.0, 1.0))


def test_a_file_without_pairs_and_a_damaged_one_are_told(tmp_path, cli):
    with pytest.raises(DataError, match="holds no pairs"):
        compare_live(tmp_path / "none.jsonl")
    path = tmp_path / "m.pairs.jsonl"
    path.write_text(json.dumps(pair(1)) + "\n" + '{"schema": "gemma-ops/pair@1", "at')
    assert compare_live(path).pairs == 1  # the line that a crash cut
    path.write_text("{}\n" + json.dumps(pair(1)) + "\n")
    with pytest.raises(DataError, match=r"jsonl:1 is no pair"):
        compare_live(path)
    none = cli("serve", "support@champion", "--compare")
    assert (none.returncode, "support.pairs.jsonl holds no pairs" in none.stderr) == (3, True)
    (tmp_path / "serving").mkdir()
    written(tmp_path / "serving" / "support.pairs.jsonl", [pair(n) for n in range(9)])
    told = cli("serve", "support@champion", "--compare", "--set", f"serve.challenger.pairs={tmp_path}/serving",
               "--set", "serve.challenger.shadow=true", "--json")  # fmt: skip
    assert json.loads(told.stdout)["pairs"] == 9, told.stderr


def test_a_challenger_has_a_share_or_is_a_shadow():
    for wrong in ({}, {"share": 0.2, "shadow": True}):
        with pytest.raises(ValueError, match="either a share"):
            ChallengerConfig(**wrong)


def test_a_shadow_asks_where_there_is_time_and_keeps_both_answers_for_its_owner(tmp_path):
    file = make_files(tmp_path) / "q8_0" / "model.gguf"
    asyncio.run(_shadowed(file, tmp_path / "kept" / "m.pairs.jsonl"))


async def _shadowed(file, path):
    settings, machine = ServeConfig(slots=1, context=256), MachineConfig()
    source = open_source(f"{file}@{WEIGHTS}", machine, settings)
    services = [await opened_server(source, machine, settings) for _ in range(2)]
    deployment = Deployment(services[0])
    shadow = Shadow(deployment, path)
    try:
        ask = Ask([{"role": "user", "content": "hello"}], max_tokens=8, temperature=0, stream=True)
        said = await services[0].reply(ask)
        shadow.copy(ask, said, services[0], 0.5, "")
        assert not any(shadow.counts.values())  # nobody challenges
        deployment.challenge(services[1])
        shadow.copy(ask, said, services[0], 0.5, "")
        async with services[1].slots.taken():
            shadow.copy(ask, said, services[0], 0.5, "")  # no slot is free
        shadow.copy(ask, Said(), services[0], 0.5, "")  # its client went
        await shadow.settled()
        assert dict(shadow.counts) == {"copied": 1, "skipped": 1}
        for mark in ("[media 1f 0]", "[media 2e 0]"):  # another in each request
            turns = [{"role": "user", "content": f"which colour? {mark}"}]
            picture = {mark: {"type": "media", "mime": "image/png", "data": "aGVsbG8="}}
            shadow.copy(replace(ask, messages=turns, shown=picture), said, services[0], 0.5, "")
            await shadow.settled()
        assert 'gemma_ops_shadow_total{outcome="skipped"} 1' in render_metrics(deployment, shadow=shadow.counts)
    finally:
        await deployment.stop()
    kept, *shown = map(json.loads, path.read_text().splitlines())
    first, second = (one["ask"]["messages"] for one in shown)
    assert first == second  # one question, whatever stands for its picture
    assert "which colour? [image/png" in first[0]["content"]
    assert kept["ask"]["messages"] == [{"role": "user", "content": "hello"}]
    assert (kept["first"]["text"], kept["first"]["seconds"]) == (said.text, 0.5)
    assert kept["second"]["text"] == said.text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
