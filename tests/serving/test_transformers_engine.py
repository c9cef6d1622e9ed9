"""transformers as an engine: what the evaluation's own target says, drawn as it is asked for, and caught by the canary
where it serves something else."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import openai
import psutil
import pytest
import torch

from gemma_ops.answer import Prompt
from gemma_ops.errors import GateError
from gemma_ops.modeling import load
from gemma_ops.modeling.transformers_server import Exchange, TransformersServer
from gemma_ops.nano import WEIGHTS, tickets
from gemma_ops.serving.engine import EngineGoneError, EngineRefusedError, Sampling
from gemma_ops.serving.model import ServedModel
from gemma_ops.serving.serving_canary import RecordedAnswers, check_canary, run_canary
from gemma_ops.targets.local_target import CheckpointTarget
from tests.helpers import patience
from tests.helpers.live_server import NAME, record, serving
from tests.helpers.tuned_nano import CPU, make_adapter, make_merged

QUESTIONS = [row["prompt"] for row in tickets.test_rows(24, 0)]
LIMIT = 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_adapter(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def merged(tmp_path_factory, trained):
    return make_merged(tmp_path_factory.mktemp("merge") / "merge", trained.parent)


@pytest.fixture(scope="module")
def live(merged):
    with serving(merged) as started:
        yield started


@pytest.fixture(scope="module")
def base():
    with serving(WEIGHTS) as started:
        yield started


def evaluated(folder, changed=None):
    """What the evaluation's target answers, and with how many tokens, eight questions at once."""
    target = CheckpointTarget("tuned", folder, CPU, changed=changed)
    prompts = [Prompt([{"role": "user", "content": text}]) for text in QUESTIONS]
    batches = [prompts[start : start + 8] for start in range(0, len(prompts), 8)]
    return [(one.text, one.new_tokens) for part in target.answer(batches, max_new_tokens=LIMIT) for one in part]


@pytest.fixture(scope="module")
def tuned(merged):
    return evaluated(merged)


@pytest.fixture(scope="module")
def rows(live, tuned):
    """What an evaluation records: the tuned model's answers, and its base's."""
    found = []
    for text, (said, _), (plain, _) in zip(QUESTIONS, tuned, evaluated(WEIGHTS), strict=True):
        messages = [{"role": "user", "content": text}]
        ids = live.service.model._encoders[False](Prompt(messages))
        answers = {"tuned": said, "base": plain}
        found.append({"messages": messages, "tools": [], "ids": ids, "max_new_tokens": LIMIT, "answers": answers})
    assert sum(row["answers"]["tuned"] != row["answers"]["base"] for row in found) >= 10
    return found


def over_http(live):
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)

    def ask(text):
        messages = [{"role": "user", "content": text}]
        found = client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_tokens=LIMIT)
        return found.choices[0].message.content, found.usage.completion_tokens

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(ask, QUESTIONS))


def test_a_merged_checkpoint_answers_as_it_was_evaluated(live, tuned):
    assert live.engine.name.startswith("transformers 5.")
    assert over_http(live) == tuned


def test_an_adapter_on_its_base_answers_as_it_was_evaluated(trained, rows, tmp_path):
    """All of it, before it takes traffic."""
    said = [text for text, _ in evaluated(WEIGHTS, trained)]
    own = [row | {"answers": {"tuned": text}} for row, text in zip(rows, said, strict=True)]
    assert sum(row["answers"]["base"] != text for row, text in zip(rows, said, strict=True)) >= 10
    with serving(f"{trained}@{WEIGHTS}", recorded=record(tmp_path / "canary.json", own)) as adapted:
        assert adapted.service.facts.canary == "24 of 24 recorded answers came back word for word"


async def reply(engine, prompt, sampling):
    """The ids of a whole reply, its last part, and the probabilities of its first token."""
    parts = [part async for part in engine.complete(prompt, sampling)]
    return [token for part in parts for token in part.ids], parts[-1], parts[0].chances


def test_the_draw_is_what_was_asked_for(live, rows):
    engine, prompt = live.engine, rows[0]["ids"]

    def drawn(**how):
        return live.done(reply(engine, prompt, Sampling(12, **how)))[0]

    greedy, hot = drawn(), drawn(temperature=1.5, seed=7)
    assert drawn(temperature=1.5, seed=7) == hot
    assert len({tuple(drawn(temperature=1.5, seed=seed)) for seed in (7, 8, -9, 1 << 70)}) > 1
    assert len({tuple(drawn(temperature=3.0)) for _ in range(4)}) > 1
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0}, {"temperature": 1e-40}):
        assert drawn(**{"temperature": 1.5, "seed": 7} | narrow) == greedy
    assert engine.restarts == 0  # a request takes the engine from nobody else


