"""The way to a replica and back, over a real socket: what a replica's end costs at each moment, and who is let in."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import contextmanager

import httpx2
import pytest
import uvicorn
from starlette.testclient import TestClient

from gemma_ops.serving.engine import EngineGoneError
from gemma_ops.serving.relay import Relay, run_app
from tests.helpers import patience

CHAT, GEMINI = "/v1/chat/completions", "/v1beta/models/m:streamGenerateContent?alt=sse"


def head(kind):
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


def part(body, *, more=True):
    return {"type": "http.response.body", "body": body, "more_body": more}


def replica(*messages, ends=False):
    """What one replica sends; `ends`: and then it dies."""

    async def answer():
        for message in messages:
            yield message
        if ends:
            raise EngineGoneError("the replica that answered has ended", "send the request again")

    return answer


@contextmanager
def relayed(*replicas, limit=1000, reachable=False):
    """A client of a relay whose requests go to one after the other; and what they were asked."""
    left, asked = list(replicas), []

    def answer(scope, body):
        asked.append((scope["path"], body))
        return left.pop(0)()

    server = uvicorn.Server(
        uvicorn.Config(Relay(answer, limit, reachable=reachable), log_config=None, lifespan="off", ws="none")
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
        thread.start()
        patience.until(lambda: server.started, 30)
        with httpx2.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30) as client:
            yield client, asked
        server.should_exit = True
        assert patience.joined(thread, 30)


EVENTS, JSON = b"text/event-stream; charset=utf-8", b"application/json"
WHOLE = (head(JSON), part(b'{"a": 1}', more=False))


def test_before_anything_was_sent_the_next_is_asked():
    """A head alone is nothing: its status is told with the first of the body."""
    with relayed(replica(ends=True), replica(head(EVENTS), ends=True), replica(*WHOLE)) as (client, asked):
        assert client.post(CHAT, content=b"{}").json() == {"a": 1}
    assert asked == [(CHAT, b"{}")] * 3


@pytest.mark.parametrize(("path", "key"), [(CHAT, "code"), (GEMINI, "status")])
def test_a_stream_that_breaks_off_says_so_in_its_protocol(path, key):
    with relayed(replica(head(EVENTS), part(b"data: 1\n\n"), ends=True)) as (client, asked):
        lines = client.post(path, content=b"{}").text.strip().split("\n\n")
    assert lines[0] == "data: 1"
    error = json.loads(lines[1].removeprefix("data: "))["error"]
    assert "the replica that answered has ended; send the request again" in error["message"]
    assert key in error
    assert len(asked) == 1


def test_half_a_whole_reply_is_no_reply():
    with (
        relayed(replica(head(JSON), part(b'{"a":'), ends=True)) as (client, _),
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        client.post(CHAT, content=b"{}")


def test_where_all_end_it_is_told():
    with relayed(*[replica(ends=True)] * 5) as (client, asked):
        answer = client.post(CHAT, content=b"{}")
    assert (answer.status_code, answer.headers["Retry-After"], len(asked)) == (503, "1", 5)


def test_a_client_that_goes_ends_the_work():
    ended, going = threading.Event(), threading.Event()

    async def app(scope, receive, send):
        """As the server does, it looks whether the client is there."""
        assert (await receive())["body"] == b"{}"
        await send(head(EVENTS))
        await send(part(b"data: 1\n\n"))
        going.set()
        try:
            await receive()
        finally:
            ended.set()

    with relayed(lambda: run_app(app, {"type": "http"}, b"{}")) as (client, _):
        with client.stream("POST", CHAT, content=b"{}") as answer:
            assert next(answer.iter_lines()) == "data: 1"
            assert going.wait(30)
        patience.until(ended.is_set, 30)


def test_what_is_too_large_or_comes_from_elsewhere_goes_to_no_replica():
    with relayed(limit=10) as (client, asked):
        assert client.post(CHAT, content=b"x" * 11).status_code == 413
    assert not asked
    relay = Relay(lambda *_: replica(*WHOLE)(), 10, reachable=False)
    refused = TestClient(relay, client=("192.0.2.7", 1)).post(CHAT, content=b"{}", headers={"host": "localhost"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "keys")
    keyed = Relay(lambda *_: replica(*WHOLE)(), 10, reachable=True)
    assert TestClient(keyed, client=("192.0.2.7", 1)).post(CHAT, content=b"{}").json() == {"a": 1}
