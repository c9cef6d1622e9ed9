"""Tasks whose questions show something: local targets see and hear, all others are refused before anything is asked."""

from __future__ import annotations

import random

import pytest
import torch

from gemma_ops.answer import Prompt
from gemma_ops.config import EvaluateConfig, MachineConfig
from gemma_ops.data import chat, published
from gemma_ops.data.media_files import MediaShelf
from gemma_ops.data.parts import media_of
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.evaluation import ask_targets, evaluation_checks
from gemma_ops.modeling import generate
from gemma_ops.modeling.load import load_model
from gemma_ops.modeling.media_inputs import Perceiver, join_media
from gemma_ops.nano import WEIGHTS
from gemma_ops.targets import open_target
from gemma_ops.tasks.task import load_task
from tests.helpers import media_rows, tiny_media
from tests.helpers.media_rows import png, tone, wav

CPU = MachineConfig(device="cpu", mlflow=None)


def questions(folder, *, audio):
    """Prompts with images, a sound, and words only, of different lengths."""
    draw = random.Random(4)
    files = {"a.png": png("red", draw), "b.png": png("blue", draw, (64, 20)), "c.wav": wav(tone("high", draw, 0.3))}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    shelf = MediaShelf(folder, None)
    picture = [{"type": "image", "source": name} for name in ("a.png", "b.png")]
    asked = [
        [picture[0], {"type": "text", "text": "Which colour is this?"}],
        "How are you today, and what is it that you want?",
        [picture[1], {"type": "text", "text": "And"}, picture[0], {"type": "text", "text": "which of them is larger?"}],
    ]
    if audio:
        asked.append([{"type": "audio", "source": "c.wav"}, {"type": "text", "text": "Loud?"}])
    stored = [shelf.store([{"role": "user", "content": content}]) for content in asked]
    return [Prompt(messages, media=dict(shelf.found) if media_of(messages) else {}) for messages in stored]


@pytest.mark.parametrize("kind", tiny_media.KINDS)
def test_answers_in_a_batch_are_those_of_each_alone_and_of_the_published_forward_pass(tiny, tmp_path, kind):
    """Greedy, token by token, without a cache and without padding: what `transformers` makes of the whole
    conversation."""
    prompts = questions(tmp_path, audio=kind in ("edge", "unified"))
    model = load_model(tiny(kind), weights="fp32", towers=True)
    perceiver, tokenizer = Perceiver(tiny(kind)), chat.load_tokenizer(tiny(kind))
    template = published.template_of(tiny(kind))
    asked = [chat.prompt(tokenizer, p.messages, template=template, senses=perceiver.senses) for p in prompts]
    seen = [
        perceiver.see(media_of(p.messages), p.media, one.types()) if p.media else None
        for p, one in zip(prompts, asked, strict=True)
    ]
    ids = [one.ids for one in asked]
    together = list(generate.answer_prompts(model, tokenizer, ids, seen=seen, max_new_tokens=4, batch_size=len(ids)))
    for one, shown, reply in zip(ids, seen, together, strict=True):
        grown = list(one)
        for _ in range(4):
            given = {"input_ids": torch.tensor([grown])}
            if shown:
                types = shown.types + [0] * (len(grown) - len(one))
                given |= {"mm_token_type_ids": torch.tensor([types]), **join_media([shown])}
            with torch.no_grad():
                grown.append(int(model(**given, use_cache=False).logits[0, -1].argmax()))
            if grown[-1] in generate.stop_ids(model):
                break
        new = [token for token in grown[len(one) :] if token not in generate.stop_ids(model)]
        assert reply.text.strip() == tokenizer.decode(new, skip_special_tokens=True).strip()


def test_a_local_target_brings_its_towers_when_something_is_shown(tiny, tmp_path):
    found = opened(tiny("edge"))
    assert found.reads == {"text", "image", "audio"}
    prompts = questions(tmp_path, audio=True)
    (words,) = next(iter(found.answer([[prompts[1]]], max_new_tokens=3)))
    assert not found._towers
    batch = next(iter(found.answer([prompts], max_new_tokens=3)))
    assert found._towers
    assert batch[1].text == words.text, "with towers and without"
    assert opened(tiny("large")).reads == {"text", "image"}


def opened(folder):
    return open_target(str(folder), CPU, run="r", use="evaluate")


def test_targets_that_only_read_are_refused_before_anything_is_asked(tiny, tmp_path):
    task = load_task(media_rows.task(tmp_path / "task", "image", 2, seed=1))
    assert task.shows == {"image"}
    for name in ("gemini:gemini-3.8-flash", "openai:http://localhost:8000/v1#other"):
        with pytest.raises(ConfigError, match=r"task look shows image, and target .* is asked in text only"):
            evaluation_checks.check_shown_tasks(EvaluateConfig(tasks=["x"], targets=["base", name]), [task])
    evaluation_checks.check_shown_tasks(EvaluateConfig(tasks=["x"], targets=["base", "tuned"]), [task])
    quantized = EvaluateConfig(tasks=["x"], targets=["base", "q8_0"])
    evaluation_checks.check_shown_tasks(quantized, [task])
    with pytest.raises(ConfigError, match="mmproj=none leaves target q8_0 without towers"):
        evaluation_checks.check_shown_tasks(quantized, [task], mmproj="none")
    heard = load_task(media_rows.task(tmp_path / "sounds", "audio", 2, seed=1))
    with pytest.raises(ConfigError, match=r"task look shows audio, which target .* does not take"):
        ask_targets.readable([opened(tiny("large"))], [heard])
    ask_targets.readable([opened(tiny("large"))], [task])
    with pytest.raises(ConfigError, match="shows image, which target"):
        ask_targets.readable([opened(WEIGHTS)], [task])


def test_a_task_is_its_pictures_too(tmp_path):
    folder = media_rows.task(tmp_path / "task", "image", 2, seed=1)
    before = load_task(folder)
    (folder / "files/1-0.png").write_bytes(png("green", random.Random(9)))
    after = load_task(folder)
    assert before.digest != after.digest
    assert before.rows[0].messages != after.rows[0].messages, "an answer in store is of the picture that was shown"
    assert before.rows[1].messages == after.rows[1].messages
    (folder / "files/1-0.png").unlink()
    with pytest.raises(DataError, match=r"data\.jsonl:1: files/1-0\.png can't be read"):
        load_task(folder)


def test_what_is_seen_is_compared_with_what_was_counted(tiny, tmp_path):
    prompts = questions(tmp_path, audio=False)
    perceiver = Perceiver(tiny("edge"))
    part = dict(prompts[0].messages[0]["content"][0])
    part["width"] *= 4
    with pytest.raises(DataError, match=r"soft tokens, and \d+ were counted"):
        perceiver.see([part], prompts[0].media, [])
