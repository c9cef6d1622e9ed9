"""An adapter goes where it belongs, is saved whole, and fits the base it is put on or is refused."""

from __future__ import annotations

import pytest
import torch
from modeling_world import IDS, tiny
from safetensors.torch import load_file, save_file

from gemma_ops.config import LoraConfig
from gemma_ops.errors import ConfigError, ModelError
from gemma_ops.modeling import adapters
from gemma_ops.modeling.load import load_model


@pytest.mark.parametrize("kind", ["e2b", "moe", "multimodal"])
def test_lora_stays_in_the_language_model(kind):
    model = adapters.attach(load_model(tiny(kind)), LoraConfig(rank=2), seed=0)
    adapted = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert adapted
    assert all("language_model.layers" in name for name in adapted)
    assert not any("router" in name or "per_layer" in name for name in adapted)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    "targets, message",
    [("nothing", "matches no module"), (".*", "must not be adapted"), ("(", "not a regular expression")],
)
def test_lora_targets_are_checked(targets, message):
    with pytest.raises(ConfigError, match=message):
        adapters.attach(load_model(tiny("e2b")), LoraConfig(targets=targets), seed=0)


def tuned(folder, tmp_path, scale=0.05):
    model = adapters.attach(load_model(folder, weights="fp32"), LoraConfig(rank=4), seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=scale)
    adapters.save(model, tmp_path / "adapter", "base", None)
    return model.eval()


def test_an_adapter_trained_text_only_works_on_the_whole_model(tmp_path):
    model = tuned(tiny("multimodal"), tmp_path)
    whole = adapters.load(load_model(tiny("multimodal"), weights="fp32", towers=True), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, whole(input_ids=IDS).logits, atol=1e-5)
        with whole.disable_adapter():
            assert not torch.allclose(model(input_ids=IDS).logits, whole(input_ids=IDS).logits, atol=1e-2)


def test_an_adapter_of_the_text_class_is_reprefixed(tmp_path):
    model = tuned(tiny("e2b"), tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({adapters.reprefix(name, wrapped=False): tensor for name, tensor in load_file(file).items()}, file)
    assert all("language_model" not in name for name in load_file(file))
    loaded = adapters.load(load_model(tiny("e2b"), weights="fp32"), tmp_path / "adapter")
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, loaded(input_ids=IDS).logits, atol=1e-5)


def test_an_adapter_that_does_nothing_or_does_not_fit_is_refused(tmp_path):
    tuned(tiny("e2b"), tmp_path, scale=0.0)
    with pytest.raises(ModelError, match="changes nothing"):
        adapters.load(load_model(tiny("e2b")), tmp_path / "adapter")
    tuned(tiny("e2b"), tmp_path)
    with pytest.raises((ModelError, RuntimeError), match=r"does not fit|size mismatch"):
        adapters.load(load_model(tiny("dense31")), tmp_path / "adapter")
