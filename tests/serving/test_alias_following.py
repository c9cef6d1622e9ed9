"""A server follows its alias: a promotion and a rollback swap versions under traffic, and no request is lost."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import httpx2
import pytest

from gemma_ops import registry
from gemma_ops.errors import ConfigError, GateError, OpsError
from gemma_ops.registry import moving, profile
from gemma_ops.registry.fetching import pull_version
from gemma_ops.runs.processes import Birth
from gemma_ops.serving import alias_following
from gemma_ops.serving.server import alias_followers
from tests.helpers import patience
from tests.helpers import registry_runs as runs
from tests.helpers.live_server import make_files, register, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """nano twice: the second has a few other numbers."""
    folder = make_files(tmp_path_factory.mktemp("gguf"))
    body = bytearray((folder / "q8_0" / "model.gguf").read_bytes())
    body[-1000] ^= 1
    (folder / "second").mkdir()
    (folder / "second" / "model.gguf").write_bytes(body)
    (folder / "broken").mkdir()
    (folder / "broken" / "model.gguf").write_bytes(body[:200_000])
    return folder


@pytest.fixture
def registered(tmp_path, files, monkeypatch):
    """A function that registers a version of support-nano whose q8_0 file is one of the files; and its machine."""
    monkeypatch.setenv("GEMMA_OPS_CACHE", str(tmp_path / "cache"))
    runs.fresh(tmp_path / "mlflow")

    def make(which, **train):
        return register(tmp_path, files, which, name=which.replace("_", ""), train=train)

    return make


@contextmanager
def following_server(machine, **settings):
    """The server as the verb starts it, at support-nano@champion, and what it said."""
    with serving("support-nano@champion", machine=machine, form=None, follow=0.05, **settings) as live:
        yield live


def ask(live, **more):
    body = {"model": "support-nano", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8} | more
    return httpx2.post(f"{live.url}/v1/chat/completions", json=body, timeout=120)


def serves(live, version):
    patience.until(lambda: live.service.facts.version == version, 60)


def test_a_promotion_and_a_rollback_lose_no_request(registered):
    machine = registered("q8_0")
    registry.promote(machine, "support-nano", reason="first")
    with following_server(machine, slots=2, queue=64) as live:
        first = live.engine.pid
        found, over = [], threading.Event()

        def client(streams):
            while not over.is_set():
                reply = ask(live, stream=streams, max_tokens=24)
                text = reply.text
                good = text.rstrip().endswith("[DONE]") if streams else "choices" in text
                found.append((reply.status_code, good, reply.headers.get("x-gemma-ops-version")))

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, streams) for streams in (True, False, True, False)]
            try:
                registered("second", max_steps=20)
                registry.promote(machine, "support-nano", version="2", reason="better")
                serves(live, "2")
                registry.rollback(machine, "support-nano", reason="worse after all")
                serves(live, "1")
                patience.until(lambda: len(live.deployment.services) == 1, 60)
                more = len(found) + 4
                patience.until(lambda: len(found) >= more, 60)
            finally:
                over.set()
            for one in clients:
                one.result()
        assert {one[:2] for one in found} == {(200, True)}
        assert {one[2] for one in found} == {"1", "2"}
        assert Birth.of(first) is None
        text = httpx2.get(f"{live.url}/metrics").text
        for version in ("1", "2"):
            line = next(
                line for line in text.splitlines() if f'version="{version}"' in line and "requests_total{" in line
            )
            assert int(line.split()[-1]) == sum(one[2] == version for one in found)
        assert "gemma_ops_swaps_total 2" in text
        page = httpx2.get(live.url).text
        assert "<td>2<td>q8_0<td>ended" in page
        assert "<td>1<td>q8_0<td>serves" in page
    assert live.said[-2:] == ["version 2 serves, instead of version 1", "version 1 serves, instead of version 2"]


def test_a_version_that_can_not_serve_is_told_and_the_old_one_serves_on(registered):
    machine = registered("q8_0")
    registry.promote(machine, "support-nano", reason="first")
    with following_server(machine) as live:
        registered("broken", max_steps=20)
        registry.promote(machine, "support-nano", version="2", reason="a try")
        patience.until(lambda: live.deployment.trouble, 60)
        looked = len(live.said)
        assert ask(live).headers["x-gemma-ops-version"] == "1"
        assert "version 2 of support-nano can't serve: llama.cpp can't load" in live.said[-1]
        assert "version 1 keeps serving" in httpx2.get(live.url).text
        registry.rollback(machine, "support-nano", reason="it can't serve")
        patience.until(lambda: not live.deployment.trouble, 60)
        assert len(live.said) == looked  # told once, and tried once


def test_what_does_not_fit_beside_the_old_one_takes_its_place(registered, monkeypatch):
    machine = registered("q8_0")
    registry.promote(machine, "support-nano", reason="first")
    monkeypatch.setattr(alias_following, "memory_for", lambda *_: 1_000_000)
    with following_server(machine, slots=1) as live:
        before = live.engine.pid
        registered("second", max_steps=20)
        registry.promote(machine, "support-nano", version="2", reason="better")
        replies = []
        while live.service.facts.version != "2":
            replies.append(ask(live, max_tokens=2).status_code)
        assert set(replies) <= {200}
        assert Birth.of(before) is None
        assert "one version at a time" in live.said[0]
        registered("broken", max_steps=30)
        registry.promote(machine, "support-nano", version="3", reason="a try")
        patience.until(lambda: live.deployment.trouble, 60)
        reply = ask(live, max_tokens=2)
        assert (reply.status_code, reply.headers["x-gemma-ops-version"]) == (200, "2")


def test_a_challenger_answers_its_share(registered):
    machine = registered("q8_0")
    registry.promote(machine, "support-nano", reason="first")
    registered("second", max_steps=20)
    with following_server(machine, challenger={"share": 0.5}) as live:
        assert live.deployment.challenger is None  # the alias isn't set, which is no trouble
        registry.promote(machine, "support-nano", version="2", to="challenger", reason="a try")
        patience.until(lambda: live.deployment.challenger, 60)
        found = [ask(live, max_tokens=1).headers["x-gemma-ops-version"] for _ in range(24)]
        assert set(found) == {"1", "2"}  # all of one kind: once in 8 million
        assert "challenger: 50% of the requests" in httpx2.get(live.url).text
    with pytest.raises(ConfigError, match="needs an alias to challenge"):
        alias_followers(live.deployment, replace(live.source, asked="support-nano/1"), machine, live.given, print)


def test_a_webhook_of_mlflow_makes_it_look_at_once(registered, monkeypatch):
    machine = registered("q8_0")
    registry.promote(machine, "support-nano", reason="first")
    monkeypatch.setenv("GEMMA_OPS_WEBHOOK_SECRET", "s3cret")
    with serving("support-nano@champion", machine=machine, form=None, follow=600) as live:
        registered("second", max_steps=20)
        registry.promote(machine, "support-nano", version="2", reason="better")
        body, stamp = (
            json.dumps({"entity": "registered_model_alias", "action": "created"}).encode(),
            str(int(time.time())),
        )
        made = hmac.new(b"s3cret", f"d1.{stamp}.".encode() + body, hashlib.sha256).digest()
        signed = {"X-MLflow-Delivery-Id": "d1", "X-MLflow-Timestamp": stamp}
        forged = httpx2.post(
            f"{live.url}/mlflow/webhook", content=body, headers=signed | {"X-MLflow-Signature": "v1,x"}
        )
        assert forged.status_code == 403
        good = signed | {"X-MLflow-Signature": f"v1,{base64.b64encode(made).decode()}"}
        assert httpx2.post(f"{live.url}/mlflow/webhook", content=body, headers=good).status_code == 204
        serves(live, "2")
        old = good | {"X-MLflow-Timestamp": "1000"}
        assert httpx2.post(f"{live.url}/mlflow/webhook", content=body, headers=old).status_code == 403


def test_an_alias_that_was_moved_past_the_ledger_is_not_followed(registered):
    machine = registered("q8_0")
    registry.promote(machine, "support-nano", reason="first")
    registered("second", max_steps=20)
    client = profile.connect_mlflow(machine).client
    with following_server(machine) as live:
        client.set_registered_model_alias("support-nano", "champion", "2")
        patience.until(lambda: live.said, 60)
        assert live.service.facts.version == "1"
        assert live.said[-1].startswith(
            "support-nano@champion can't be followed: lineage: support-nano@champion stands at"
        )
        assert "version 2 in MLflow, and its ledger put it at version 1" in live.said[-1]
        with pytest.raises(GateError, match="it was moved without gemma-ops") as caught:
            pull_version(machine, "support-nano@champion")
        assert "gemma-ops promote support-nano --to champion" in caught.value.fix
        registry.promote(machine, "support-nano", version="2", reason="weighed")
        serves(live, "2")
    client.set_registered_model_alias("support-nano", "by-hand", "1")
    assert pull_version(machine, "support-nano@by-hand").version == "1"  # nobody promoted to it, nobody was passed


def test_an_alias_that_moves_while_the_ledger_is_read_was_not_moved_past_it(monkeypatch):
    stands = iter("122")
    monkeypatch.setattr(moving, "alias_version", lambda *_: next(stands))
    done = [{"kind": "done", "action": "promote", "alias": "champion", "to": "2"}]
    monkeypatch.setattr(moving.PromotionLedger, "__init__", lambda *_: None)
    monkeypatch.setattr(moving.PromotionLedger, "entries", lambda _: done)
    assert moving.promoted_version(None, "support-nano", "champion") == "2"


def test_what_nobody_foresaw_is_told_and_ends_no_following(monkeypatch):
    monkeypatch.setattr(alias_following, "_standing", lambda *_: int("x"))
    said = []
    follower = alias_following.AliasFollower(
        SimpleNamespace(trouble={}), "support@champion", None, None, None, said.append
    )
    asyncio.run(follower.look())
    assert said == ["support@champion can't be followed: ValueError: invalid literal for int() with base 10: 'x'"]


def test_an_alias_that_is_gone_changes_nothing(registered):
    machine = registered("q8_0")
    registry.promote(machine, "support-nano", reason="first")
    with following_server(machine) as live:
        profile.connect_mlflow(machine).client.delete_registered_model_alias("support-nano", "champion")
        patience.until(lambda: live.deployment.trouble, 60)
        assert "no longer exists: version 1 keeps serving" in live.said[-1]
        assert ask(live).status_code == 200


def test_an_application_of_ray_serve_is_of_the_version_where_its_alias_stood(registered):
    pytest.importorskip("ray.serve", reason="Ray Serve, of the extra `ray`, is not installed")
    from gemma_ops.serving.rayserve import resolve_alias

    machine = registered("q8_0")
    with pytest.raises(OpsError, match="has no alias 'champion'"):
        resolve_alias("support-nano@champion", machine)
    registry.promote(machine, "support-nano", reason="first")
    assert resolve_alias("support-nano@champion", machine) == "support-nano/1"
    assert [resolve_alias(one, machine) for one in ("support-nano/1", "a.gguf@b")] == ["support-nano/1", "a.gguf@b"]
