"""Adapters computed together are PEFT's: outputs, gradients, on a dense and a 4-bit base; what they can't do goes to
PEFT."""

from __future__ import annotations

import pytest
import torch

from gemma_ops import kernels
from gemma_ops.config import LoraConfig
from gemma_ops.kernels import lora_casts, lora_linears
from gemma_ops.modeling import adapters, nf4
from gemma_ops.modeling.load import load_model
from tests.helpers.checkpoints import tiny
from tests.helpers.kernel_models import (
    LENGTHS,
    STOCK,
    apart,
    build,
    cosine,
    documents,
    exact,
    kept_bytes,
    packed,
    relative,
    step,
    tuned,
)
from tests.helpers.tiny_models import KINDS

FUSED = STOCK.model_copy(update={"lora": "fused"})


def text_batch(length=40):
    return {"input_ids": documents([length])[0], "use_cache": False}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rslora", [False, True])
def test_fused_is_peft(kind, rslora):
    model, batch = tuned(kind, rslora=rslora, alpha=24), text_batch()
    want, gradients = step(model, **batch)
    got, ours = step(kernels.install_kernels(model, FUSED), **batch)
    assert relative(got, want) < exact(kind)
    assert apart(ours, gradients) < exact(kind)


def test_a_wrong_scale_shows():
    model, batch = tuned("e2b"), text_batch()
    _, gradients = step(model, **batch)
    kernels.install_kernels(model, FUSED)
    model.base_model.model.model.language_model.layers[0].self_attn.q_proj.scaling["default"] *= 1.01
    assert apart(step(model, **batch)[1], gradients) > 1e-4


