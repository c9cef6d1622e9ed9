"""Images and sounds asked of a GGUF file: the target of an evaluation and the server answer alike, with the prompt of
training, and what llama.cpp reads otherwise is refused."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from gemma_ops.answer import Prompt
from gemma_ops.config import MachineConfig
from gemma_ops.data.media_files import MediaShelf
from gemma_ops.errors import ConfigError
from gemma_ops.evaluation import ask_targets
from gemma_ops.family.media import Senses
from gemma_ops.targets import open_target
from gemma_ops.targets.run_models import RunModels
from gemma_ops.tasks.task import load_task
from tests.helpers import media_rows, tiny_media
from tests.helpers.live_server import serving

CPU = MachineConfig(device="cpu", mlflow=None)
LIMIT = 8


@pytest.fixture(scope="module", params=["edge", "large"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint and its files, as a run holds them; `large` sees images of more tokens than llama.cpp reads at
    once by itself."""
    folder = tmp_path_factory.mktemp(request.param)
    wide = {"hidden_size": 1536} if request.param == "edge" else {}
    base = tiny_media.save(request.param, folder / "base", **wide)
    if request.param == "large":
        body = json.loads((base / "processor_config.json").read_text())
        body["image_processor"]["max_soft_tokens"] = 560
        (base / "processor_config.json").write_text(json.dumps(body))
    file = tiny_media.gguf_files(base, folder / "quantize")
    return SimpleNamespace(base=base, file=file, quantize=folder / "quantize", kinds=Senses.read(base).kinds)


def target(made: Any) -> Any:
    models = RunModels(base=made.base, tuned=made.base, quantized=made.quantize)
    return open_target("bf16", CPU, run="r", use="evaluate", models=models)


def content(kind: str) -> list[dict[str, Any]]:
    rng = random.Random(4)
    data = media_rows.png("red", rng) if kind == "image" else media_rows.wav(media_rows.tone("low", rng))
    return [{"type": "text", "text": "Look:"}, {"type": kind, "source": data}, {"type": "text", "text": "and say."}]


def sent(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same parts as OpenAI's protocol has them."""
    found: list[dict[str, Any]] = []
    for part in parts:
        data = base64.b64encode(part["source"]).decode() if "source" in part else ""
        if part["type"] == "image":
            found.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
        elif part["type"] == "audio":
            found.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
        else:
            found.append(part)
    return found


def stored(made: Any, parts: list[dict[str, Any]]) -> Prompt:
    shelf = MediaShelf(None, Senses.read(made.base))
    return Prompt(shelf.store([{"role": "user", "content": parts}]), media=shelf.found)


def test_target_and_server_answer_what_is_shown_alike(made: Any) -> None:
    found = target(made)
    assert found.reads == {"text", *made.kinds}
    both = [part for kind in made.kinds for part in content(kind)]
    asked = [content(kind) for kind in made.kinds] + [both, [{"type": "text", "text": "Say hello."}]]
    prompts = [stored(made, parts) if parts is not asked[-1] else Prompt(
        [{"role": "user", "content": "Say hello."}]) for parts in asked]  # fmt: skip
    answers = next(iter(found.answer([prompts], max_new_tokens=LIMIT)))
    assert [answer.end for answer in answers].count("error") == 0, [answer.reason for answer in answers]
    alone = [next(iter(found.answer([[prompt]], max_new_tokens=LIMIT)))[0] for prompt in prompts]
    assert [answer.text for answer in alone] == [answer.text for answer in answers]
    with serving(f"{made.file}@{made.base}", context=900, also=()) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="any", max_retries=0)
        for parts, answer in zip(asked, answers, strict=True):
            reply = client.chat.completions.create(
                model=live.service.facts.model, messages=[{"role": "user", "content": sent(parts)}],
                max_tokens=LIMIT, temperature=0,
            )  # fmt: skip
            assert reply.choices[0].message.content == answer.text
            assert reply.usage.prompt_tokens == answer.prompt_tokens
        film = {"type": "image_url", "image_url": {"url": "data:video/mp4;base64,AAAA"}}
        with pytest.raises(openai.BadRequestError, match="can't be shown to this model"):
            client.chat.completions.create(
                model=live.service.facts.model, messages=[{"role": "user", "content": [film]}], max_tokens=LIMIT
            )


def test_prompt_is_that_of_the_checkpoint(made: Any) -> None:
    """The same tokens as transformers is asked with, soft tokens included."""
    models = RunModels(base=made.base, tuned=made.base, quantized=made.quantize)
    tuned = open_target("tuned", CPU, run="r", use="evaluate", models=models)
    prompt = stored(made, content(made.kinds[-1]))
    assert target(made)._encode.encoded(prompt).ids == tuned._encode.encoded(prompt).ids


def test_images_that_llamacpp_reads_otherwise_and_files_without_towers_are_refused(made: Any, tmp_path: Path) -> None:
    task = load_task(media_rows.task(tmp_path / "task", "image", 2, seed=1))
    ask_targets.readable([target(made)], [task])
    narrow = tiny_media.save("edge", tmp_path / "narrow")  # which llama.cpp takes for a model that looks both ways
    file = tiny_media.gguf_files(narrow, tmp_path / "files")
    opened = open_target(f"gguf:{file}@{narrow}", CPU, run="r", use="evaluate")
    assert opened.reads == {"text", "audio"}
    with pytest.raises(ConfigError, match="shows image, which target"):
        ask_targets.readable([opened], [task])
    (tmp_path / "files" / "mmproj" / "mmproj.gguf").unlink()
    plain = open_target(f"gguf:{file}@{narrow}", CPU, run="r", use="evaluate")
    assert plain.reads == {"text"}
    assert plain.identity != opened.identity, "another answer may be given by another tower"
