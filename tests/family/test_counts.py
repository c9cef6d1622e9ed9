"""Every count of `family.shape` against the models themselves, built on the meta device (no memory, no weights)."""

from __future__ import annotations

import json
import re

import pytest

from gemma_ops import family
from gemma_ops.family import Shape
from gemma_ops.nano import nano_shape as nano

torch = pytest.importorskip("torch")


def _config(key, *, towers=True):
    """The transformers configuration of a size, made from the table's own dictionary."""
    import transformers as t

    body = family.CONFIGS[key]
    unified = body["model_type"] == "gemma4_unified"
    prefix = "Gemma4Unified" if unified else "Gemma4"
    parts = {"text_config": getattr(t, f"{prefix}TextConfig")(**body["text_config"])}
    for part, name in (("vision_config", "Vision"), ("audio_config", "Audio")):
        wanted = towers and body[part] is not None
        parts[part] = getattr(t, f"{prefix}{name}Config")(**body[part]) if wanted else None
    return getattr(t, f"{prefix}Config")(**parts)


def _build(config):
    import transformers as t

    kind = (
        "Gemma4UnifiedForConditionalGeneration" if "unified" in config.model_type else "Gemma4ForConditionalGeneration"
    )
    with torch.device("meta"):
        return getattr(t, kind)(config)


@pytest.fixture(scope="module")
def models():
    return {key: _build(_config(key)) for key in family.SIZES}


def _component(name):
    for pattern, component in (
        (r"vision", "vision"),
        (r"audio", "audio"),
        (r"embed_tokens_per_layer", "per_layer_table"),
        (r"embed_tokens|lm_head", "embedding"),
        (r"norm", "norms"),
        (r"experts", "experts"),
        (r"router", "router"),
        (r"per_layer", "per_layer_linears"),
        (r"self_attn", "attention"),
        (r"\.mlp\.", "mlp"),
    ):
        # The router's per-expert scale is part of the router, not of the experts.
        if re.search(pattern, name.replace("per_expert_scale", "router_scale")):
            return component
    raise AssertionError(name)


@pytest.mark.parametrize("key", family.SIZES)
def test_counts_equal_the_model_on_the_meta_device(models, key):
    expected = dict.fromkeys(family.Counts.__dataclass_fields__, 0)
    for name, parameter in models[key].named_parameters():
        expected[_component(name)] += parameter.numel()
    counts = family.SIZES[key].shape.counts()
    assert {name: getattr(counts, name) for name in expected} == expected
    assert counts.total == sum(parameter.numel() for parameter in models[key].parameters())


@pytest.mark.parametrize(
    ("key", "billions"), [("E2B", 5.1), ("E4B", 7.9), ("12B", 11.95), ("26B-A4B", 25.8), ("31B", 31.3)]
)
def test_totals_are_the_published_ones(key, billions):
    assert family.SIZES[key].shape.counts().total / 1e9 == pytest.approx(billions, rel=0.008)


@pytest.mark.parametrize("key", family.SIZES)
def test_linears_of_the_language_model_by_name_and_width(models, key):
    expected = {
        name: (module.in_features, module.out_features)
        for name, module in models[key].named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("model.language_model.")
    }
    shape = family.SIZES[key].shape
    assert {linear.name: (linear.inputs, linear.outputs) for linear in shape.linears()} == expected


@pytest.mark.parametrize("key", family.SIZES)
def test_lora_targets_match_attention_and_mlp_and_nothing_else(models, key):
    matched = {name for name, _ in models[key].named_modules() if re.fullmatch(family.LORA_TARGETS, name)}
    assert matched == {linear.name for linear in family.lora_linears(family.SIZES[key].shape)}
    assert all(re.search(r"language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj$", name) for name in matched)
    layers = family.SIZES[key].shape.layers
    assert len(matched) == sum(7 - 2 * layer.shares_kv - layer.k_eq_v for layer in layers)


def test_lora_targets_match_in_the_text_only_class_too():
    import transformers as t

    shape = family.SIZES["E2B"].shape
    with torch.device("meta"):
        model = t.Gemma4ForCausalLM(_config("E2B").text_config)
    matched = {name for name, _ in model.named_modules() if re.fullmatch(family.LORA_TARGETS, name)}
    assert matched == {linear.name for linear in family.lora_linears(shape, prefix="model.")}


@pytest.mark.parametrize("key", family.SIZES)
def test_skip_list_leaves_exactly_attention_and_mlp_for_4bit(models, key):
    from transformers.quantizers.quantizers_utils import should_convert_module

    linears = [name for name, module in models[key].named_modules() if isinstance(module, torch.nn.Linear)]
    converted = {name for name in linears if should_convert_module(name, list(family.SKIP_4BIT))}
    assert converted == {linear.name for linear in family.lora_linears(family.SIZES[key].shape)}


@pytest.mark.parametrize("key", family.SIZES)
def test_a_saved_config_is_read_in_both_spellings(key):
    published = family.SIZES[key].shape
    saved = json.loads(_config(key).to_json_string(use_diff=False))
    assert "per_layer_config" in saved["text_config"]
    assert Shape.from_config(saved) == published
    assert family.identify(saved) == key
    text_only = json.loads(_config(key, towers=False).to_json_string(use_diff=False))
    assert Shape.from_config(text_only).counts().total == published.counts().text
    assert family.identify(text_only) == key
    assert Shape.from_config(saved["text_config"]).layers == published.layers


def test_nano_is_counted_too_and_is_none_of_the_five():
    model = nano.build_nano()
    saved = json.loads(model.config.to_json_string(use_diff=False))
    shape = Shape.from_config(saved)
    assert shape.counts().total == sum(parameter.numel() for parameter in model.parameters())
    assert shape.shares_kv
    assert family.identify(saved) is None


def test_active_parameters_of_the_mixture():
    shape = family.SIZES["26B-A4B"].shape
    assert shape.active_per_token() / 1e9 == pytest.approx(3.82, rel=0.005)  # "A4B"; 3.8 B on the model card
    assert family.SIZES["E2B"].shape.active_per_token() / 1e9 == pytest.approx(2.28, rel=0.005)  # "effective 2.3 B"
