"""Training on rows that show something: the loss is the model's own, packed as padded, towers frozen unless asked."""

from __future__ import annotations

import json
import random
from types import MethodType

import pytest
import torch

from gemma_ops import family
from gemma_ops.config import DataConfig, KernelsConfig, LoraConfig, MachineConfig, TrainConfig
from gemma_ops.data import chat, published
from gemma_ops.data.arrow import token_table
from gemma_ops.data.parts import media_of
from gemma_ops.data.pictures import picture
from gemma_ops.data.row_tokens import NO_LOSS, Manner
from gemma_ops.data.sounds import sound
from gemma_ops.errors import ConfigError, DataError
from gemma_ops.kernels import graphs_capture, graphs_layers, install
from gemma_ops.kernels.ops_runner import EAGER
from gemma_ops.modeling import adapters
from gemma_ops.modeling.load import load_model
from gemma_ops.prepare import prepare
from gemma_ops.training import head, media_sft
from gemma_ops.training.forward_inputs import TokenRows
from gemma_ops.training.media_collator import MediaCollate, shown_batch
from gemma_ops.training.steps import OptimizerStep
from tests.data.test_media_tokens import transformers_processor
from tests.helpers import tiny_media
from tests.helpers.media_rows import png, tone, wav

CPU = MachineConfig(device="cpu", mlflow=None)
SETTINGS = TrainConfig(
    weights="fp32", kernels=KernelsConfig(attention="sdpa", head="fused", lora="peft", norms="eager")
)


def mixed(folder, *, audio=True):
    """Rows with two images, with a sound, and with words only."""
    draw = random.Random(7)
    (folder / "a").mkdir(parents=True)
    for name, data in (("a/1.png", png("red", draw)), ("a/2.png", png("blue", draw, (50, 30)))):
        (folder / name).write_bytes(data)
    (folder / "a/3.wav").write_bytes(wav(tone("high", draw, 0.27)))
    (folder / "a/4.wav").write_bytes(wav(tone("low", draw, 0.15)))
    image = [{"type": "image", "path": f"a/{number}.png"} for number in (1, 2)]
    rows = [
        [{"type": "text", "text": "Compare these two,"}, image[0], {"type": "text", "text": "and"}, image[1]],
        "How are you today?",
        [image[1], {"type": "text", "text": "What is it?"}],
    ]
    if audio:
        sounds = [{"type": "audio", "path": f"a/{number}.wav"} for number in (3, 4)]
        rows += [[sounds[0], {"type": "text", "text": "What do you hear?"}], [image[0], sounds[1]]]
    answers = ["Red and blue.", "Fine, thank you.", "Something blue, I think.", "High.", "Both."]
    body = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}
        for asked, answer in zip(rows, answers, strict=False)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in body))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    """`prepared(kind)`: folder of rows for a checkpoint, its tokenized table, and what builds passes from it."""
    made = {}

    def make(kind):
        if kind not in made:
            root = tmp_path_factory.mktemp(f"rows-{kind}")
            source = mixed(root / "source", audio=kind in ("edge", "unified"))
            (root / "data").mkdir()
            settings = DataConfig(path=str(source), valid_share=0, near_duplicates=None)
            prepare(root / "data", settings, CPU, source=source, model=tiny(kind))
            found = media_sft.find_media(tiny(kind), root / "data", SETTINGS)
            manner = Manner(published.template_of(tiny(kind)), senses=found.perceiver.senses)
            rows, cut = token_table(
                root / "data/train.jsonl", root / "tokens", chat.load_tokenizer(tiny(kind)), manner, max_length=512
            )
            assert cut == 0
            made[kind] = root / "data", TokenRows(rows), found
        return made[kind]

    return make


def passes(prepared, groups, *, packing, bounds=False):
    """The model's arguments for passes of the given rows."""
    _, rows, found = prepared
    step = OptimizerStep(groups, [row for group in groups for row in group])
    collate = found.collate(packing=packing, bounds=bounds)
    assert isinstance(collate, MediaCollate)
    return collate(rows.__getitems__(step))


def loss_of(model, batch):
    with torch.no_grad():
        return sum(model(**arguments, divisor=batch.divisor).loss for arguments in batch.passes)


