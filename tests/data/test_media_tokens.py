"""Images and sounds cost exactly the tokens that the published processors give them, stand where they put them, and
never carry loss."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma4 import processing_gemma4
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.gemma4_unified import feature_extraction_gemma4_unified, processing_gemma4_unified

from gemma_ops.data import chat
from gemma_ops.data.media_files import MediaShelf
from gemma_ops.data.parts import media_of
from gemma_ops.data.pictures import picture
from gemma_ops.data.sounds import sound
from gemma_ops.errors import DataError, ModelError
from gemma_ops.family.media import BUDGETS, LONGEST, Pictures, Senses, Sounds, Waves
from gemma_ops.modeling.media_inputs import Perceiver, join_media
from tests.helpers.media_rows import COLOURS, encoded, png, tone, wav

ANSWER = {"role": "assistant", "content": "red"}


def transformers_processor(folder, module=processing_gemma4):
    """The published processor with the Pillow variant in it: transformers' check only lets torchvision's class pass."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    names = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
    names |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}
    for name, token in names.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    body = json.loads((folder / "processor_config.json").read_text())
    own = {
        key: value
        for key, value in body["image_processor"].items()
        if key not in ("image_processor_type", "image_seq_length")
    }
    sounds = {key: value for key, value in body.get("feature_extractor", {}).items() if key != "feature_extractor_type"}
    if module is processing_gemma4:
        extractor, kind = Gemma4AudioFeatureExtractor(**sounds), module.Gemma4Processor
    else:
        extractor = feature_extraction_gemma4_unified.Gemma4UnifiedAudioFeatureExtractor(**sounds)
        kind = module.Gemma4UnifiedProcessor
    unchecked = type("Unchecked", (kind,), {"check_argument_for_proper_class": lambda *_: None})
    return unchecked(extractor, Gemma4ImageProcessorPil(**own), tokenizer, None)


@pytest.mark.parametrize("budget", BUDGETS)
def test_an_image_is_scaled_as_the_processor_scales_it(budget):
    draw = random.Random(budget)
    sides = [1, 2, 16, 47, 48, 49, 640, 768, 4000, *(draw.randrange(1, 5000) for _ in range(20))]
    for (height, width), (patch, pool) in itertools.product(itertools.product(sides, sides), ((16, 3), (8, 2))):
        found = Pictures(patch, pool, budget).size(height, width)
        assert found == processing_gemma4.get_aspect_ratio_preserving_size(height, width, patch, budget * pool**2, pool)


def test_a_sound_gives_the_tokens_the_processor_gives_it(tiny):
    processor = transformers_processor(tiny("edge"))
    draw = random.Random(3)
    edges = [0, 1, 160, 161, 320, 321, 480, 481, 640, 800, 801, 802, 1119, 1120, 1121, LONGEST - 1, LONGEST]
    for samples in [*edges, *(draw.randrange(1, 20_000) for _ in range(40))]:
        if samples:
            found = processor.feature_extractor([np.zeros(samples, dtype=np.float32)])
            text = processor.replace_audio_token(found, 0)
            assert Sounds().tokens(samples) == text.count("<|audio|>"), samples
    other = transformers_processor(tiny("unified"), processing_gemma4_unified)
    for samples in (1, 639, 640, 641, 16_000, LONGEST):
        assert Waves().tokens(samples) == other._compute_audio_num_tokens(np.zeros(samples), 16_000)
    assert Sounds().tokens(LONGEST) == Waves().tokens(LONGEST) == 750


def conversation(shelf, draw):
    """Two images of different shapes, two sounds of different lengths, words around them, a tool that shows
    something."""
    wide = encoded(Image.new("RGB", (90, 31), COLOURS["red"]), "JPEG")
    parts = [
        {"type": "image", "source": png("blue", draw)},
        {"type": "text", "text": "Left of "},
        {"type": "audio", "source": wav(tone("low", draw, 0.31))},
        {"type": "image", "source": wide},
        {"type": "text", "text": "and then?"},
    ]
    later = [{"type": "text", "text": "Again:"}, {"type": "audio", "source": wav(tone("high", draw, 0.173))}]
    turns = [{"role": "user", "content": parts}, ANSWER, {"role": "user", "content": later}, ANSWER]
    return shelf.store(turns)


