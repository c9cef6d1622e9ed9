"""Adapters on disk: merged they are what was trained, they appear whole or not at all, and what is none is refused."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from gemma_ops.config import LoraConfig, MachineConfig, MergeConfig
from gemma_ops.errors import ModelError
from gemma_ops.export import merge, replacing
from gemma_ops.export.checkpoint import MergedCheckpoint
from gemma_ops.modeling import adapters
from gemma_ops.modeling.load import load_model
from tests.helpers.checkpoints import hold, in_fp32, logits, routes, tiny
from tests.modeling.test_adapters import VARIANTS, attached, hear, see, trained

MACHINE = MachineConfig(device="cpu", workers=1)


def merged(tmp_path, base, adapter):
    out = tmp_path / "merge"
    out.mkdir()
    merge(out, MergeConfig(canary_prompts=1), MACHINE, base=base, adapter=adapter)
    return out / "model"


@pytest.mark.parametrize("variant", VARIANTS)
def test_merge_is_the_adapter(variant, tmp_path):
    """Trained by us, saved, folded into a float32 base: the logits are those of the training, whatever the variant."""
    kind, settings = VARIANTS[variant]
    model = trained(variant)
    adapters.save_adapter(model, tmp_path / "train" / "adapter", "base", None)
    folder = merged(tmp_path, in_fp32(kind, tmp_path / "base"), tmp_path / "train")
    towers = settings.get("towers", False)
    again = load_model(folder, weights="fp32", towers=towers)
    assert torch.allclose(logits(again), logits(model), atol=2e-4)
    for sense in (see, hear) if towers else ():
        with torch.no_grad():
            assert torch.allclose(sense(again), sense(model), atol=1e-4)


def test_towers_alone_are_merged_too(tmp_path):
    """Prompts of text can't tell such a model from its base, and that is no reason to refuse it."""
    targets = r"model\.vision_tower\..*\.linear"
    base = load_model(tiny("multimodal"), weights="fp32", towers=True)
    model = adapters.attach(base, LoraConfig(rank=2, towers=True, targets=targets), seed=0).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    adapters.save_adapter(model, tmp_path / "train" / "adapter", "base", None)
    folder = merged(tmp_path, in_fp32("multimodal", tmp_path / "base"), tmp_path / "train")
    with torch.no_grad():
        assert torch.allclose(see(load_model(folder, weights="fp32", towers=True)), see(model), atol=1e-4)


@pytest.mark.parametrize("variant", ["lora", "dora", "pissa", "experts", "rslora"])
def test_merge_into_bf16_differs_by_one_rounding(variant, tmp_path):
    """The published bases are bf16. What a merge loses is far below what was learned; a mixture is compared with its
    routes held, for otherwise a rounding of a random router has no bound."""
    kind, _ = VARIANTS[variant]
    model = trained(variant)
    adapters.save_adapter(model, tmp_path / "train" / "adapter", "base", None)
    again = load_model(merged(tmp_path, tiny(kind), tmp_path / "train"), weights="fp32")
    base = load_model(tiny(kind), weights="fp32")
    if kind == "moe":
        answers = routes(model)
        again, base = hold(again, answers), hold(base, answers)
    learned = (logits(model) - logits(base)).norm()
    assert (logits(again) - logits(model)).norm() < 0.05 * learned


def test_a_death_while_writing_leaves_no_half_adapter(tmp_path, monkeypatch):
    """Neither where nothing was, nor over an adapter that was there."""
    model = attached("lora")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    real = adapters.save_adapter
    from gemma_ops.modeling import adapter_files

    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter_files, "_publish", dies)
    with pytest.raises(KeyboardInterrupt):
        real(model, tmp_path / "adapter", "base", None)
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        adapters.load_adapter(load_model(tiny("e2b")), tmp_path / "adapter")
    monkeypatch.undo()
    real(model, tmp_path / "adapter", "base", None)
    before = {file.name: file.read_bytes() for file in (tmp_path / "adapter").iterdir()}
    assert set(before) == {"adapter_config.json", "adapter_model.safetensors"}
    monkeypatch.setattr(adapter_files, "_publish", dies)
    with pytest.raises(KeyboardInterrupt):
        real(model, tmp_path / "adapter", "base", None)
    assert all((tmp_path / "adapter" / name).read_bytes() == content for name, content in before.items())


def test_an_adapter_that_is_refused_is_not_left_behind(tmp_path):
    """A training that diverged or learned nothing leaves no folder that a later step takes for an adapter."""
    model = attached("lora")
    with pytest.raises(ModelError, match="learned nothing"):
        adapters.save_adapter(model, tmp_path / "adapter", "base", None)
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()


def test_what_is_no_whole_lora_is_refused_by_name(tmp_path):
    model = trained("lora")
    adapters.save_adapter(model, tmp_path, "base", None)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    body, content = config.read_text(), weights.read_bytes()

    def attempt(message):
        with pytest.raises(ModelError, match=message):
            adapters.load_adapter(load_model(tiny("e2b")), tmp_path)
        config.write_text(body)
        weights.write_bytes(content)

    config.write_text(json.dumps(json.loads(body) | {"peft_type": "IA3"}))
    attempt("is a IA3 adapter, not LoRA")
    config.write_text(body[:-20])
    attempt("can't be read")
    weights.write_bytes(content[:-100])
    attempt("can't be read")
    weights.unlink()
    attempt(r"adapter_model\.safetensors is missing")
    tensors = safetensors.torch.load_file(weights)
    one = next(name for name in tensors if "lora_A" in name)
    safetensors.torch.save_file({name: tensor for name, tensor in tensors.items() if name != one}, weights)
    attempt("does not fit this base")
    safetensors.torch.save_file(tensors | {one: tensors[one][:, :-1].contiguous()}, weights)
    attempt("does not fit this base")


def test_an_adapter_of_another_published_base_is_refused(tmp_path):
    """`google/gemma-4-E2B` and its `-it` have the same shapes: the merge would work, and the model be nobody's."""
    model = trained("lora")
    adapters.save_adapter(model, tmp_path / "train" / "adapter", "google/gemma-4-E2B-it", "abc")
    base = tmp_path / "base"
    base.mkdir()
    (base / "weights").symlink_to(tiny("e2b"))
    for name, refused in (("google/gemma-4-E2B", True), ("google/gemma-4-E2B-it", False), ("nano", False)):
        (base / "model.json").write_text(json.dumps({"id": name, "revision": None, "size": "e2b", "files": {}}))
        source = MergedCheckpoint(tiny("e2b"))
        if refused:
            with pytest.raises(ModelError, match="was trained on google/gemma-4-E2B-it"):
                replacing.weight_changes(tmp_path / "train" / "adapter", source, base)
        else:
            assert len(replacing.weight_changes(tmp_path / "train" / "adapter", source, base)) > 30
