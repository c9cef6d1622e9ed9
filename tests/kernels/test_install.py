"""Kernels go on and come off again, every switch reaches its effect, and all together they are stock training."""

from __future__ import annotations

import pytest
import torch

from gemma_ops import kernels
from gemma_ops.config.training_sections import KernelsConfig
from gemma_ops.kernels import install as installing
from gemma_ops.kernels import layers, lora_linears
from tests.helpers.kernel_models import (
    LENGTHS,
    STOCK,
    apart,
    build,
    cosine,
    documents,
    exact,
    packed,
    relative,
    step,
    tuned,
)
from tests.helpers.tiny_models import KINDS

FULL = KernelsConfig()


def text(model):
    return installing.text_model_of(model)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kernels_are_stock_training(kind):
    docs = documents(LENGTHS)
    model = tuned(kind)
    batch = packed(docs)
    stock = {key: value for key, value in batch.items() if key != "cu_seq_lens_q"}
    want, gradients = step(model, **stock)
    got, ours = step(kernels.install_kernels(model, FULL), **batch)
    assert relative(got, want) < exact(kind)
    assert apart(ours, gradients) < exact(kind)


@pytest.mark.parametrize("kind", ["e2b", "dense31", "unified"])
def test_all_kernels_in_bfloat16_are_as_near_the_truth_as_stock(kind):
    batch = packed(documents(LENGTHS))
    stock = {key: value for key, value in batch.items() if key != "cu_seq_lens_q"}
    _, truth = step(tuned(kind), **stock)
    model = tuned(kind, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = cosine(step(model, **stock)[1], truth)
    assert cosine(step(kernels.install_kernels(model, FULL), **batch)[1], truth) > min(theirs, 0.999) - 5e-4


@pytest.mark.parametrize("kind", KINDS)
def test_uninstalled_is_as_loaded(kind):
    model = tuned(kind)
    modules = list(model.modules())
    before = [dict(module.__dict__) for module in modules]
    hooks = [len(module._forward_pre_hooks) for module in modules]
    implementation = text(model).config._attn_implementation
    batch = {"input_ids": documents([40])[0], "use_cache": False}
    want, gradients = step(model, **batch)
    kernels.uninstall(kernels.install_kernels(model, FULL, recompute="mlp"))
    assert text(model).config._attn_implementation == implementation
    assert [len(module._forward_pre_hooks) for module in modules] == hooks
    for module, was in zip(modules, before, strict=True):
        assert set(module.__dict__) == set(was)
        assert "forward" not in module.__dict__ or module.forward == was["forward"]
    got, ours = step(model, **batch)
    assert torch.equal(got, want)
    assert apart(ours, gradients) == 0


def test_attention_is_set_on_the_language_model_alone():
    """The audio tower has its own and refuses any other: a name for the whole model stops there."""
    from gemma_ops.modeling.load import load_model
    from tests.helpers.checkpoints import tiny

    model = load_model(tiny("multimodal"), weights="fp32", towers=True)
    before = model.config.audio_config._attn_implementation, model.config.vision_config._attn_implementation
    kernels.install_kernels(model, FULL)
    assert text(model).config._attn_implementation == "gemma_ops"
    assert (model.config.audio_config._attn_implementation, model.config.vision_config._attn_implementation) == before


def test_a_teacher_beside_is_not_touched_and_names_stay():
    student, teacher = build("e2b"), build("e2b")
    names = list(student.state_dict())
    kernels.install_kernels(student, FULL)
    assert list(student.state_dict()) == names
    assert "forward" not in text(teacher).layers[0].mlp.__dict__
    assert text(teacher).config._attn_implementation != "gemma_ops"


@pytest.mark.parametrize("kind", ["e2b", "dense31"])
def test_hidden_states_are_those_before_the_head(kind):
    model, batch = tuned(kind), packed(documents(LENGTHS))
    kernels.install_kernels(model, FULL)
    batch.pop("use_cache")
    hidden = kernels.forward_hidden(model, **batch)
    head = installing.base_of(model).lm_head
    logits = torch.tanh(head(hidden) / 30) * 30
    assert relative(logits, model(**batch, use_cache=False).logits) < 1e-6
    kernels.uninstall(model)
    with pytest.raises(RuntimeError, match="install"):
        kernels.forward_hidden(model, **batch)


def test_every_switch_reaches_its_effect(monkeypatch):
    """Which of our functions run under each setting."""
    seen: set[str] = set()

    def watch(module, name):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, **kwargs: (seen.add(name), original(*args, **kwargs))[1])

    for module, name in ((lora_linears._Linears, "apply"), (layers.ops_autograd, "norm"),
        (layers.ops_autograd, "add_norm"),
                         (layers.ops_autograd, "rotated"), (layers, "mlp"), (layers, "checkpoint")):  # fmt: skip
        watch(module, name)
    model, batch = tuned("e2b"), {"input_ids": documents([20])[0], "use_cache": False}

    def ran(settings, recompute="none"):
        seen.clear()
        step(kernels.install_kernels(model, settings, recompute=recompute), **batch)
        return set(seen)

    norms = {"norm", "add_norm", "rotated"}
    assert ran(STOCK) == set()
    assert ran(STOCK.model_copy(update={"norms": "fused"})) == norms
    assert ran(STOCK.model_copy(update={"lora": "fused"})) == {"apply", "mlp"}
    assert ran(STOCK, "mlp") == {"checkpoint"}
    assert ran(FULL) == norms | {"apply", "mlp"}
    assert text(model).config._attn_implementation == "gemma_ops"


def test_compiling_follows_the_device():
    model = text(build("e2b"))

    def using(**settings):
        return installing._using(model, KernelsConfig(**settings), "none").run

    assert not using().compiled  # auto, on a CPU
    assert using(compile="regions").compiled
    assert using(compile="regions").strict
    assert not using(compile="off").compiled


def test_another_activation_is_not_fused():
    model = build("dense31")
    text(model).config.hidden_activation = "silu"
    for layer in text(model).layers:
        layer.mlp.act_fn = torch.nn.SiLU()
    batch = {"input_ids": documents([20])[0], "use_cache": False}
    want = model(**batch).logits
    assert relative(kernels.install_kernels(model, FULL)(**batch).logits, want) < 1e-5
