"""Servers that want requests spelled otherwise are understood after one refusal, and refused when nothing is left to
change."""

from __future__ import annotations

import pytest

from gemma_ops.answer import Prompt
from gemma_ops.config import EndpointConfig, MachineConfig
from gemma_ops.errors import ConfigError
from tests.targets.test_targets import HELLO, events, one, opening, serving

SAYS = "Unsupported parameter: '{}' is not supported with this model."


def picky(*refused, instead=""):
    """A server that takes none of these parameters."""

    def answer(body, number):
        for key in refused:
            if key in body:
                hint = instead if key == "max_tokens" else ""
                return 400, {}, {"error": {"message": SAYS.format(key) + hint, "param": key}}
        return 200, {}, events("fine")

    return answer


def test_a_server_is_understood_after_one_refusal_each():
    prompts = [[HELLO], [Prompt([{"role": "user", "content": "And again."}])]]
    with serving(picky("max_tokens", "temperature", instead=" Use 'max_completion_tokens' instead.")) as (url, log):
        target = opening(f"openai:{url}#m")
        found = [batch[0].text for batch in target.answer(prompts[:1], max_new_tokens=7)]
        found += [batch[0].text for batch in target.answer(prompts[1:], max_new_tokens=7)]
    assert found == ["fine", "fine"]
    assert len(log) == 4  # two refusals in all, not two a question
    assert log[-1][0]["max_completion_tokens"] == 7
    assert not {"max_tokens", "temperature"} & set(log[-1][0])


def test_many_at_once_learn_together():
    prompts = [[Prompt([{"role": "user", "content": f"q{n}"}]) for n in range(8)]]
    with serving(picky("temperature")) as (url, _):
        found = next(iter(opening(f"openai:{url}#m").answer(prompts, max_new_tokens=7)))
    assert [answer.text for answer in found] == ["fine"] * 8


@pytest.mark.parametrize(
    ("refused", "settings"),
    [
        (("max_tokens", "max_completion_tokens"), {}),
        (("max_tokens",), {"limit_key": "max_tokens"}),
        (("temperature",), {"temperature": "sent"}),
    ],
)
def test_what_stays_refused_ends_the_work(refused, settings):
    with serving(picky(*refused, instead=" Use 'max_completion_tokens' instead.")) as (url, _):
        machine = MachineConfig(device="cpu", endpoints=(EndpointConfig(url=url, **settings),))
        with pytest.raises(ConfigError, match=rf"refuses {refused[-1]}, whatever is asked"):
            one(opening(f"openai:{url}#m", machine))


def test_settings_say_it_beforehand():
    with serving(picky("max_tokens", "temperature")) as (url, log):
        own = EndpointConfig(url=url, limit_key="max_completion_tokens", temperature="left_out")
        assert one(opening(f"openai:{url}#m", MachineConfig(device="cpu", endpoints=(own,)))).text == "fine"
    assert len(log) == 1


def test_a_refused_question_is_that_questions_failure():
    def answer(body, number):
        if "bad" in body["messages"][0]["content"]:
            return 400, {}, {"error": {"message": "The temperature in your question about max_tokens is too high."}}
        return 200, {}, events("fine")

    prompts = [[Prompt([{"role": "user", "content": text}]) for text in ("good", "bad", "good")]]
    with serving(answer) as (url, _):
        found = next(iter(opening(f"openai:{url}#m").answer(prompts, max_new_tokens=7)))
    assert [item.end for item in found] == ["stop", "error", "stop"]


@pytest.mark.parametrize(
    ("said", "thought", "text"),
    [
        ("<think>Two and two.</think>\n\n4", "Two and two.", "4"),
        ("Two and two.</think>4", "Two and two.", "4"),
        ("<think>Two and", "Two and", ""),
        ("A tag is written <think>so</think>.", "", "A tag is written <think>so</think>."),
        ("4", "", "4"),
    ],
)
def test_think_blocks_are_stored_apart_where_that_is_asked(said, thought, text):
    with serving(lambda body, number: (200, {}, events(said))) as (url, _):
        apart = EndpointConfig(url=url, think_blocks="apart")
        target = opening(f"openai:{url}#m", MachineConfig(device="cpu", endpoints=(apart,)))
        found, plain = one(target), one(opening(f"openai:{url}#m"))
    assert (found.thought, found.text) == (thought, text)
    assert (plain.thought, plain.text) == ("", said)
    assert target.identity != opening(f"openai:{url}#m").identity
