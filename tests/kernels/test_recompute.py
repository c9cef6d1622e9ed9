"""What the backward pass makes again changes nothing but memory: gradients are those of keeping everything."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from gemma_ops import kernels
from gemma_ops.config.training_sections import KernelsConfig
from gemma_ops.kernels import layers
from tests.helpers.kernel_models import LENGTHS, STOCK, apart, documents, kept_bytes, packed, step, tuned
from tests.helpers.tiny_models import KINDS

FULL = KernelsConfig()


def batch_of():
    return packed(documents(LENGTHS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings", [FULL, STOCK.model_copy(update={"attention": "documents"})], ids=["fused", "stock"]
)
def test_gradients_are_those_of_keeping_everything(kind, settings):
    model, batch = tuned(kind), batch_of()
    want, gradients = step(kernels.install_kernels(model, settings), **batch)
    for recompute in ("mlp", "all", 1, 4):
        got, ours = step(kernels.install_kernels(model, settings, recompute=recompute), **batch)
        assert torch.equal(got, want)
        assert apart(ours, gradients) < 1e-6


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_random_states_are_kept_where_something_is_random(monkeypatch, dropout):
    """A GPU's state is read back, which no recorded pass can hold; DoRA leaves MLPs to PEFT."""
    kept = []

    def watched(*given, preserve_rng_state, **more):
        kept.append(preserve_rng_state)
        return checkpoint(*given, preserve_rng_state=preserve_rng_state, **more)

    monkeypatch.setattr(layers, "checkpoint", watched)
    step(kernels.install_kernels(tuned("e2b", dora=True, dropout=dropout), FULL, recompute="mlp"), **batch_of())
    assert kept
    assert set(kept) == {dropout > 0}


@pytest.mark.parametrize("kind", ["e2b", "moe"])
def test_it_keeps_less(kind):
    model, batch = tuned(kind), batch_of()

    def kept(recompute):
        kernels.install_kernels(model, FULL, recompute=recompute)
        return kept_bytes(lambda: model(**batch), model)

    none, mlp, two, every = (kept(recompute) for recompute in ("none", "mlp", 2, "all"))
    assert every < two < none
    assert every < mlp < none
    gate_up = sum(layer.mlp.intermediate_size for layer in model.base_model.model.model.language_model.layers)
    assert none - mlp > 2 * gate_up * sum(LENGTHS) * 4 * 0.99  # float32


def test_reentrant_checkpoints_lose_gradients_where_keys_are_shared():
    """Why `install` never uses them: the counter-test of the E2B's shared keys."""
    model, batch = tuned("e2b"), batch_of()
    _, gradients = step(kernels.install_kernels(model, FULL), **batch)
    kernels.install_kernels(model, FULL, recompute="all")
    model.enable_input_require_grads()
    for layer in model.base_model.model.model.language_model.layers:
        layer._gradient_checkpointing_func = lambda *args, **kwargs: checkpoint(*args, use_reentrant=True, **kwargs)
    assert apart(step(model, **batch)[1], gradients) > 0.01


def test_dropout_is_drawn_again_the_same():
    model, batch = tuned("dense31", dropout=0.3), batch_of()
    found = []
    for recompute in ("none", "mlp", "all"):
        kernels.install_kernels(model, FULL, recompute=recompute)
        torch.manual_seed(3)
        found.append(step(model, **batch)[1])
    assert apart(found[1], found[0]) < 1e-6
    assert apart(found[2], found[0]) < 1e-6
