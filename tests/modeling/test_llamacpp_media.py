"""Images and sounds in llama.cpp: what the towers say, the distributions after them, and the greedy answers are those
of transformers, for every kind of tower."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemma_ops.answer import Prompt
from gemma_ops.data.media_files import MediaShelf
from gemma_ops.data.parts import media_of
from gemma_ops.errors import DataError, ModelError
from gemma_ops.modeling import generate
from gemma_ops.modeling.llamacpp import GGUF
from gemma_ops.modeling.llamacpp_library import GgufLogits
from gemma_ops.modeling.llamacpp_media import GgufMedia
from gemma_ops.modeling.llamacpp_shown import ShownPrompt, find_projector, marked_prompt, shown_arrays
from gemma_ops.modeling.load import load_model
from gemma_ops.modeling.media_inputs import Perceiver
from gemma_ops.nano import nano_towers
from gemma_ops.targets.prompt_encoder import Encoder
from tests.helpers import media_rows, tiny_media

HEARS = ("edge", "unified", "nano")
TOWERS = [(kind, "image") for kind in (*tiny_media.KINDS, "nano", "bidirectional nano")] + [
    (kind, "audio") for kind in HEARS
]
SERVED = [one for one in TOWERS if one not in (("unified", "image"), ("nano", "image"))]
"""What llama.cpp's server reads as transformers does."""


@dataclass
class Made:
    """A checkpoint with its files, and a loaded model."""

    file: Path
    projector: Path
    encode: Encoder
    model: Any

    def prompt(self, media: str, seed: int = 3, question: str = "What is this?") -> tuple[Prompt, Any, ShownPrompt]:
        """A question about a drawn image or sound: as asked, as transformers sees it, and as llama.cpp does."""
        rng = random.Random(seed)
        senses = self.encode.senses
        data = (
            media_rows.png("red", rng, (130, 90)) if media == "image" else media_rows.wav(media_rows.tone("low", rng))
        )
        shelf = MediaShelf(None, senses)
        content = [{"type": media, "source": data}, {"type": "text", "text": question}]
        messages = shelf.store([{"role": "user", "content": content}])
        prompt = Prompt(messages, media=shelf.found)
        encoded = self.encode.encoded(prompt)
        shown = ShownPrompt(encoded.ids, encoded.types(), shown_arrays(media_of(messages), shelf.found, senses))
        return prompt, self.encode.seen(prompt, encoded), shown


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    found: dict[str, Made] = {}

    def make(kind: Any) -> Made:
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            base = folder / "base"
            wide = {"hidden_size": 1536} if kind == "edge" else {}
            if "nano" in kind:
                nano_towers.save_towers(base, bidirectional=kind != "nano")
            else:
                tiny_media.save(kind, base, **wide)
            file = tiny_media.gguf_files(tiny_media.roughen(base), folder)
            projector = find_projector(file)
            assert projector
            found[kind] = Made(file, projector, Encoder(base), load_model(base, weights="fp32", towers=True))
        return found[kind]

    return make


def features(model: Any, seen: Any) -> np.ndarray:
    """What transformers' tower says of the one image or sound."""
    if seen.pictures:
        pixels, places = seen.pictures[0]
        out = model.model.get_image_features(pixels[None].float(), places[None]).pooler_output
    else:
        sound = seen.sounds[0][None].float()
        out = model.model.get_audio_features(sound, torch.ones(sound.shape[:2], dtype=torch.bool)).pooler_output
    return np.asarray((out[0] if isinstance(out, tuple | list) or out.ndim == 3 else out).detach())