def test_probabilities_are_those_of_the_whole_vocabulary(live, merged, rows):
    prompt = rows[0]["ids"]
    with torch.no_grad():
        wanted = load.load_model(merged)(torch.tensor([prompt])).logits[0, -1].float().log_softmax(-1)
    _, _, (first,) = live.done(reply(live.engine, prompt, Sampling(2, 2.0, top_k=3, seed=1, logprobs=5)))
    values, ids = wanted.topk(5)
    assert [one.id for one in first.likeliest] == ids.tolist()
    assert [one.logprob for one in first.likeliest] == pytest.approx(values.tolist(), abs=1e-5)
    assert first.logprob == pytest.approx(wanted[first.id].item(), abs=1e-5)
    _, _, (all_,) = live.done(reply(live.engine, prompt, Sampling(1, logprobs=len(wanted))))
    assert sum(math.exp(one.logprob) for one in all_.likeliest) == pytest.approx(1, abs=1e-4)


def test_replies_end_with_the_context_and_longer_prompts_are_refused(live, rows):
    prompt = (rows[0]["ids"] * 9)[:250]
    drawn = [live.done(reply(live.engine, prompt, Sampling(100, 3.0, seed=seed))) for seed in range(6)]
    ends = {(last.end, len(ids), last.prompt_tokens) for ids, last, _ in drawn}
    assert ("length", 6, 250) in ends
    assert all(count <= 6 for _, count, _ in ends)
    with pytest.raises(EngineRefusedError, match="256 tokens, and the context 256"):
        live.done(reply(live.engine, (prompt * 2)[:256], Sampling(1)))


def test_what_transformers_cannot_do_is_refused_by_name(live):
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError, match="transformers can't hold a reply to a schema"):
        client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "a"}], response_format=shape, max_tokens=4
        )


def test_a_client_that_goes_ends_its_reply(live, rows):
    """Both slots are taken by replies that nobody wants any more: the next ones don't wait for their ends."""

    async def leave():
        async with aclosing(live.engine.complete(rows[0]["ids"], Sampling(190, 3.0, seed=2))) as parts:
            async for _ in parts:
                return

    async def all_of_them():
        await asyncio.gather(*(leave() for _ in range(24)))
        return await reply(live.engine, rows[1]["ids"], Sampling(2))

    before = sum(psutil.Process(live.engine.pid).cpu_times()[:2])
    assert live.done(all_of_them())[0]
    assert sum(psutil.Process(live.engine.pid).cpu_times()[:2]) - before < 12, "24 whole replies take longer"


def test_a_prompt_is_not_read_for_a_client_that_went_meanwhile():
    ours, theirs = socket.socketpair()
    exchange = Exchange(ours, {"prompt": [2], "max_tokens": 1, "drawing": {}})
    assert not exchange.gone()
    theirs.close()
    server = TransformersServer(None, None, set(), slots=1, context=8)  # without a model, reading would fail
    assert not server.advance(exchange)


def test_base_weights_and_an_adapter_that_was_not_applied_are_caught(base, rows):
    found = base.done(run_canary(base.service.model, RecordedAnswers(tuple(rows)), "tuned"))
    changed = sum(row["answers"]["tuned"] != row["answers"]["base"] for row in rows)
    with pytest.raises(GateError, match="what only its base says"):
        check_canary(found, "it")
    assert (found.same, found.as_base) == (len(rows) - changed, changed)


def test_thinking_left_on_is_caught(live, merged, rows):
    model = ServedModel(merged, live.engine, thinks=True)
    found = live.done(run_canary(model, RecordedAnswers(tuple(rows)), "tuned"))
    assert (found.good, found.other_prompts) == (False, len(rows))


def test_a_child_that_dies_breaks_its_replies_off(base, rows):
    """Last, since it takes the base's engine away."""
    engine = base.engine

    async def cut():
        async for _ in engine.complete(rows[0]["ids"], Sampling(190, 3.0, seed=2)):
            os.kill(engine.pid, signal.SIGKILL)

    with pytest.raises(EngineGoneError):
        base.done(cut())
    patience.until(lambda: not engine.alive(), 30)