def test_a_conversation_becomes_the_tokens_and_tensors_of_the_published_processor(tiny):
    folder = tiny("edge")
    processor, perceiver = transformers_processor(folder), Perceiver(folder)
    shelf = MediaShelf(None, perceiver.senses)
    messages = conversation(shelf, random.Random(1))
    tokenizer = chat.load_tokenizer(folder)
    ours = chat.encode_chat(tokenizer, messages, senses=perceiver.senses)
    files = [shelf.found[part["path"]] for part in media_of(messages)]
    kinds = [part["type"] for part in media_of(messages)]
    theirs = processor(
        text=chat.render_chat(messages).text,
        images=[[picture(data) for data, kind in zip(files, kinds, strict=True) if kind == "image"]],
        audio=[sound(data) for data, kind in zip(files, kinds, strict=True) if kind == "audio"],
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert ours.ids == theirs["input_ids"][0].tolist()
    assert ours.types() == theirs["mm_token_type_ids"][0].tolist()
    found = join_media([perceiver.see(media_of(messages), shelf.found, ours.types())])
    patches = found["pixel_values"].shape[1]
    assert patches < theirs["pixel_values"].shape[1], "padding up to the budget is cut off"
    assert torch.equal(found["pixel_values"], theirs["pixel_values"][:, :patches])
    assert torch.equal(found["image_position_ids"], theirs["image_position_ids"][:, :patches])
    assert not (theirs["image_position_ids"][:, patches:] != -1).any()
    frames = found["input_features"].shape[1]
    assert torch.equal(found["input_features"], theirs["input_features"][:, :frames])
    assert torch.equal(found["input_features_mask"], theirs["input_features_mask"][:, :frames].bool())
    assert not theirs["input_features_mask"][:, frames:].any()


def test_sounds_of_the_12b_are_those_of_its_processor(tiny):
    folder = tiny("unified")
    processor, perceiver = transformers_processor(folder, processing_gemma4_unified), Perceiver(folder)
    shelf = MediaShelf(None, perceiver.senses)
    draw = random.Random(2)
    parts = [{"type": "audio", "source": wav(tone("low", draw, seconds))} for seconds in (0.21, 0.13)]
    messages = shelf.store([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}, ANSWER])
    ours = chat.encode_chat(chat.load_tokenizer(folder), messages, senses=perceiver.senses)
    sounds = [sound(shelf.found[part["path"]]) for part in media_of(messages)]
    theirs = processor(
        text=chat.render_chat(messages).text, audio=sounds, add_special_tokens=False, return_tensors="pt"
    )
    found = join_media([perceiver.see(media_of(messages), shelf.found, ours.types())])
    assert ours.ids == theirs["input_ids"][0].tolist()
    assert ours.types() == theirs["mm_token_type_ids"][0].tolist()
    assert torch.equal(found["input_features"], theirs["input_features"])
    assert torch.equal(found["input_features_mask"], theirs["input_features_mask"])


def published(names):
    """Functions of the 12B's image processor, whose module can't be imported without torchvision."""
    path = inspect.getfile(processing_gemma4_unified).replace("processing_", "image_processing_")
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    kept = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    scope = {"torch": torch, "math": math}
    exec(compile(ast.Module(kept, []), path, "exec"), scope)
    return [scope[name] for name in names]