@pytest.mark.parametrize(("kind", "media"), TOWERS)
def test_towers_say_what_they_say_in_transformers(made: Callable[[str], Made], kind: str, media: str) -> None:
    one = made(kind)
    _, seen, shown = one.prompt(media)
    expected = features(one.model, seen)
    budget = one.encode.senses.image.budget
    with GgufLogits(one.file, context=512) as gguf, GgufMedia(gguf, one.projector, budget=budget) as towers:
        found = towers.embeddings(shown.shown[0])
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def divergences(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL of each position, in nats, from log-probabilities and logits, (positions, vocabulary)."""
    ours = torch.from_numpy(found).double().log_softmax(-1).numpy()
    kls: np.ndarray = (np.exp(expected) * (expected - ours)).sum(-1)
    return kls


def sliding_only(model: Any, ids: torch.Tensor, types: torch.Tensor) -> dict[str, torch.Tensor]:
    """Masks with which image tokens see each other in sliding layers only, as llama.cpp and Google's own code have
    it."""
    embedded, places = model.get_input_embeddings()(ids), torch.arange(ids.shape[1])[None]
    return model.create_masks_for_generate(
        model.config, embedded, torch.ones_like(ids), None, places, mm_token_type_ids=types
    )


@pytest.mark.parametrize(("kind", "media"), TOWERS)
def test_distributions_after_an_image_or_a_sound_are_those_of_transformers(
    made: Callable[[str], Made], kind: str, media: str
) -> None:
    one = made(kind)
    _, seen, shown = one.prompt(media)
    with torch.inference_mode():
        given = generate.shown_arguments([seen], len(shown.ids))
        ids = torch.tensor([shown.ids])
        if (kind, media) == ("unified", "image"):  # which lets image tokens see each other in every layer
            given["attention_mask"] = sliding_only(one.model, ids, given["mm_token_type_ids"])
        logits = one.model(input_ids=ids, **given, use_cache=False).logits[0]
    text = np.array(shown.types) == 0
    expected = logits.double().log_softmax(-1).numpy()[text]
    budget = one.encode.senses.image.budget
    with GgufLogits(one.file, context=512) as gguf, GgufMedia(gguf, one.projector, budget=budget) as towers:
        found = np.concatenate(list(towers.read_logits(shown.ids, shown.types, shown.shown)))
    kls = divergences(expected, found)
    assert np.median(kls) < 1e-3
    assert kls.max() < 0.01
    with GgufLogits(one.file, context=512) as gguf, GgufMedia(gguf, one.projector, budget=budget) as towers:
        other = [np.flip(shown.shown[0]).copy()]
        elsewhere = np.concatenate(list(towers.read_logits(shown.ids, shown.types, other)))
    assert divergences(expected, elsewhere).max() > 50 * kls.max(), "what is shown makes no difference"


@pytest.mark.parametrize(("kind", "media"), SERVED)
def test_greedy_answers_are_those_of_transformers(made: Callable[[str], Made], kind: str, media: str) -> None:
    one = made(kind)
    asked = [one.prompt(media, seed) for seed in range(4)]
    expected = list(
        generate.answer_prompts(
            one.model, one.encode.tokenizer, [shown.ids for _, _, shown in asked], seen=[seen for _, seen, _ in asked],
            max_new_tokens=6, batch_size=1,
        )
    )  # fmt: skip
    budget = one.encode.senses.image.budget
    with GGUF(one.file, projector=one.projector, image_tokens=budget) as gguf:
        prompts = [shown for _, _, shown in asked]
        found = list(gguf.answer(prompts, one.encode.tokenizer, max_new_tokens=6, batch_size=2))
    assert [answer.prompt_tokens for answer in found] == [len(shown.ids) for _, _, shown in asked]
    assert [answer.text for answer in found] == [answer.text for answer in expected]


def test_text_that_becomes_other_tokens_in_llamacpp_is_not_asked(made: Callable[[str], Made]) -> None:
    one = made("large")
    _, _, shown = one.prompt("image", question="What is this?")
    with GGUF(one.file, projector=one.projector, image_tokens=70) as gguf:
        spelled = marked_prompt(shown, one.encode.tokenizer, "<here>", gguf.tokenize)
        text = spelled["prompt_string"]
        assert text.count("<here>") == 1
        assert "<bos>" not in text, "which llama.cpp writes by itself"
        assert "<|image>" not in text
        other = [*shown.ids]
        place = max(place for place, kind in enumerate(shown.types) if kind) + 3
        letters = [one.encode.tokenizer.token_to_id(letter) for letter in "th"]
        other[place : place + 2] = letters  # which the tokenizer would join
        replies = gguf.answer(
            [ShownPrompt(other, shown.types, shown.shown), shown], one.encode.tokenizer, max_new_tokens=2, batch_size=2
        )
        found = list(replies)
    assert found[0].end == "error"
    assert "other tokens in llama.cpp than in training" in found[0].reason
    assert found[1].end != "error"


def test_another_number_of_soft_tokens_is_not_answered(made: Callable[[str], Made]) -> None:
    one = made("large")
    _, _, shown = one.prompt("image")
    smaller = [shown.shown[0][:12, :12].copy()]
    with GGUF(one.file, projector=one.projector, image_tokens=70) as gguf:
        (found,) = gguf.answer(
            [ShownPrompt(shown.ids, shown.types, smaller)], one.encode.tokenizer, max_new_tokens=2, batch_size=1
        )
    assert found.end == "error"
    assert f"the prompt has {len(shown.ids)}" in found.reason
    with (
        GgufLogits(one.file, context=512) as logits,
        GgufMedia(logits, one.projector, budget=70) as towers,
        pytest.raises(ModelError, match="soft tokens of an image or sound that has"),
    ):
        list(towers.read_logits(shown.ids, shown.types, smaller))


@pytest.mark.parametrize("size", [(130, 90), (17, 300), (500, 20), (64, 64)])
@pytest.mark.parametrize("kind", ["large", "unified"])
def test_pixels_are_those_that_the_processor_cuts_into_patches(
    made: Callable[[str], Made], kind: str, size: tuple[int, int]
) -> None:
    senses, perceiver = made(kind).encode.senses, Perceiver(made(kind).encode._folder)
    shelf = MediaShelf(None, senses)
    source = [{"type": "image", "source": media_rows.png("blue", random.Random(1), size)}]
    (turn,) = shelf.store([{"role": "user", "content": source}])
    (pixels,) = shown_arrays(turn["content"], shelf.found, senses)
    ((patches, places),) = perceiver.see(turn["content"], shelf.found, []).pictures
    side = round((patches.shape[-1] // 3) ** 0.5)
    assert pixels.shape[0] * pixels.shape[1] == len(patches) * side**2
    for patch, (column, row) in zip(patches, places.tolist(), strict=True):
        here = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
        assert np.array_equal(here.ravel(), (patch.numpy() * 255).round().astype(np.uint8))


def test_towers_of_another_width_are_refused(made: Callable[[str], Made]) -> None:
    with GgufLogits(made("nano").file, context=64) as gguf, pytest.raises(ModelError, match=r"can't load .* beside"):
        GgufMedia(gguf, made("large").projector)


def test_a_model_without_a_tower_is_shown_nothing(made: Callable[[str], Made]) -> None:
    _, _, shown = made("edge").prompt("audio")
    with pytest.raises(DataError, match="takes no audio"):
        shown_arrays(
            [{"type": "audio", "path": "a.wav", "samples": 16000}], {"a.wav": b""}, made("large").encode.senses
        )
    assert shown.shown[0].dtype == np.float32
