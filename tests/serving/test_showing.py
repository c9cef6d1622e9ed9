"""Images and sounds over HTTP: seen as the evaluation showed them, in both protocols, or refused by name."""

from __future__ import annotations

import base64
import random
from types import SimpleNamespace

import httpx2
import openai
import pytest
from google import genai
from google.genai import types

from gemma_ops.answer import Prompt
from gemma_ops.data.media_files import MediaShelf
from gemma_ops.emulator import Emulator
from gemma_ops.family.media import Senses
from gemma_ops.targets.local_target import CheckpointTarget
from tests.helpers import media_rows, tiny_media
from tests.helpers.emulated import KEY, machine_for
from tests.helpers.live_server import make_files, serving
from tests.helpers.tuned_nano import CPU

LIMIT = 12
KEPT = []
"""Clients of Google's, which close themselves when nobody holds them."""


@pytest.fixture(scope="module")
def shown():
    rng = random.Random(4)
    return SimpleNamespace(
        image=media_rows.png("red", rng), sound=media_rows.wav(media_rows.tone("low", rng)), kinds=("image", "audio")
    )


@pytest.fixture(scope="module", params=["edge", "unified"])
def live(request, tmp_path_factory):
    folder = tiny_media.save(request.param, tmp_path_factory.mktemp(request.param) / "model")
    with serving(folder, context=600, also=()) as started:
        yield SimpleNamespace(url=started.url, folder=folder, name=started.service.facts.model, service=started.service)


def evaluated(folder, *content):
    """What the evaluation's target answers, and the tokens of its prompt."""
    shelf = MediaShelf(None, Senses.read(folder))
    messages = shelf.store([{"role": "user", "content": list(content)}])
    target = CheckpointTarget("tuned", folder, CPU)
    ((answer,),) = target.answer([[Prompt(messages, media=shelf.found)]], max_new_tokens=LIMIT)
    return answer.text, answer.prompt_tokens


def chat(live, *content, **more):
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
    messages = [{"role": "user", "content": list(content)}]
    return client.chat.completions.create(model=live.name, messages=messages, max_tokens=LIMIT, temperature=0, **more)


def text(words):
    return {"type": "text", "text": words}


def image(data, mime="image/png"):
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{base64.b64encode(data).decode()}"}}


def sound(data):
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def test_what_is_shown_is_answered_as_the_evaluation_answered_it(live, shown):
    asked = [
        ([{"type": "image", "source": shown.image}, text("which colour?")],
            [image(shown.image), text("which colour?")]),
        ([{"type": "audio", "source": shown.sound}, text("which pitch?")], [sound(shown.sound), text("which pitch?")]),
        (
            [text("first this"), {"type": "image", "source": shown.image}, text("then"),
                {"type": "audio", "source": shown.sound}],
            [text("first this"), image(shown.image), text("then"), sound(shown.sound)],
        ),
    ]  # fmt: skip
    for stored, sent in asked:
        wanted, tokens = evaluated(live.folder, *stored)
        found = chat(live, *sent)
        assert found.choices[0].message.content == wanted
        assert found.usage.prompt_tokens == tokens
    streamed = chat(live, *asked[0][1], stream=True)
    assert (
        "".join(part.choices[0].delta.content or "" for part in streamed if part.choices)
        == evaluated(live.folder, *asked[0][0])[0]
    )
    assert chat(live, text("which colour?")).usage.prompt_tokens < tokens


def test_googles_client_shows_the_same(live, shown):
    KEPT.append(genai.Client(api_key="any", http_options=types.HttpOptions(base_url=live.url)))
    parts = [types.Part.from_bytes(data=shown.image, mime_type="image/png"), types.Part.from_text(text="which colour?")]
    config = types.GenerateContentConfig(max_output_tokens=LIMIT, temperature=0)
    found = KEPT[-1].models.generate_content(
        model=live.name, contents=[types.Content(role="user", parts=parts)], config=config
    )
    wanted, tokens = evaluated(live.folder, {"type": "image", "source": shown.image}, text("which colour?"))
    assert (found.text or "") == wanted
    assert found.usage_metadata.prompt_token_count == tokens
    counted = KEPT[-1].models.count_tokens(model=live.name, contents=[types.Content(role="user", parts=parts)])
    assert counted.total_tokens == tokens


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([image(b"no picture")], "unreadable|no image|can't be read|cannot identify"),
        ([{"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}], "are not fetched"),
        ([image(b"%PDF-1.7", "application/pdf")], "document can't be shown to this model: it takes text and image"),
        ([image(b"film", "video/mp4")], "video can't be shown to this model"),
        (
            [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAAA"}}],
            "no base64|can't be read|unreadable",
        ),
    ],
)
def test_what_can_not_be_shown_is_refused_by_name(live, content, why):
    with pytest.raises(openai.BadRequestError, match=why):
        chat(live, *content, text("what is it?"))


def test_a_picture_too_many_does_not_fit(live, shown):
    with pytest.raises(openai.BadRequestError, match="is all that prompt and reply may have"):
        chat(live, *[image(shown.image)] * 60, text("which colour?"))


def test_a_model_of_text_refuses_pictures_and_auto_sends_them_on(tmp_path, shown, monkeypatch):
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    policy = tmp_path / "mine.yaml"
    policy.write_text("budget: {dollars_per_request: 2.0}\nlocal: {modalities: [text, image]}\n")
    file = make_files(tmp_path) / "q8_0" / "model.gguf"
    log = str(tmp_path / "log.jsonl")
    with (
        Emulator() as gemini,
        serving(file, gemini=machine_for(gemini, tmp_path), routing=str(policy), routing_log=log) as live,
    ):
        body = {"model": "nano", "messages": [{"role": "user", "content": [image(shown.image), text("colour?")]}]}
        refused = httpx2.post(f"{live.url}/v1/chat/completions", json=body, timeout=60)
        assert refused.status_code == 400
        assert "this model is served for text" in refused.json()["error"]["message"]
        headers = {"x-gemma-ops-privacy": "any"}
        sent = httpx2.post(
            f"{live.url}/v1/chat/completions", json=body | {"model": "auto"}, headers=headers, timeout=60
        )
        # The policy lets pictures be answered here, and the model can't see them.
        assert sent.headers["x-gemma-ops-lane"] == "gemini"
        private = httpx2.post(f"{live.url}/v1/chat/completions", json=body | {"model": "auto"}, timeout=60)
        assert private.headers["x-gemma-ops-lane"] == "refuse"


def test_auto_answers_pictures_here_where_the_model_sees(tmp_path, shown):
    policy = tmp_path / "mine.yaml"
    policy.write_text("local: {modalities: [text, image]}\n")
    folder = tiny_media.save("edge", tmp_path / "model")
    with serving(folder, context=600, routing=str(policy), routing_log=str(tmp_path / "log.jsonl")) as live:
        body = {
            "messages": [{"role": "user", "content": [image(shown.image), text("which colour?")]}],
            "max_tokens": LIMIT,
        }
        url = f"{live.url}/v1/chat/completions"
        here = httpx2.post(url, json=body | {"model": "auto", "temperature": 0}, timeout=60)
        assert here.headers["x-gemma-ops-lane"] == "local", here.headers["x-gemma-ops-reasons"]
        wanted, _ = evaluated(folder, {"type": "image", "source": shown.image}, text("which colour?"))
        assert here.json()["choices"][0]["message"]["content"] == wanted
