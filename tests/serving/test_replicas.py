"""Several engines of one file behind one front: who is asked, what one's death costs, and the canary of each."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx2
import openai
import pytest

from gemma_ops.errors import GateError, ModelError
from gemma_ops.nano import tickets
from gemma_ops.runs.processes import Birth
from gemma_ops.serving import server
from gemma_ops.serving.child import ChildEngine
from gemma_ops.serving.engine import Sampling
from gemma_ops.serving.llamacpp_engine import LlamaCpp
from gemma_ops.serving.replicas import Replicas, common_prefix, several
from gemma_ops.wire.ask import Ask
from tests.helpers import patience
from tests.helpers.live_server import NAME, make_files, record, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def live(files):
    with serving(files / "q8_0" / "model.gguf", replicas=2, context=2048, queue=40) as started:
        yield started


@pytest.fixture
def client(live):
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


def endless(client, text):
    """A stream that is not over before it is closed, whose prompt is read."""
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 900}
    shape = {"type": "json_schema", "json_schema": {"name": "numbers", "schema": numbers}}
    stream = client.chat.completions.create(
        model=NAME, messages=user(text), response_format=shape, stream=True, max_tokens=1900
    )
    next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
    return stream


def running(live):
    return [state.running for state in live.engine.states()]


def test_the_idle_one_is_asked_and_of_idle_ones_the_one_that_knows_the_prompt(live, client):
    assert live.service.slots.running == 0
    assert live.engine.slots == 4
    first = endless(client, "one " * 60)
    (place,) = [number for number, count in enumerate(running(live)) if count]
    second = endless(client, "two " * 60)
    assert running(live) == [1, 1]
    for stream in (first, second):
        stream.close()
    patience.until(lambda: running(live) == [0, 0], 30)
    for text, wanted in (("two", 1 - place), ("one", place)):
        before = [state.requests for state in live.engine.states()]
        usage = client.chat.completions.create(model=NAME, messages=user(f"{text} " * 60), max_tokens=2).usage
        after = [state.requests for state in live.engine.states()]
        assert after[wanted] == before[wanted] + 1
        assert usage.prompt_tokens_details.cached_tokens > 60


def test_one_that_is_killed_fails_only_what_it_was_saying(live, client):
    stream, unready, over = endless(client, "go on"), [], threading.Event()
    (place,) = [number for number, count in enumerate(running(live)) if count]
    killed, restarts = live.engine.engines[place], live.engine.restarts

    def ask(number):
        return client.chat.completions.create(model=NAME, messages=user(f"go {number}"), max_tokens=8).choices

    def watch():
        while not over.is_set():
            unready.extend(answer for answer in [httpx2.get(f"{live.url}/ready")] if answer.status_code != 200)

    watching = threading.Thread(target=watch)
    watching.start()
    with ThreadPoolExecutor(24) as pool:
        os.kill(killed.pid, signal.SIGSTOP)  # what it is given from here on doesn't begin
        asked = [pool.submit(ask, number) for number in range(24)]
        patience.until(lambda: running(live)[place] == 2, 30)
        os.kill(killed.pid, signal.SIGKILL)
        assert all(one.result() for one in asked)
    with pytest.raises(openai.APIError, match="ended in the middle"):
        list(stream)
    patience.until(lambda: killed.restarts == 1 and killed.alive(), 60)
    over.set()
    assert patience.joined(watching, 30)
    assert not unready
    assert live.engine.restarts == restarts + 1
    told, label = httpx2.get(f"{live.url}/metrics").text, f'model="{NAME}",version="",format="q8_0"'
    for number, state in enumerate(live.engine.states()):
        shown = f'{{{label},replica="{number}"}}'
        assert f"gemma_ops_replica_requests_total{shown} {state.requests}\n" in told
        assert f"gemma_ops_replica_restarts_total{shown} {int(number == place)}\n" in told
        assert f"gemma_ops_replica_up{shown} 1\n" in told


def test_what_had_not_begun_in_a_dead_one_is_answered_by_the_other(files):
    """By the engines themselves, whoever asks: the service would ask again only after a while."""

    async def answered():
        made = [LlamaCpp(files / "q8_0" / "model.gguf", slots=1, context=256) for _ in range(2)]
        replicas = Replicas(made)
        await replicas.start()
        try:
            os.kill(made[0].pid, signal.SIGSTOP)

            async def ask():
                return [found async for found in replicas.complete([2, 105, 106], Sampling(4))]

            asking = asyncio.create_task(ask())
            while replicas.states()[0].running == 0:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            os.kill(made[0].pid, signal.SIGKILL)
            return await asking, [state.requests for state in replicas.states()]
        finally:
            await replicas.stop()

    tokens, requests = asyncio.run(answered())
    assert tokens[-1].end
    assert requests == [1, 1]


def second_of(monkeypatch, file):
    """Let every second replica run another file."""
    made = []

    def engine(source, machine, settings):
        made.append(LlamaCpp(file if made else source.file, slots=1, context=settings.context))
        return made[-1]

    monkeypatch.setattr(server, "make_engine", engine)
    return made


def test_the_canary_sings_in_each(files, tmp_path, monkeypatch):
    rows = []
    with serving(files / "q8_0" / "model.gguf", slots=1) as one:
        client = openai.OpenAI(base_url=f"{one.url}/v1", api_key="any")
        for ticket in tickets.test_rows(4, 1):
            asked = {"model": NAME, "messages": user(ticket["prompt"]), "temperature": 0, "max_tokens": 32}
            said = client.chat.completions.create(**asked).choices[0].message.content
            ids = one.service.model.prompt(Ask(messages=asked["messages"])).ids
            rows.append({"messages": asked["messages"], "ids": ids, "max_new_tokens": 32, "answers": {"q8_0": said}})
    canary = record(tmp_path / "canary.json", rows)
    with serving(files / "q8_0" / "model.gguf", slots=1, replicas=2, recorded=canary) as live:
        told = "4 of 4 recorded answers came back word for word in each of 2 replicas"
        assert live.service.facts.canary == told
    body = bytearray((files / "bf16" / "model.gguf").read_bytes())
    for place in range(len(body) // 2, len(body) - 4000, 64):
        body[place + 1] ^= 0x01
    (tmp_path / "other.gguf").write_bytes(body)
    made = second_of(monkeypatch, tmp_path / "other.gguf")
    with (
        pytest.raises(GateError, match=r"[0-3] of 4 recorded answers"),
        serving(files / "q8_0" / "model.gguf", replicas=2, recorded=canary),
    ):
        pass
    assert [Birth.of(engine.pid) for engine in made] == [None, None]


def test_where_one_cant_load_none_stays(files, tmp_path, monkeypatch):
    (tmp_path / "broken.gguf").write_bytes((files / "q8_0" / "model.gguf").read_bytes()[:100_000])
    made = second_of(monkeypatch, tmp_path / "broken.gguf")
    with pytest.raises(ModelError, match="can't load"), serving(files / "q8_0" / "model.gguf", replicas=2):
        pass
    assert [Birth.of(engine.pid) for engine in made] == [None, None]


def test_a_child_that_dies_in_the_middle_of_a_word_is_told():
    """Where that happens while it is started again, it is started once more."""
    said = "import sys; sys.stdout.write('{\"ready')"
    engine = ChildEngine("an engine", slots=1, context=64)
    with pytest.raises(ModelError, match="it can't start: it ended without a message"):
        asyncio.run(engine._spawn_told([sys.executable, "-c", said], {}, "it can't start"))


_FORKED = """
import asyncio, os, sys
from pathlib import Path
from gemma_ops.serving.child import ChildEngine

class Still(ChildEngine):
    async def _spawn(self): pass
    async def _watch(self): pass

engine = Still("still", slots=1, context=64)
asyncio.run(engine.start())
if not os.fork():
    sys.exit()
os.wait()
print(Path(engine._socket).parent.is_dir())
"""


def test_a_forked_process_that_ends_takes_no_engine_with_it():
    done = subprocess.run([sys.executable, "-c", _FORKED], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "True\n"


def test_threads_are_shared_out():
    given = []

    def made(threads):
        given.append(threads)
        return SimpleNamespace(name="engine", slots=2, context=64, restarts=0, senses=None)

    assert several(3, 8, made).slots == 6
    several(1, 8, made)
    several(4, 2, made)
    assert given == [2, 2, 2, 8, 1, 1, 1, 1]


def test_what_prompts_begin_with_together():
    assert [common_prefix([1, 2, 3], other) for other in ([], [1], [1, 2, 4], [1, 2, 3, 4], [2, 1])] == [0, 1, 2, 3, 0]