@pytest.mark.parametrize("kind", ["e2b", "dense31", "unified"])
def test_in_bfloat16_gradients_are_as_near_the_truth_as_peft_under_autocast(kind):
    batch = text_batch()
    _, truth = step(tuned(kind), **batch)
    model = tuned(kind, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        _, stock = step(model, **batch)
    _, ours = step(kernels.install_kernels(model, FUSED), **batch)
    assert all(gradient.dtype == torch.float32 for gradient in ours.values())
    assert cosine(ours, truth) > min(0.999, cosine(stock, truth)) - 5e-4


@pytest.mark.parametrize("kind", ["e2b", "moe"])
def test_a_4_bit_base_is_its_dequantized_self(kind):
    """And it is dequantized anew in the backward pass, kept nowhere."""
    four = adapters.attach(load_model(tiny(kind), weights="nf4", device="cpu"), LoraConfig(rank=4), 0).train()
    dense = adapters.attach(load_model(tiny(kind), weights="bf16", device="cpu"), LoraConfig(rank=4), 0).train()
    torch.manual_seed(1)
    mine, theirs = dict(four.named_parameters()), dict(dense.named_parameters())
    for name, parameter in theirs.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
            mine[name].data.copy_(parameter.data)
        elif nf4.is_4bit(mine[name]):
            parameter.data.copy_(nf4.dequantize_nf4(mine[name]))
    batch = text_batch()
    want, gradients = step(kernels.install_kernels(dense, FUSED), **batch)
    kernels.install_kernels(four, FUSED)
    got, ours = step(four, **batch)
    assert torch.equal(got, want)
    assert apart(ours, gradients) < 1e-6
    q = four.base_model.model.model.language_model.layers[0].self_attn.q_proj
    parts = lora_linears.read_factors((q,), torch.zeros(1, dtype=torch.bfloat16))
    assert parts is not None
    assert nf4.is_4bit(parts[0].weight)


def test_the_input_is_kept_once_and_no_weight():
    torch.manual_seed(0)
    model = tuned("dense31", torch.bfloat16)
    attention = model.base_model.model.model.language_model.layers[0].self_attn
    modules = [attention.q_proj, attention.k_proj, attention.v_proj]
    x = torch.randn(1, 200, 64, dtype=torch.bfloat16, requires_grad=True) * 1.0
    kept = kept_bytes(lambda: lora_linears.linears(x, modules), model)
    assert kept == 200 * (64 + 3 * 4) * 2  # the input and its product with three factors of rank 4
    assert kept_bytes(lambda: [module(x) for module in modules], model) > 2 * kept


@pytest.mark.parametrize("change", ["dropout", "dora", "disabled", "merged", "two", "hook", "learning"])
def test_what_it_cannot_do_is_left_to_peft(change):
    model = tuned("e2b", dropout=0.5 if change == "dropout" else 0.0, dora=change == "dora")
    layer = model.base_model.model.model.language_model.layers[0]
    q, batch = layer.self_attn.q_proj, text_batch()
    if change == "two":
        import peft

        model.add_adapter("other", peft.LoraConfig(r=2, target_modules=r".*layers\.\d+\.self_attn\.q_proj"))
        torch.nn.init.normal_(q.lora_B["other"].weight)
        model.base_model.set_adapter(["default", "other"])
    if change == "hook":
        q.register_forward_hook(lambda module, args, out: out.roll(1, -1))
    if change == "learning":
        q.base_layer.weight.requires_grad_(True)
    if change == "merged":
        model.merge_adapter()
    kernels.install_kernels(model, FUSED)

    def run():
        torch.manual_seed(7)
        if change == "disabled":
            with model.disable_adapter(), torch.no_grad():
                return model(**batch).logits
        return model(**batch).logits.detach()

    ours = run()
    x = torch.zeros(1)
    if change != "disabled":
        assert lora_linears.read_factors((q,), x) is None or change == "merged"
    kernels.uninstall(model)
    assert relative(ours, run()) < 1e-5
    if change in ("disabled", "merged"):
        return
    plain = tuned("e2b")(**batch).logits
    assert relative(ours, plain) > 1e-4 or change == "learning"  # the change did something


def test_switching_adapters_off_and_on_is_decided_in_every_call():
    model, batch = kernels.install_kernels(tuned("e2b"), FUSED), text_batch()
    with torch.no_grad():
        on = model(**batch).logits
        with model.disable_adapter():
            off = model(**batch).logits
        assert torch.equal(model(**batch).logits, on)
    assert relative(off, build("e2b")(**batch).logits) < 1e-5
    assert relative(off, on) > 1e-3


def test_autocast_to_the_bases_type_computes_the_same():
    model, batch = kernels.install_kernels(tuned("e2b", torch.bfloat16), FUSED), text_batch()
    plain = model(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert cosine({"": model(**batch).logits}, {"": plain}) > 0.9999
    x = torch.zeros(1)
    with torch.autocast("cpu", torch.bfloat16):  # a float32 base is not what autocast computes in
        q = tuned("e2b").base_model.model.model.language_model.layers[0].self_attn.q_proj
        assert lora_linears.read_factors((q,), x) is None


def test_some_targets_only():
    """Linears without adapter share the Function with those that have one."""
    targets = r".*language_model\.layers\.\d+\.(self_attn\.v_proj|mlp\.up_proj)"
    model, batch = tuned("dense31", targets=targets), packed(documents(LENGTHS))
    batch.pop("cu_seq_lens_q")
    want, gradients = step(model, **batch)
    got, ours = step(kernels.install_kernels(model, FUSED), **batch)
    assert relative(got, want) < 1e-5
    assert apart(ours, gradients) < 1e-5


def _optimizers():
    import bitsandbytes as bnb

    return {
        "fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
        "foreach": lambda ps: torch.optim.AdamW(ps, lr=0.01, foreach=True),
        "8-bit": lambda ps: bnb.optim.AdamW8bit(ps, lr=0.01, min_8bit_size=16),
    }


@pytest.mark.parametrize("name", ["fused", "foreach", "8-bit"])
def test_a_cast_from_before_an_optimizer_step_is_never_used(name):
    """Fused and 8-bit optimizers don't count the versions of what they change: a copy known by its version would be the
    adapter's first values for ever."""
    model = kernels.install_kernels(tuned("dense31", torch.bfloat16), FUSED)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, batch = _optimizers()[name](learning), text_batch()
    for _ in range(2):
        kernels.Copies(model).refresh()
        assert all(lora_casts.fresh(master, torch.bfloat16) for master in learning)
        logits, gradients = step(model, **batch)
        versions = [master._version for master in learning]
        optimizer.step()
        assert not any(lora_casts.fresh(master, torch.bfloat16) for master in learning)
        after = model(**batch).logits
        assert not torch.equal(after, logits)
        kernels.Copies(model).refresh()
        assert torch.equal(model(**batch).logits, after)
        assert name == "foreach" or [master._version for master in learning] == versions  # why versions alone fail
    assert gradients


def test_casts_ahead_change_no_number_and_other_changes_void_them():
    model, batch = kernels.install_kernels(tuned("e2b", torch.bfloat16), FUSED), text_batch()
    want, gradients = step(model, **batch)
    kernels.Copies(model).refresh()
    got, ours = step(model, **batch)
    assert torch.equal(got, want)
    assert apart(ours, gradients) == 0
    q = model.base_model.model.model.language_model.layers[0].self_attn.q_proj.lora_A["default"].weight
    assert lora_casts.fresh(q, torch.bfloat16)
    q.data = q.data.clone()  # as a checkpoint or the trainer may
    assert not lora_casts.fresh(q, torch.bfloat16)
    kernels.Copies(model).refresh()
    with torch.no_grad():
        q.mul_(2)
    assert not lora_casts.fresh(q, torch.bfloat16)
    assert not torch.equal(model(**batch).logits, want)