def scored(folder):
    model = load_model(folder, weights="fp32", towers=True)
    head.install_head(model, SETTINGS)
    return model


@pytest.mark.parametrize("kind", tiny_media.KINDS)
def test_the_loss_of_a_step_is_the_models_own_on_each_row(tiny, prepared, kind):
    """Rows together, padded: what the published forward pass says of each row alone, weighted by its tokens.

    Where transformers' processor can be built, it makes the tensors of the comparison.
    """
    data, rows, _ = prepared(kind)
    model = scored(tiny(kind))
    together = loss_of(model, passes(prepared(kind), [list(range(len(rows)))], packing=False))
    processor = transformers_processor(tiny(kind)) if kind != "unified" else None
    total = count = 0.0
    for number, line in enumerate(data.joinpath("train.jsonl").read_text().splitlines()):
        labels = torch.from_numpy(rows.table[number]["labels"]).long()[None]
        messages = json.loads(line)["messages"]
        if processor is None:
            seen = passes(prepared(kind), [[number]], packing=False).passes[0]
            given = {key: value for key, value in seen.items() if key not in ("where", "targets")}
        else:
            files = [(part["type"], (data / part["path"]).read_bytes()) for part in media_of(messages)]
            given = processor(
                text=chat.render_template(
                    published.template_of(tiny(kind)), messages, add_generation_prompt=False
                ).text,
                images=[[picture(body) for name, body in files if name == "image"]]
                if any(k == "image" for k, _ in files)
                else None,
                audio=[sound(body) for name, body in files if name == "audio"] or None,
                add_special_tokens=False,
                return_tensors="pt",
            )
            assert given["input_ids"].shape == labels.shape
        with torch.no_grad():
            own = model(**given, labels=labels).loss
        tokens = float((labels[:, 1:] != NO_LOSS).sum())
        total, count = total + float(own) * tokens, count + tokens
    assert together == pytest.approx(total / count, abs=2e-5)


def learning(folder, kernels, *, towers=False, recompute="none", shown=("image",)):
    """The model with an adapter that is no longer zero, as training makes it."""
    model = load_model(folder, weights="fp32", towers=True)
    model = adapters.attach(model, LoraConfig(rank=2, towers=towers), 0, shown=shown)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    settings = TrainConfig(weights="fp32", kernels=kernels)
    install.install_kernels(model, kernels, recompute=recompute)
    head.install_head(model, settings)
    return model.train()


def gradients(model, batch):
    """The loss of a step, and its gradients by name."""
    model.zero_grad()
    losses = [model(**arguments, divisor=batch.divisor).loss for arguments in batch.passes]
    sum(losses).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return float(sum(losses)), found


FUSED = KernelsConfig(attention="documents", head="fused", lora="fused", norms="fused", compile="off")
PLAIN = KernelsConfig(attention="sdpa", head="fused", lora="peft", norms="eager", compile="off")


@pytest.mark.parametrize(
    ("kind", "recompute"), [*((kind, "none") for kind in tiny_media.KINDS), ("large", "mlp"), ("large", "all")]
)
def test_packed_rows_with_kernels_are_padded_rows_without(tiny, prepared, kind, recompute):
    """Loss and gradients, towers adapted too. Images of one pass belong to different rows, and tokens of an image see
    each other on all sizes but the smallest."""
    shown = ("image", "audio") if kind in ("edge", "unified") else ("image",)
    groups = [[0, 1, 2], [3, 4]] if kind in ("edge", "unified") else [[0, 1, 2]]
    reference = learning(tiny(kind), PLAIN, towers=True, shown=shown)
    loss, wanted = gradients(reference, passes(prepared(kind), groups, packing=False))
    model = learning(tiny(kind), FUSED, towers=True, recompute=recompute, shown=shown)
    batch = passes(prepared(kind), groups, packing=True, bounds=True)
    assert all("attention_mask" not in arguments for arguments in batch.passes)
    packed, found = gradients(model, batch)
    assert packed == pytest.approx(loss, abs=2e-5)
    assert found.keys() == wanted.keys()
    assert any("vision" in name for name in found)
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 2e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize("towers", [False, True])
def test_passes_with_images_are_replayed_unless_a_tower_learns(tiny, prepared, towers):
    """E2B and E4B, whose images are read from left to right; on a tape that needs no GPU."""
    batch = passes(prepared("edge"), [[0, 1, 2, 3, 4]], packing=True, bounds=True)
    model = learning(tiny("edge"), FUSED, towers=towers, shown=("image", "audio"))
    loss, wanted = gradients(model, batch)
    text = model.get_base_model().model.language_model
    made = graphs_layers.Graphs(text, EAGER, graphs_capture.Again)
    text.forward = MethodType(made.forward(type(text).forward), text)
    for _ in range(2):
        again, found = gradients(model, batch)
        assert again == pytest.approx(loss, abs=2e-5)
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    assert made.on
    assert bool(made.kept) != towers