@pytest.mark.parametrize("size", [(40, 32), (31, 90), (300, 20)])
def test_pixels_of_the_12b_are_those_its_processor_merges_from_small_patches(tiny, size):
    patchify, merge = published(["convert_image_to_patches", "patches_merge"])
    perceiver = Perceiver(tiny("unified"))
    shelf = MediaShelf(None, perceiver.senses)
    messages = shelf.store(
        [{"role": "user", "content": [{"type": "image", "source": png("green", random.Random(4), size)}]}]
    )
    (part,) = media_of(messages)
    pixels, places = perceiver.see([part], shelf.found, []).pictures[0]
    height, width = perceiver.senses.image.size(part["height"], part["width"])
    # transformers' own Pillow processor scales the picture; small patches of it are put together again.
    whole = Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=3, max_soft_tokens=70)
    small = whole(images=[picture(shelf.found[part["path"]])], return_tensors="pt")
    count = height * width // 16
    merged, where = merge(small["pixel_values"][:, :count], small["image_position_ids"][:, :count], count // 9)
    assert torch.equal(pixels, merged[0])
    assert torch.equal(places, where[0])
    assert patchify(torch.zeros(3, 12, 12), 4).shape == (9, 48)


def shown(folder, *, text="Which colour?"):
    senses = Senses.read(folder)
    shelf = MediaShelf(None, senses)
    content = [{"type": "image", "source": png("red", random.Random(5))}, {"type": "text", "text": text}]
    return shelf.store([{"role": "user", "content": content}, ANSWER]), senses


def test_soft_tokens_never_carry_loss_and_are_typed(tiny):
    messages, senses = shown(tiny("edge"))
    tokenizer = chat.load_tokenizer(tiny("edge"))
    found = chat.encode_chat(tokenizer, messages, senses=senses)
    (block,) = found.blocks
    assert (found.ids[block.start], found.ids[block.end - 1]) == (5, 7)
    assert set(found.ids[block.start + 1 : block.end - 1]) == {6}
    assert not any(found.loss[block.start : block.end])
    assert sum(found.types()) == block.end - block.start - 2 == senses.tokens(media_of(messages)[0])
    assert (
        tokenizer.decode(
            [token for token, loss in zip(found.ids, found.loss, strict=True) if loss], skip_special_tokens=False
        )
        == "red<turn|>"
    )
    prompt = chat.prompt(tokenizer, messages[:1], senses=senses)
    assert found.ids[: len(prompt.ids)] == prompt.ids


def test_a_cut_never_goes_through_an_image(tiny):
    messages, senses = shown(tiny("edge"))
    found = chat.encode_chat(chat.load_tokenizer(tiny("edge")), messages, senses=senses)
    (block,) = found.blocks
    for limit in range(block.start + 1, block.end):
        assert len(found.cut(limit).ids) == block.start
        assert found.cut(limit).blocks == ()
    assert len(found.cut(block.end).ids) == block.end
    assert found.cut(block.end).blocks == (block,)
    assert sum(found.cut(block.end).types()) == block.end - block.start - 2


def test_what_a_model_does_not_take_is_refused(tiny):
    messages, _ = shown(tiny("edge"))
    tokenizer = chat.load_tokenizer(tiny("edge"))
    with pytest.raises(DataError, match="shows image, which this model does not take"):
        chat.encode_chat(tokenizer, messages)
    large = Senses.read(tiny("large"))
    assert large.kinds == ("image",)
    spoken = [{"role": "user", "content": [{"type": "audio", "path": "x", "samples": 1600}]}, ANSWER]
    with pytest.raises(DataError, match="shows audio"):
        chat.encode_chat(tokenizer, spoken, senses=large)
    assert Senses.read(tiny("unified")).kinds == ("image", "audio")


def test_tokens_that_disagree_with_the_model_are_refused(tiny):
    messages, senses = shown(tiny("edge"))
    tokenizer = chat.load_tokenizer(tiny("edge"))
    foreign = Senses(senses.image, senses.audio, False, tuple({**dict(senses.ids), "<|image|>": 258_880}.items()))
    with pytest.raises(ModelError, match=r"id 6 for <\|image\|>, and the model's configuration says 258880"):
        chat.encode_chat(tokenizer, messages, senses=foreign)
    from gemma_ops.nano import WEIGHTS

    with pytest.raises(ModelError, match=r"has no <\|image>"):
        chat.encode_chat(chat.load_tokenizer(WEIGHTS), messages, senses=senses)


def test_settings_are_read_from_either_processor_file_and_from_defaults(tmp_path):
    config = {"model_type": "gemma4", "vision_config": {"patch_size": 14}, "audio_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Senses.read(tmp_path).image == Pictures(14, 3, 280)
    assert dict(Senses.read(tmp_path).ids)["<|image|>"] == 258_880
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"patch_size": 16, "max_soft_tokens": 560}))
    assert Senses.read(tmp_path).image == Pictures(16, 3, 560)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"max_soft_tokens": 1120}}))
    assert Senses.read(tmp_path).image.budget == 1120
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"max_soft_tokens": 300}}))
    with pytest.raises(ModelError, match="300 soft tokens"):
        Senses.read(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": {"sampling_rate": 8000}}))
    with pytest.raises(ModelError, match="hears at 8000 Hz"):
        Senses.read(tmp_path)
