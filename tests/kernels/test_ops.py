"""Fused norms, rotary embedding and GeGLU are transformers' modules to rounding, keep less, and compile to the same."""

from __future__ import annotations

import importlib.util
from types import FunctionType

import pytest
import torch
from torch.nn import functional
from transformers.models.gemma4 import modeling_gemma4

from gemma_ops import kernels
from gemma_ops.kernels import ops_autograd, ops_reference, ops_runner
from gemma_ops.kernels.ops_runner import OpRunner
from gemma_ops.modeling import triton_launch
from tests.helpers.kernel_models import STOCK, apart, build, cosine, documents, exact, kept_bytes, relative, step, tuned
from tests.helpers.tiny_models import KINDS

FUSED = STOCK.model_copy(update={"norms": "fused"})
# bfloat16: one rounding to 8 bits of mantissa, 2^-9, where transformers has up to five
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


def norm_of(width, dtype, scaled):
    torch.manual_seed(0)
    module = modeling_gemma4.Gemma4RMSNorm(width, eps=1e-6, with_scale=scaled).to(dtype)
    if scaled:
        module.weight.data = torch.empty(width).uniform_(0.5, 2.0).to(dtype)
    return module


def compare(ours, theirs, leaves, dtype):
    torch.manual_seed(5)
    outer = torch.randn_like(theirs)
    assert ours.dtype == theirs.dtype
    assert relative(ours, theirs) < TOLERANCE[dtype]
    pairs = zip(torch.autograd.grad(ours, leaves, outer), torch.autograd.grad(theirs, leaves, outer), strict=True)
    for mine, other in pairs:
        assert mine.dtype == other.dtype
        assert relative(mine, other) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("shape", [(2, 30, 64), (30, 64), (1, 30, 4, 16)])