@pytest.mark.upstream("no-video-token-types")
@pytest.mark.parametrize("kind", ["large", "mixture", "unified"])
def test_images_in_packed_rows_need_their_token_types(tiny, prepared, kind):
    """The counter-test: without types an image is read from left to right, and the loss is another."""
    model = learning(tiny(kind), FUSED)
    whole = passes(prepared(kind), [[0, 1, 2]], packing=True, bounds=True)
    with torch.no_grad():
        found = float(loss_of(model, whole))
        for arguments in whole.passes:
            del arguments["mm_token_type_ids"]
        assert abs(float(loss_of(model, whole)) - found) > 1e-3


def test_the_large_sizes_are_padded_where_masks_are_transformers_own(prepared, tiny):
    assert [kind for kind in tiny_media.KINDS if prepared(kind)[2].packs] == ["edge"]
    assert all(media_sft.packs(tiny(kind), TrainConfig()) for kind in tiny_media.KINDS)


@pytest.mark.parametrize("kind", tiny_media.KINDS)
def test_rows_with_images_lose_what_each_loses_alone(tiny, prepared, kind):
    """Laid out as training lays them out for these masks, whatever that is for the size."""
    model = scored(tiny(kind))
    _, _, found = prepared(kind)
    together = loss_of(model, passes(prepared(kind), [[0, 1, 2]], packing=found.packs))
    alone = [passes(prepared(kind), [[number]], packing=False) for number in range(3)]
    total = sum(float(loss_of(model, one)) * one.divisor for one in alone)
    assert float(together) == pytest.approx(total / sum(one.divisor for one in alone), abs=2e-5)


@pytest.mark.upstream("packed-images")
@pytest.mark.parametrize("kind", ["large", "mixture"])
def test_why_images_of_the_large_sizes_are_not_packed(tiny, prepared, kind):
    """transformers 5.23 and 5.24 count positions from each row's start and looks images up by them in the whole pass,
    so that rows after the first get the first one's images for their own."""
    model = scored(tiny(kind))
    padded = loss_of(model, passes(prepared(kind), [[0, 1, 2]], packing=False))
    packed = loss_of(model, passes(prepared(kind), [[0, 1, 2]], packing=True))
    assert abs(packed - padded) > 1e-3


@pytest.mark.parametrize("kind", tiny_media.KINDS)
def test_token_types_always_go_along_and_matter_where_images_are_seen_whole(tiny, prepared, kind):
    model = scored(tiny(kind))
    whole = passes(prepared(kind), [[0], [1], [2]], packing=False)
    assert all("mm_token_type_ids" in one for one in whole.passes)
    assert not whole.passes[1]["mm_token_type_ids"].any(), "a row of words has zeros"
    found = float(loss_of(model, whole))
    for arguments in whole.passes:
        del arguments["mm_token_type_ids"]
    without = float(loss_of(model, whole))
    assert (abs(found - without) > 1e-3) == (kind != "edge")


def test_soft_tokens_are_never_scored(prepared):
    _, rows, _ = prepared("edge")
    for number in range(len(rows)):
        row = rows.table[number]
        for part in shown_batch(row):
            assert (row["labels"][part["start"] : part["end"]] == NO_LOSS).all()
    batch = passes(prepared("edge"), [[0, 3, 4]], packing=True).passes[0]
    types = batch["mm_token_type_ids"].flatten()
    assert not types[batch["where"]][:-1].any() or (types[batch["where"]] == 0).all()
    assert not torch.isin(batch["targets"], torch.tensor([5, 6, 7, 8, 9, 10])).any()


