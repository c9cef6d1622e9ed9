"""What is loaded is what is in the file: for every kind, every spelling, with towers and without."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_ops import family
from gemma_ops.errors import ModelError
from gemma_ops.modeling import streaming
from gemma_ops.modeling.load import load_model
from tests.helpers.checkpoints import IDS, KINDS, copied, logits, tiny, whole


@pytest.mark.parametrize("weights, dtype", [("bf16", torch.bfloat16), ("fp32", torch.float32)])
@pytest.mark.parametrize("kind", KINDS)
def test_loading_equals_transformers_own(kind, weights, dtype):
    """Every parameter, every buffer (also those no file holds), their types, the tied head, and what ends a reply."""
    ours, theirs = load_model(tiny(kind), weights=weights, towers=True), whole(kind, dtype)
    for mine, other in (
        (dict(ours.named_parameters()), dict(theirs.named_parameters())),
        (dict(ours.named_buffers()), dict(theirs.named_buffers())),
    ):
        assert list(mine) == list(other)
        for name, tensor in other.items():
            assert torch.equal(mine[name], tensor), name
            assert mine[name].dtype == tensor.dtype, name
    assert ours.lm_head.weight is ours.get_input_embeddings().weight
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id
    assert not ours.training
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_text_only_load_equals_the_whole_model(kind):
    """Towers are dropped through the configuration: nothing is missing, no name changes, the text logits are the
    same."""
    text, all_of_it = load_model(tiny(kind), weights="fp32"), whole(kind)
    names = {name for name, _ in all_of_it.named_parameters()}
    assert {name for name, _ in text.named_parameters()} <= names
    assert not [name for name, _ in text.named_modules() if "tower" in name or "embed_vision" in name]
    assert torch.equal(logits(text), logits(all_of_it))


def test_text_only_reads_no_byte_of_a_tower(monkeypatch):
    read = []
    original = streaming.shard_pieces
    monkeypatch.setattr(
        streaming, "shard_pieces", lambda entry, *rest: read.append(entry.name) or original(entry, *rest)
    )
    load_model(tiny("multimodal"))
    assert len(read) > 90
    assert not [name for name in read if "tower" in name or "embed_vision" in name or "embed_audio" in name]
    assert not [name for name in read if ".layers.5.self_attn.k_proj" in name], (
        "nor keys that a sharing layer never uses"
    )
    read.clear()
    load_model(tiny("multimodal"), towers=True)
    assert [name for name in read if "tower" in name]


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_the_base_models_own(kind):
    """No layer is initialised anew: the loss on tokens equals that of transformers' whole model, which on random
    weights is far from what other random weights give."""
    ids = torch.randint(20, 400, (2, 24), generator=torch.Generator().manual_seed(0))
    ours = load_model(tiny(kind), weights="fp32").train()
    with torch.no_grad():
        mine, theirs = (float(model(input_ids=ids, labels=ids).loss) for model in (ours, whole(kind)))
    assert mine == pytest.approx(theirs, abs=1e-5)


def test_the_first_loss_would_tell_a_wrong_prefix():
    """Why we don't take `AutoModelForCausalLM`'s text class: it loads, with random weights, and the loss shows it."""
    import transformers

    ids = torch.randint(20, 400, (2, 24), generator=torch.Generator().manual_seed(0))
    random, info = transformers.Gemma4ForCausalLM.from_pretrained(tiny("e2b"), output_loading_info=True)
    assert len(info["missing_keys"]) > 10
    with torch.no_grad():
        other, right = (float(model(input_ids=ids, labels=ids).loss) for model in (random.float(), whole("e2b")))
    assert abs(other - right) > 0.05


def test_a_checkpoint_of_the_text_class_is_loaded_as_that(tmp_path):
    import transformers

    base = whole("e2b", torch.bfloat16)
    config = base.config.text_config
    text = transformers.Gemma4ForCausalLM(config).to(torch.bfloat16)
    text.model.load_state_dict(base.model.language_model.state_dict())
    text.tie_weights()
    text.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded).__name__ == "Gemma4ForCausalLM"
    assert torch.equal(logits(loaded), logits(base))
    assert {line.kind for line in load_model(tmp_path, weights="nf4").audit} == {"nf4", "bf16"}


def test_the_published_names_of_the_unified_class_are_read(tmp_path):
    """The 12B's files say `vision_embedder.patch_dense` and `embed_vision.embedding_projection`."""
    folder = copied("unified", tmp_path / "m")
    file = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        published = name.replace("embed_vision.multimodal_embedder.embedding_projection", "embed_vision.PROJECTION")
        published = published.replace("embed_vision.p", "vision_embedder.p")
        tensors[published.replace("PROJECTION", "embedding_projection")] = tensor
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = load_model(folder, towers=True)
    for name, tensor in whole("unified", torch.bfloat16).named_parameters():
        assert torch.equal(dict(loaded.named_parameters())[name], tensor)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda name, tensor: None if name.endswith("layers.0.mlp.up_proj.weight") else tensor,
            "no value for 1 para.*up_proj",
        ),
        (lambda name, tensor: tensor[:8].clone() if "norm.weight" in name else tensor, "another shape for .*norm"),
    ],
)
@pytest.mark.parametrize("weights", ["bf16", "nf4"])
def test_a_parameter_without_its_value_is_refused_before_anything_is_read(
    tmp_path, monkeypatch, change, message, weights
):
    folder = copied("e2b", tmp_path / "m")
    file = folder / "model.safetensors"
    changed = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, file)
    monkeypatch.setattr(streaming, "fill_streamed", None)
    with pytest.raises(ModelError, match=message):
        load_model(folder, weights=weights)


def test_a_parameter_without_a_place_is_refused(tmp_path):
    folder = copied("e2b", tmp_path / "m")
    file = folder / "model.safetensors"
    save_file(load_file(file) | {"model.language_model.layers.9.mlp.up_proj.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ModelError, match=r"without a place in the model, 1 parameters, the first: .*layers\.9"):
        load_model(folder)


def test_a_quantized_checkpoint_is_refused(tmp_path):
    folder = copied("e2b", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(ModelError, match="already quantized"):
        load_model(folder, weights="nf4")


def test_a_buffer_that_nobody_computes_is_refused(monkeypatch):
    import transformers

    monkeypatch.setattr(
        transformers.Gemma4ForConditionalGeneration, "_init_weights", lambda self, module: None, raising=True
    )
    with pytest.raises(ModelError, match=r"computes no value for .*embed_scale"):
        load_model(tiny("e2b"))


@pytest.mark.upstream("loss-under-accumulation")
def test_loss_arguments_are_accepted():
    import transformers

    assert transformers.Gemma4ForConditionalGeneration.accepts_loss_kwargs is False
    assert load_model(tiny("e2b")).accepts_loss_kwargs is True


def test_nothing_calls_prepare_model_for_kbit_training():
    """It would upcast the embeddings and per-layer tables to float32 and turn reentrant checkpointing on."""
    from pathlib import Path

    root = Path(family.__file__).parents[1]
    called = [
        path for path in root.rglob("*.py") if "prepare_model_for_kbit_training(" in path.read_text(encoding="utf-8")
    ]
    assert not called


def test_answers_are_those_of_transformers():
    for kind in ("e2b", "moe"):
        options = {"max_new_tokens": 8, "do_sample": False}
        ours, theirs = load_model(tiny(kind)), whole(kind, torch.bfloat16)
        assert torch.equal(ours.generate(IDS, **options), theirs.generate(IDS, **options))
