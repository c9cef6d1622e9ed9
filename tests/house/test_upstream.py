"""What the traps say of the stack is still so in what is installed. One that fails says that upstream mended it: look
at the trap's evidence again, and at what our own way around it costs. `make upgrade-check` reports them by trap."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
import transformers

from tests.helpers.checkpoints import tiny
from tests.helpers.tiny_models import save


@pytest.fixture
def towers(tmp_path):
    return save("multimodal", tmp_path / "base")


@pytest.mark.upstream("sdpa-string")
def test_a_string_for_attention_reaches_the_audio_tower(towers):
    with pytest.raises((ValueError, AttributeError)):
        transformers.Gemma4ForConditionalGeneration.from_pretrained(towers, attn_implementation="sdpa")


@pytest.mark.upstream("text-class-on-full-checkpoint")
def test_the_text_class_finds_no_weight_of_a_full_checkpoint(towers):
    model, found = transformers.Gemma4ForCausalLM.from_pretrained(towers, output_loading_info=True)
    assert len(found["missing_keys"]) >= len(list(model.parameters())) - 1  # the tied head is none of its own


@pytest.mark.upstream("lost-head-dims")
def test_a_saved_config_lacks_the_published_names(tmp_path):
    transformers.AutoConfig.from_pretrained(tiny("dense31")).save_pretrained(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text_config"]
    assert "per_layer_config" in text
    assert text.get("global_head_dim") is None


@pytest.mark.upstream("4bit-skip-list")
def test_a_plain_name_in_the_skip_list_matches_nothing():
    from transformers.quantizers.quantizers_utils import should_convert_module

    name = "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear"
    assert should_convert_module(name, ["vision_tower"])
    assert not should_convert_module(name, ["model.vision_tower"])


@pytest.mark.upstream("prepare-for-kbit")
def test_preparing_for_4_bit_raises_what_is_not_packed_to_float32():
    import peft

    from gemma_ops.modeling.load import load_model

    model = peft.prepare_model_for_kbit_training(load_model(tiny("e2b"), weights="nf4"))
    assert model.model.language_model.embed_tokens_per_layer.weight.dtype == torch.float32


@pytest.mark.upstream("fp32-default")
def test_trl_loads_a_name_in_float32():
    from trl.trainer import utils

    assert "float32" in inspect.getsource(utils.create_model_from_path)


@pytest.mark.upstream("mean-of-means")
def test_the_trainer_averages_over_batches():
    source = inspect.getsource(transformers.Trainer.evaluation_loop)
    assert "loss.repeat(" in source or "losses.mean" in source or "np.mean(all_losses" in source


@pytest.mark.upstream("experts-stay-bf16")
def test_bitsandbytes_leaves_experts_alone():
    from gemma_ops.modeling import stock

    model = stock.load_stock(tiny("moe"), "nf4", "cpu")
    experts = next(module for name, module in model.named_modules() if name.endswith("layers.0.experts"))
    assert {parameter.dtype for parameter in experts.parameters()} == {torch.bfloat16}