def test_a_row_that_is_cut_keeps_as_many_features_as_places(tiny, prepared, tmp_path):
    data, _, found = prepared("edge")
    tokenizer = chat.load_tokenizer(tiny("edge"))
    manner = Manner(senses=found.perceiver.senses)
    rows, cut = token_table(data / "train.jsonl", tmp_path / "rows", tokenizer, manner, max_length=60)
    assert cut >= 2
    assert all(part["end"] <= row["length"] for row in rows for part in shown_batch(row))


def test_a_changed_file_is_told(tiny, prepared, tmp_path):
    data, rows, found = prepared("edge")
    part = shown_batch(rows.table[0])[0]
    copy = tmp_path / part["path"]
    copy.parent.mkdir()
    copy.write_bytes((data / part["path"]).read_bytes() + b"x")
    with pytest.raises(DataError, match="was changed after the rows were prepared"):
        found.perceiver.see([part], tmp_path, [])


def test_towers_are_frozen_unless_asked_and_only_what_is_shown_is_adapted(tiny):
    folder = tiny("edge")
    names = trainable(adapters.attach(load_model(folder, towers=True), LoraConfig(rank=2), 0, shown=("image",)))
    assert names
    assert all("language_model" in name for name in names)
    both = trainable(
        adapters.attach(load_model(folder, towers=True), LoraConfig(rank=2, towers=True), 0, shown=("image", "audio"))
    )
    seen = trainable(
        adapters.attach(load_model(folder, towers=True), LoraConfig(rank=2, towers=True), 0, shown=("image",))
    )
    assert any("vision_tower" in name for name in seen)
    assert any("embed_vision" in name for name in seen)
    assert not any("audio" in name for name in seen)
    assert any("audio_tower" in name for name in both)
    with pytest.raises(ConfigError, match="no row has images or audio"):
        adapters.attach(load_model(folder, towers=True), LoraConfig(towers=True), 0, shown=())


@pytest.mark.parametrize("kind", tiny_media.KINDS)
def test_every_linear_of_a_tower_is_reached_or_left_out_on_purpose(tiny, kind):
    import re

    model = load_model(tiny(kind), towers=True)
    pattern = re.compile("|".join(family.TOWER_TARGETS.values()))
    linears = {
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and re.search(r"vision|audio", name)
    }  # fmt: skip
    left = {re.sub(r"\d+", "N", name) for name in linears if not pattern.fullmatch(name)}
    assert left <= {
        "model.vision_tower.patch_embedder.input_proj",
        "model.audio_tower.subsample_conv_projection.input_proj_linear",
        "model.audio_tower.layers.N.self_attn.relative_k_proj",
        "model.audio_tower.output_proj",
    }
    assert linears - {name for name in linears if not pattern.fullmatch(name)}


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_gradients_reach_adapted_towers(tiny, prepared):
    model = adapters.attach(
        load_model(tiny("edge"), weights="fp32", towers=True),
        LoraConfig(rank=2, towers=True),
        0,
        shown=("image", "audio"),
    )
    head.install_head(model, SETTINGS)
    batch = passes(prepared("edge"), [[0, 4]], packing=True)
    model(**batch.passes[0], divisor=batch.divisor).loss.backward()
    reached = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    for tower in ("vision_tower", "embed_vision", "audio_tower", "embed_audio", "language_model"):
        assert any(tower in name for name in reached), tower


def test_4_bit_leaves_towers_alone(tiny):
    """`load_model` compares what became 4-bit with what should have."""
    model = load_model(tiny("edge"), weights="nf4", towers=True)
    kinds = {type(module).__name__ for name, module in model.named_modules() if "tower" in name or "embed_" in name}
    assert "Linear4bit" not in kinds


def test_methods_without_a_form_for_images_say_so(tiny, prepared):
    data, _, _ = prepared("edge")
    with pytest.raises(ConfigError, match=r"the rows show image and audio, and train\.method dpo reads text only"):
        media_sft.find_media(tiny("edge"), data, TrainConfig(method="dpo"))
    assert media_sft.find_media(tiny("edge"), tiny("edge"), TrainConfig(method="dpo"), sharded=True) is None
    with pytest.raises(ConfigError, match=r"use launch\.strategy=ddp"):
        media_sft.find_media(tiny("edge"), data, TrainConfig(), sharded=True)