def test_rms_norm(dtype, scaled, shape):
    module = norm_of(shape[-1], dtype, scaled)
    x = (torch.randn(shape) * 3).to(dtype).requires_grad_()
    weight = module.weight if scaled else None
    leaves = (x, weight) if scaled else (x,)  # the weight learns in full fine-tuning
    compare(ops_autograd.norm(x, weight, module.eps), module(x), leaves, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_epsilon_counts(dtype):
    module = norm_of(64, dtype, False)
    x = (torch.randn(1, 5, 64) * 1e-3).to(dtype)
    assert relative(ops_autograd.norm(x, None, 1e-6), module(x)) < TOLERANCE[dtype]
    assert relative(ops_autograd.norm(x, None, 1e-12), module(x)) > 0.1


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scaled", [True, False])
def test_joining_the_stream(dtype, scaled):
    module = norm_of(64, dtype, True)
    stream, x = ((torch.randn(2, 9, 64)).to(dtype).requires_grad_() for _ in range(2))
    scale = torch.tensor([0.7]).to(dtype) if scaled else None
    want = stream + module(x)
    want = want * scale if scaled else want
    compare(ops_autograd.add_norm(stream, x, module.weight, module.eps, scale), want, (stream, x, module.weight), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["sliding_attention", "full_attention"])
def test_heads_normed_and_turned(dtype, kind):
    config = build("dense31").config.get_text_config()
    rotary = modeling_gemma4.Gemma4TextRotaryEmbedding(config)
    width = config.per_layer_config[kind].head_dim
    module = norm_of(width, dtype, True)
    x = torch.randn(2, 11, 3, width).to(dtype).requires_grad_()
    cos, sin = rotary(x, torch.arange(11)[None] * 3, kind)
    want = modeling_gemma4.apply_rotary_pos_emb(module(x), cos, sin, unsqueeze_dim=2)
    got = ops_autograd.rotated(x, module.weight, cos, sin, module.eps)
    compare(got, want, (x, module.weight), dtype)
    assert relative(ops_autograd.rotated(x, module.weight, cos, -sin, module.eps), want) > 0.1


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_geglu(dtype):
    gate, up = (torch.randn(2, 9, 96).to(dtype).requires_grad_() for _ in range(2))
    compare(ops_autograd.geglu(gate, up), functional.gelu(gate, approximate="tanh") * up, (gate, up), dtype)


def test_what_is_kept():
    module = norm_of(64, torch.bfloat16, True)
    module.requires_grad_(False)
    x = torch.randn(1, 500, 64, dtype=torch.bfloat16, requires_grad=True) * 1.0
    states, number = 500 * 64 * 2, 500 * 4
    ours = kept_bytes(lambda: ops_autograd.norm(x, module.weight, 1e-6), module)
    assert ours == states + number
    assert kept_bytes(lambda: module(x), module) > 2 * ours


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model(kind):
    model, batch = tuned(kind), {"input_ids": documents([40])[0], "use_cache": False}
    want, gradients = step(model, **batch)
    got, ours = step(kernels.install_kernels(model, FUSED), **batch)
    assert relative(got, want) < exact(kind)
    assert apart(ours, gradients) < exact(kind)


@pytest.mark.parametrize("kind", ["e2b", "dense31", "unified"])
def test_a_whole_model_in_bfloat16_is_nearer_the_truth_than_eager(kind):
    batch = {"input_ids": documents([40])[0], "use_cache": False}
    _, truth = step(tuned(kind), **batch)
    model = tuned(kind, torch.bfloat16)
    stock = cosine(step(model, **batch)[1], truth)
    assert cosine(step(kernels.install_kernels(model, FUSED), **batch)[1], truth) > min(0.999, stock) - 5e-4


def test_every_parameter_learns_the_same_in_full_fine_tuning():
    model, batch = build("e2b").train(), {"input_ids": documents([40])[0], "use_cache": False}
    _, want = step(model, **batch)
    got = step(kernels.install_kernels(model, STOCK.model_copy(update={"norms": "fused", "lora": "fused"})), **batch)[1]
    assert "model.language_model.layers.0.input_layernorm.weight" in got
    assert max(relative(got[name], want[name]) for name in want) < 2e-4
    assert apart(got, want) < 1e-5


def test_compiled_bodies_give_the_same_and_are_shared_by_all_lengths():
    run = OpRunner(compiled=True, strict=True)
    before = len(ops_runner._COMPILED)
    for length in (30, 47, 64):
        x = torch.randn(1, length, 24, dtype=torch.bfloat16).requires_grad_()
        weight = torch.rand(24, dtype=torch.bfloat16)
        ours, theirs = (ops_autograd.norm(x, weight, 1e-6, how) for how in (run, ops_runner.EAGER))
        outer = torch.randn_like(x)
        assert relative(ours, theirs) < 6e-3
        gradients = [torch.autograd.grad(out, x, outer)[0] for out in (ours, theirs)]
        assert relative(*gradients) < 6e-3
    assert len(ops_runner._COMPILED) == before + 2


def test_where_compiling_fails_the_bodies_run_as_they_are(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    gate = torch.randn(1, 3, 17)
    run = OpRunner(compiled=True)
    with pytest.warns(UserWarning, match="no compiler"):
        found = ops_autograd.geglu(gate, gate, run)
    assert torch.equal(found, ops_autograd.geglu(gate, gate))
    assert not run.compiled
    with pytest.raises(RuntimeError, match="no compiler"):
        ops_autograd.geglu(gate, gate, OpRunner(compiled=True, strict=True))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_every_triton_kernel_stands_for_a_body():
    from gemma_ops.kernels import ops_triton

    own = {one for one in vars(ops_triton).values() if getattr(one, "__module__", "") == ops_triton.__name__}
    public = {one for one in own if isinstance(one, FunctionType) and not one.__name__.startswith("_")}
    assert set(ops_triton.KERNELS.values()) == public
    assert {body.__module__ for body in ops_triton.KERNELS} == {ops_reference.__name__}
    assert [body.__name__ for body in ops_triton.KERNELS] == [one.__name__ for one in ops_triton.KERNELS.values()]


def test_only_the_absence_of_triton_leaves_its_kernels_out():
    with pytest.raises(ModuleNotFoundError, match="renamed"):
        triton_launch.kernels("gemma_ops.kernels.ops_renamed")
